"""The model that a training run starts from: a base, a reward model, or an adapter on its base."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from rmtrain.data.hub import why_absent
from rmtrain.data.render import Renderer
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.errors import CheckpointError, InputError
from rmtrain.files import require_regular
from rmtrain.model.adapters import adapter_config, add_lora, attach_adapter, make_room
from rmtrain.model.digests import verify_files
from rmtrain.model.dropout import disable_dropout
from rmtrain.model.forward import HEAD
from rmtrain.model.language_head import load_language_head
from rmtrain.model.memory import meta_model
from rmtrain.model.published.layouts import ENCODER_TYPES
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone, load_config, set_pad
from rmtrain.model.saving import merge, saved_shapes, stored_bytes
from rmtrain.model.weights import (
    ADAPTER,
    MERGED_BASE,
    fetch,
    read_adapter,
    read_object,
    read_shapes,
    read_tensors,
    require_files,
    weight_files,
)
from rmtrain.recipe.schema import ModelSection, Recipe
from rmtrain.runs import MANIFEST

MERGED_PLACE = f"RUN/{MERGED_BASE}"  # where a run that has not begun will write its merged base


class Start(NamedTuple):
    """The weights that a run starts from."""

    name: str  # hub id or absolute folder of a whole model
    revision: str | None
    adapter: Path | None = None  # folder of an adapter on that model


def find_start(section: ModelSection) -> Start:
    """Resolve `model.name`: the folder or hub id of a model or an adapter, or a run folder, whose `final` is taken.

    Raises:
        CheckpointError: the adapter names no base, or can't be fetched.
    """
    folder = Path(section.name)
    if not folder.is_dir():
        fetched = _fetch_adapter(section.name, section.revision)
        if fetched is None:
            return Start(section.name, section.revision)
        folder = fetched
    if (folder / MANIFEST).exists() and (folder / "final").is_dir():
        folder = folder / "final"
    folder = folder.resolve()
    if not (folder / ADAPTER).exists():
        return Start(str(folder), section.revision)
    values = read_adapter(require_files(folder))
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / ADAPTER} names no base model", "set base_model_name_or_path there")
    return Start(str(Path(base).resolve()) if Path(base).is_dir() else base, values.get("revision"), folder)


@functools.cache
def _fetch_adapter(name: str, revision: str | None) -> Path | None:
    """Download a hub adapter, at one commit for the whole process; None if the name is not that of an adapter."""
    if why_absent(name, revision):  # loading the config will say why
        return None
    try:
        config = find_adapter_config_file(name, revision=revision)
    except OSError:
        return None
    return fetch(name, Path(config).parent.name) if config else None  # .../snapshots/<commit>/adapter_config.json


def base_name(section: ModelSection) -> str:
    """The base that a run records: the base of an adapter, else `model.name` as the recipe has it."""
    start = find_start(section)
    return section.name if start.adapter is None else start.name


def start_config(recipe: Recipe) -> PretrainedConfig:
    """The config of a recipe's model; raises as `load_config`."""
    start = find_start(recipe.model)
    return load_config(start.name, start.revision)


def recipe_renderer(section: ModelSection, verify: bool = True) -> Renderer:
    """The renderer of a recipe's model, after a check that the model can be trained.

    Raises:
        InputError: there is no such model or tokenizer, it has no chat template, or it is not a decoder.
        CheckpointError: it is damaged, or its score head has several labels.
    """
    start = find_start(section)
    config = load_config(start.name, start.revision)
    if config.model_type in ENCODER_TYPES:
        raise InputError(
            f"{section.name} is an encoder ({config.model_type}), which can be scored but not trained here",
            "choose a decoder",
        )
    folder = start.adapter or Path(start.name)
    if folder.is_dir():
        if verify:
            verify_files(folder)
        require_one_label(folder)
    return start_renderer(section)


def start_renderer(section: ModelSection) -> Renderer:
    """The renderer of a recipe's model, from its tokenizer alone; an adapter without a tokenizer takes its base's.

    Raises:
        InputError: there is no such tokenizer, or it has no chat template.
    """
    start = find_start(section)
    own = start.adapter is not None and (start.adapter / "tokenizer_config.json").exists()
    name, revision = (str(start.adapter), None) if own else (start.name, start.revision)
    return Renderer.for_tokenizer(load_tokenizer(name, revision, section.chat_template))


def build_model(
    recipe: Recipe, pad_id: int, commit: str | None = None, on_meta: bool = False, start: Start | None = None
) -> RewardModel:
    """Load the recipe's model, with adapters where it has a lora section.

    An adapter of the same shape is trained further; in full fine-tuning an adapter is merged into its base.

    Args:
        commit: the hub commit that a resumed run began with; it replaces the recipe's revision, which may have moved.
        on_meta: check everything, but read only the names and shapes of the weights, and none of an adapter's.
        start: the weights to load instead of those of `model.name`: an adapter that `write_base` has merged.
    """
    section, lora, seed = recipe.model, recipe.lora, recipe.run.seed
    start = start or find_start(section)
    options = BackboneOptions(section.dtype, section.quantization, section.attention, section.packing)
    pad = pad_id if start.adapter is None else None  # an adapter may have more embeddings than its base
    model = load_backbone(start.name, commit or start.revision, options, pad, seed, lora is None, on_meta)
    if not section.dropout:
        disable_dropout(model.module)
    if start.adapter is not None:
        fit_to_adapter(model.module, start, pad_id)
    if recipe.loss.text_loss:
        base = find_start(section)  # a merged base has no language head
        model.module.language_head = load_language_head(
            model.module, base.name, commit or base.revision, getattr(torch, section.dtype), on_meta
        )
    if start.adapter is None or on_meta:
        notes = (*model.notes, *merging_note(recipe, start, model.module.config, MERGED_PLACE))
        return replace(model if lora is None else add_lora(model, lora, seed), notes=notes)
    dropout = lora.dropout if lora is not None else 0.0
    module = attach_adapter(model.module, start.adapter, start.name, dropout)
    note = f"{start.adapter}: an adapter on {start.name}, "
    if lora is not None:
        return replace(model, module=module, notes=(*model.notes, f"{note}which is trained further"))
    whole = merge(replace(model, module=module))
    whole.module.requires_grad_(True)
    return replace(whole, notes=(*model.notes, f"{note}merged into it; all weights are trained"))


def fit_to_adapter(module: Any, start: Start, pad_id: int) -> None:
    """Resize a base's embeddings to those of the adapter that will be put on it, and set its pad id."""
    if start.adapter is not None:
        make_room(module, read_shapes(start.adapter), labels=1)
        set_pad(module.config, pad_id, start.name)


def shape_differences(recipe: Recipe, start: Start) -> list[str]:
    """How an adapter's shape differs from the recipe's lora section; an adapter that differs can't be trained further.

    Layers are compared by the names of the adapter's tensors, since targets can be written in several ways.
    """
    folder, lora = start.adapter, recipe.lora
    if folder is None or lora is None:
        return []
    adapter, wanted = read_object(folder / ADAPTER), adapter_config(lora)
    differences = []
    for key, setting in {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}.items():
        stated, ours = adapter.get(key) or False, getattr(wanted, key)
        if stated != ours:
            differences.append(f"lora.{setting}: {ours} in the recipe, {stated} in the adapter")
    expected = saved_shapes(meta_model(load_config(start.name, start.revision), lora))
    layers, stored = (
        {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
        for tensors in (expected, read_shapes(folder))
    )
    if layers != stored:
        kinds = sorted({name.rpartition(".")[2] for name in layers ^ stored})
        differences.append(
            f"lora.targets: {len(layers)} layers in the recipe, {len(stored)} in the adapter, which differ in "
            f"{', '.join(kinds)}"
        )
    return differences


def merging_note(recipe: Recipe, start: Start, config: PretrainedConfig, place: str) -> list[str]:
    """A note for a run that merges its adapter into the base and begins a new one; empty for any other start.

    Args:
        place: where the merged base is written.
    """
    if not (differences := shape_differences(recipe, start)):
        return []
    size = stored_bytes(meta_model(config, None), "float32")
    return [
        f"{start.adapter} is an adapter of another shape than the lora section ({'; '.join(differences)}): it is "
        f"merged into its base {start.name}, written once as {place} ({size:,} bytes in float32), and a new adapter "
        "begins there"
    ]


def require_one_label(folder: Path) -> None:
    """Refuse a model whose score head has several labels, or whose weight files can't be read.

    Raises:
        CheckpointError: says how many labels there are, or which file is damaged.
    """
    require_regular(folder, CheckpointError)
    if any(file.suffix != ".safetensors" for file in weight_files(folder)):
        return  # the head of a pickle is checked when the model is loaded
    for _, _, head in read_tensors(folder, lambda name: f".{name}".endswith(f".{HEAD}.weight")):
        if len(head) != 1:
            raise CheckpointError(
                f"{folder}: its score head has {len(head)} labels, a reward model has one",
                "choose another checkpoint; `rmtrain eval --label NAME` reads one of its labels as the reward",
            )
