"""Reward models on disk: a plain sequence-classification folder or its LoRA adapter, and `rmtrain.json` beside it."""

import hashlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtrain.data.render import Renderer
from rmtrain.errors import CheckpointError, InputError
from rmtrain.files import write_json
from rmtrain.model.adapters import prepare_adapters
from rmtrain.model.forward import HEAD
from rmtrain.model.published.layouts import PAIR_RM
from rmtrain.model.published.load import Published, find_published
from rmtrain.model.published.pair_rm import MAX_LENGTH, PairRenderer
from rmtrain.model.published.prompts import make_renderer
from rmtrain.model.reward_model import NO_HEAD, BackboneOptions, RewardModel, load_backbone, load_config
from rmtrain.model.weights import download, fingerprint_of, read_json, read_tensors

SIDECAR = "rmtrain.json"
ADAPTER = "adapter_config.json"
_OTHER = "the checkpoint is damaged or of another model"


@dataclass(frozen=True)
class Checkpoint:
    """A reward model as loaded for scoring.

    Attributes:
        model: ready to run.
        renderer: how conversations become tokens.
        max_length: tokens of prompt and one completion.
        sidecar: the content of rmtrain.json; empty for other people's checkpoints.
        where: the folder or hub id.
        fingerprint: digest of its weights' files, and of how they are read.
        published: how other people's were read: layout, prompt and label.
        config_pad: the pad id in their config, before it was replaced by the renderer's.
    """

    model: RewardModel
    renderer: Renderer
    max_length: int
    sidecar: dict[str, Any]
    where: str
    fingerprint: str
    published: dict[str, Any] = field(default_factory=dict)
    config_pad: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it is run."""
        return self.model.notes

    def need_rewards(self, what: str) -> None:
        """Raises InputError for a model that compares completions and gives them no rewards."""
        if isinstance(self.renderer, PairRenderer):
            raise InputError(
                f"{self.where} is PairRM, which compares two completions and gives none a reward: {what} needs rewards",
                "use eval, or rewardbench on rewardbench-1 or judgebench",
            )


def write_companions(config: Any, renderer: Renderer, folder: Path, sidecar: dict[str, Any]) -> None:
    """Write what makes weights loadable by anyone: config, tokenizer and the rendering contract."""
    config.get_text_config().pad_token_id = renderer.pad_id  # TRL makes it EOS, and pooling would stop short of the end
    config.save_pretrained(folder)
    renderer.save_pretrained(folder)
    write_json(folder / SIDECAR, {"format": 1, "contract": renderer.contract(), **sidecar})


def save_final(checkpoint: Path, folder: Path, dtype: str) -> None:
    """Copy the model out of a training checkpoint, without the state of optimiser and schedule.

    A fully fine-tuned backbone, trained in float32, is stored in the recipe's dtype; the score head stays float32.

    Args:
        checkpoint: as the trainer wrote it.
        folder: written under a temporary name and renamed.
        dtype: of the stored backbone.
    """
    import torch
    from safetensors.torch import load_file, save_file

    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    adapter = (checkpoint / ADAPTER).exists()
    kept = [p for p in checkpoint.iterdir() if p.suffix in (".json", ".jinja", ".model", ".txt", ".safetensors")]
    for path in kept:
        if path.name in ("trainer_state.json", "checkpoint.json"):
            continue
        if path.suffix != ".safetensors" or adapter or dtype == "float32":
            shutil.copy(path, staging)
            continue
        tensors = load_file(path)
        kept_as_is = [n for n, t in tensors.items() if n.startswith(f"{HEAD}.") or not t.is_floating_point()]
        stored = {n: t if n in kept_as_is else t.to(getattr(torch, dtype)) for n, t in tensors.items()}
        save_file(stored, staging / path.name, metadata={"format": "pt"})
    if not adapter:
        config = read_json(staging / "config.json")
        write_json(staging / "config.json", {**config, "dtype": dtype})
    check_weights(staging)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def check_weights(folder: Path) -> None:
    """Read every tensor of a saved model back: the head there and all finite, none empty.

    Raises:
        CheckpointError: names the tensor or file.
    """
    names = []
    for file, name, tensor in read_tensors(folder):
        names.append(name)
        if tensor.numel() == 0 or (tensor.is_floating_point() and not tensor.isfinite().all()):
            raise CheckpointError(f"{file}: {name} is empty or not finite", "use another checkpoint")
    if not any(name == f"{HEAD}.weight" or name.endswith(f".{HEAD}.weight") for name in names):
        raise CheckpointError(f"{folder}: no score head ({HEAD}.weight) in its safetensors files", NO_HEAD)
    if (folder / ADAPTER).exists() and not any("lora_B" in name for name in names):
        raise CheckpointError(f"{folder}: the adapter file holds no LoRA weights", "use another checkpoint")


def load_checkpoint(
    where: str,
    *,
    revision: str | None = None,
    options: BackboneOptions | None = None,
    device: Any = None,
    prompt: str | None = None,
    label: str | None = None,
    through: Callable[[Any], Any] | None = None,
) -> Checkpoint:
    """Load a reward model for scoring: an adapter folder, a model folder, or a hub id.

    Args:
        where: folder or hub id.
        revision: of the hub id.
        options: how to run it; None is as it was trained, or in the dtype of its config.
        device: where to put it; None leaves it on the CPU.
        prompt: of other people's models, see `make_renderer`.
        label: of other people's models with several, the one that is the reward.
        through: applied to an adapter's base before the adapter is put on it.

    Raises:
        CheckpointError: it is no reward model, is damaged, or renders differently from its contract.
        InputError: a prompt or a label that is not there, or of a model that brings its own.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = download(where, revision)
    sidecar = read_json(folder / SIDECAR) if (folder / SIDECAR).exists() else {}
    if not sidecar and not (folder / ADAPTER).exists():
        return _load_published(find_published(where, folder, prompt, label), options, device)
    if label is not None or (sidecar and prompt is not None):
        named = "--prompt" if label is None else "--label"
        raise InputError(f"{where}: {named} is for models that were not trained here", "leave it out")
    trained: dict[str, Any] = sidecar.get("recipe", {})
    renderer = make_renderer(str(folder), prompt)
    if sidecar:
        if not isinstance(sidecar.get("contract"), dict):
            raise CheckpointError(f"{folder / SIDECAR}: no rendering contract in it", "use another checkpoint")
        renderer.check_contract(sidecar["contract"], where)
    adapter = read_json(folder / ADAPTER) if (folder / ADAPTER).exists() else None
    if options is None:
        options = options_in_training(folder, adapter, trained.get("model", {}))
    if adapter is not None:
        model = _load_adapter(folder, adapter, options, renderer.pad_id, through)
    else:
        model = load_backbone(str(folder), None, options, renderer.pad_id, seed=None)
    _place(model, where, options, device)
    length = trained.get("data", {}).get("max_length") or min(_positions(model), 4096)
    return Checkpoint(model, renderer, int(length), sidecar, where, fingerprint_of(folder))


def _load_published(found: Published, options: BackboneOptions | None, device: Any) -> Checkpoint:
    options = options or found.options
    config_pad = found.config.get_text_config().pad_token_id
    renderer: Renderer
    if found.layout is PAIR_RM:
        (model, renderer), length = found.load_pairs(options), MAX_LENGTH
    else:
        renderer = found.renderer()
        model = found.load(options, renderer.pad_id)
        length = min(_positions(model), found.layout.max_length or 4096)
    _place(model, found.where, options, device)
    fingerprint = hashlib.sha256(f"{fingerprint_of(found.folder)} {found.reading}".encode()).hexdigest()
    return Checkpoint(model, renderer, length, {}, found.where, fingerprint, found.reading, config_pad)


def _place(model: RewardModel, where: str, options: BackboneOptions, device: Any) -> None:
    model.module.eval()
    if device is not None and options.quantization == "none":
        model.module.to(device)
    check_finite(model.module, where)


def options_in_training(folder: Path, adapter: dict[str, Any] | None, section: dict[str, Any]) -> BackboneOptions:
    """How a checkpoint ran when it was trained; for other people's, in the dtype of its config, or of its base's."""
    if not section:
        name, revision = str(folder), None
        if adapter is not None and not (folder / "config.json").exists():
            name, revision = adapter.get("base_model_name_or_path") or name, adapter.get("revision")
        dtype = str(load_config(name, revision).dtype).removeprefix("torch.")
        return BackboneOptions(dtype if dtype in ("bfloat16", "float16") else "float32")
    keys = ("dtype", "attention", "packing", *(["quantization"] if adapter is not None else []))  # merged, it is whole
    return BackboneOptions(**{key: section[key] for key in keys if key in section})


def _load_adapter(
    folder: Path,
    config: dict[str, Any],
    options: BackboneOptions,
    pad_id: int,
    through: Callable[[Any], Any] | None,
) -> RewardModel:
    check_weights(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{folder / ADAPTER} names no base model")
    model = load_backbone(base, config.get("revision"), options, pad_id, seed=0)  # the adapter brings its own head
    module = through(model.module) if through is not None else model.module
    return RewardModel(attach_adapter(module, folder, base), model.packing, model.notes, model.commit)


def attach_adapter(module: Any, folder: Path, base: str) -> Any:
    """The PEFT model of a base and the adapter that lies in a folder.

    Raises:
        CheckpointError: names what does not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            module = PeftModel.from_pretrained(module, folder)
    except (RuntimeError, ValueError, TypeError) as error:  # misshapen, misnamed, misconfigured
        raise CheckpointError(f"{folder}: the adapter does not fit its base {base}: {error}", _OTHER) from error
    expected = set(get_peft_model_state_dict(module, save_embedding_layers=False))
    found = {name for _, name, _ in read_tensors(folder)}
    if missing := sorted(expected - found):
        raise CheckpointError(f"{folder}: the adapter's file lacks {', '.join(missing[:5])}", _OTHER)
    if surplus := sorted(name for name in found - expected if "lora_" in name):
        raise CheckpointError(f"{folder}: its base {base} has no place for {', '.join(surplus[:5])}", _OTHER)
    prepare_adapters(module)
    return module


def check_finite(module: Any, where: str) -> None:
    """Refuse weights that are not finite, by name."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise CheckpointError(f"{where}: {name} is not finite", "the weights are damaged; use another checkpoint")


def _positions(model: RewardModel) -> int:
    return int(getattr(model.module.config.get_text_config(), "max_position_embeddings", 4096) or 4096)
