"""The model that a training run starts from: a base, a reward model, or an adapter on its base."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open
from transformers import PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from rmtrain.data.hub import why_absent
from rmtrain.data.render import Renderer
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.errors import CheckpointError, InputError
from rmtrain.files import require_regular
from rmtrain.model.adapters import adapter_config, add_lora, make_room
from rmtrain.model.checkpoint import attach_adapter
from rmtrain.model.digests import verify_files
from rmtrain.model.dropout import disable_dropout
from rmtrain.model.export import merge
from rmtrain.model.forward import HEAD
from rmtrain.model.published.layouts import ENCODER_TYPES
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone, load_config, set_pad
from rmtrain.model.weights import ADAPTER, download, read_json, read_tensors, require_files, weight_files
from rmtrain.recipe.schema import LoraSection, ModelSection, Recipe
from rmtrain.runs import MANIFEST

_MERGE = "rmtrain export --ckpt {name} --output merged, then rmtrain train RECIPE model.name=merged"


class Start(NamedTuple):
    """Where the weights are that a run starts from."""

    name: str  # folder or hub id of a whole model; a folder by its absolute path, as adapters name their base
    revision: str | None
    adapter: Path | None = None  # on it


def find_start(section: ModelSection) -> Start:
    """What `model.name` names: a folder or a hub id of a model or of an adapter, or a run with one of them as `final`.

    Raises:
        CheckpointError: an adapter that names no base, or that can't be fetched.
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
    values = read_json(require_files(folder) / ADAPTER)
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder / ADAPTER} names no base model", "set base_model_name_or_path there")
    return Start(str(Path(base).resolve()) if Path(base).is_dir() else base, values.get("revision"), folder)


@functools.cache
def _fetch_adapter(name: str, revision: str | None) -> Path | None:
    """The folder of an adapter of the hub, at one commit for the whole process; None if the name is of no adapter."""
    if why_absent(name, revision):  # reading the config says why
        return None
    try:
        found = find_adapter_config_file(name, revision=revision)
    except OSError:
        return None
    return download(name, Path(found).parent.name) if found else None  # .../snapshots/<commit>/adapter_config.json


def base_name(section: ModelSection) -> str:
    """What is recorded as a run's base: of an adapter its own base, else `model.name` as it is written."""
    start = find_start(section)
    return section.name if start.adapter is None else start.name


def start_config(recipe: Recipe) -> PretrainedConfig:
    """The config of a recipe's model; errors as of `load_config`, and as of `build_model` for an adapter."""
    start = find_start(recipe.model)
    if start.adapter is not None and recipe.lora is not None:
        _require_same_shape(start.adapter, recipe.lora, recipe.model)
    return load_config(start.name, start.revision)


def recipe_renderer(section: ModelSection, verify: bool = True) -> Renderer:
    """How a recipe's model reads conversations, once it is known to be one that can be trained.

    Args:
        section: names the model.
        verify: check its files against the digests that were recorded with them.

    Raises:
        InputError: no such model or tokenizer, no chat template, or a model that is no decoder.
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
    """How a recipe's model reads conversations, by its tokenizer alone; an adapter without one has its base's.

    Raises:
        InputError: no such tokenizer, or no chat template.
    """
    start = find_start(section)
    own = start.adapter is not None and (start.adapter / "tokenizer_config.json").exists()
    name, revision = (str(start.adapter), None) if own else (start.name, start.revision)
    return Renderer.for_tokenizer(load_tokenizer(name, revision, section.chat_template))


def build_model(recipe: Recipe, pad_id: int, commit: str | None = None, on_meta: bool = False) -> RewardModel:
    """Load the recipe's model, with adapters where it has a lora section.

    An adapter of the same shape is trained further; in full fine-tuning an adapter is merged into its base.

    Args:
        recipe: of the run.
        pad_id: of the tokenizer.
        commit: of the hub that the run began with, in place of the recipe's revision, which may have moved on.
        on_meta: check all of it, and read the weights' names and shapes alone; an adapter's are left out.

    Raises:
        InputError: an adapter of another shape than the lora section's.
    """
    section, lora, seed, start = recipe.model, recipe.lora, recipe.run.seed, find_start(recipe.model)
    options = BackboneOptions(section.dtype, section.quantization, section.attention, section.packing)
    if start.adapter is not None and lora is not None:
        _require_same_shape(start.adapter, lora, section)
    pad = pad_id if start.adapter is None else None  # an adapter may bring more embeddings than its base has
    model = load_backbone(start.name, commit or start.revision, options, pad, seed, lora is None, on_meta)
    if not section.dropout:
        disable_dropout(model.module)
    if start.adapter is not None:
        make_room(model.module, {name: tuple(tensor.shape) for _, name, tensor in read_tensors(start.adapter)}, 1)
        set_pad(model.module.config, pad_id, start.name)
    if start.adapter is None or on_meta:
        return model if lora is None else add_lora(model, lora, seed)
    dropout = lora.dropout if lora is not None else 0.0
    module = attach_adapter(model.module, start.adapter, start.name, dropout)
    note = f"{start.adapter}: an adapter on {start.name}, "
    if lora is not None:
        return replace(model, module=module, notes=(*model.notes, f"{note}which is trained further"))
    whole = merge(replace(model, module=module))
    whole.module.requires_grad_(True)
    return replace(whole, notes=(*model.notes, f"{note}merged into it; all weights are trained"))


def _require_same_shape(folder: Path, lora: LoraSection, section: ModelSection) -> None:
    """Refuse an adapter that a recipe's lora section would not make: trained further, it keeps its shape.

    Raises:
        InputError: names each difference.
    """
    there, wanted = read_json(folder / ADAPTER), adapter_config(lora)
    keys = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}
    pairs = {f"lora.{ours}": (there.get(key), getattr(wanted, key)) for key, ours in keys.items()}
    if isinstance(lora.targets, list):
        pairs["lora.targets"] = (sorted(there.get("target_modules") or []), sorted(lora.targets))
    if wrong := [
        f"{key}: {mine} in the recipe, {found} there" for key, (found, mine) in pairs.items() if found != mine
    ]:
        at = f"@{section.revision}" if section.revision and not Path(section.name).is_dir() else ""
        raise InputError(
            f"model.name: {section.name} is an adapter of another shape than the lora section's ({'; '.join(wrong)})",
            "give the lora section the adapter's shape to train it further, or merge it and begin a new one: "
            + _MERGE.format(name=section.name + at),
        )


def require_one_label(folder: Path) -> None:
    """Refuse a model whose score head has several labels, or whose weights' files can't be read.

    Raises:
        CheckpointError: says how many labels it has, or which file is damaged.
    """
    require_regular(folder, CheckpointError)
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                heads = [name for name in tensors.keys() if f".{name}".endswith(f".{HEAD}.weight")]  # noqa: SIM118
                shapes = [tensors.get_slice(name).get_shape() for name in heads]
        except Exception as error:  # safetensors has errors of its own
            raise CheckpointError(f"{file}: {error}", "the file is damaged; use another checkpoint") from error
        for shape in shapes:
            if shape[0] != 1:
                raise CheckpointError(
                    f"{folder}: its score head has {shape[0]} labels, a reward model has one",
                    "choose another checkpoint; `rmtrain eval --label NAME` reads one of its labels as the reward",
                )
