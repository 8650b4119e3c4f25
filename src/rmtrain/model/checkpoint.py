"""Reward models on disk: a plain sequence-classification folder or its LoRA adapter, and `rmtrain.json` beside it."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtrain.data.render import Renderer, first_line, load_tokenizer
from rmtrain.errors import CheckpointError
from rmtrain.files import sha256_file, write_json
from rmtrain.model.adapters import prepare_adapters
from rmtrain.model.forward import HEAD
from rmtrain.model.reward_model import NO_HEAD, BackboneOptions, RewardModel, load_backbone, load_config

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
        fingerprint: digest of its weights' files.
    """

    model: RewardModel
    renderer: Renderer
    max_length: int
    sidecar: dict[str, Any]
    where: str
    fingerprint: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it is run."""
        return self.model.notes


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
    for file, name, tensor in _tensors(folder):
        names.append(name)
        if tensor.numel() == 0 or (tensor.is_floating_point() and not tensor.isfinite().all()):
            raise CheckpointError(f"{file}: {name} is empty or not finite", "use another checkpoint")
    if not any(name == f"{HEAD}.weight" or name.endswith(f".{HEAD}.weight") for name in names):
        raise CheckpointError(f"{folder}: no score head ({HEAD}.weight) in its safetensors files", NO_HEAD)
    if (folder / ADAPTER).exists() and not any("lora_B" in name for name in names):
        raise CheckpointError(f"{folder}: the adapter file holds no LoRA weights", "use another checkpoint")


def _tensors(folder: Path) -> Iterator[tuple[Path, str, Any]]:
    """File, name and tensor of everything in a folder's safetensors files."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    yield file, name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: {first_line(error)}", "the file is damaged; use another checkpoint"
            ) from error


def load_checkpoint(
    where: str,
    *,
    revision: str | None = None,
    options: BackboneOptions | None = None,
    device: Any = None,
) -> Checkpoint:
    """Load a reward model for scoring: an adapter folder, a model folder, or a hub id.

    Args:
        where: folder or hub id.
        revision: of the hub id.
        options: how to run it; None is as it was trained, or in the dtype of its config.
        device: where to put it; None leaves it on the CPU.

    Raises:
        CheckpointError: it is no reward model, is damaged, or renders differently from its contract.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = download(where, revision)
    sidecar = read_json(folder / SIDECAR) if (folder / SIDECAR).exists() else {}
    trained: dict[str, Any] = sidecar.get("recipe", {})
    renderer = Renderer.for_tokenizer(load_tokenizer(str(folder)))
    if sidecar:
        if not isinstance(sidecar.get("contract"), dict):
            raise CheckpointError(f"{folder / SIDECAR}: no rendering contract in it", "use another checkpoint")
        renderer.check_contract(sidecar["contract"], where)
    adapter = read_json(folder / ADAPTER) if (folder / ADAPTER).exists() else None
    if options is None:
        options = options_in_training(folder, adapter, trained.get("model", {}))
    if adapter is not None:
        model = _load_adapter(folder, adapter, options, renderer.pad_id)
    else:
        model = load_backbone(str(folder), None, options, renderer.pad_id, seed=None)
    model.module.eval()
    if device is not None and options.quantization == "none":
        model.module.to(device)
    check_finite(model.module, where)
    length = trained.get("data", {}).get("max_length") or min(_positions(model), 4096)
    return Checkpoint(model, renderer, int(length), sidecar, where, fingerprint_of(folder))


def fingerprint_of(folder: Path) -> str:
    """Digest of the weights and of what decides how they are used; of files of 1 GiB and more by size and time."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        state = path.stat()
        content = sha256_file(path) if state.st_size < 2**30 else f"{state.st_size} {state.st_mtime_ns}"
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


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


def _load_adapter(folder: Path, config: dict[str, Any], options: BackboneOptions, pad_id: int) -> RewardModel:
    check_weights(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{folder / ADAPTER} names no base model")
    model = load_backbone(base, config.get("revision"), options, pad_id, seed=0)  # the adapter brings its own head
    return RewardModel(attach_adapter(model.module, folder, base), model.packing, model.notes, model.commit)


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
    found = {name for _, name, _ in _tensors(folder)}
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint; raises CheckpointError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {first_line(error)}", "use another checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object", "use another checkpoint")
    return value


def download(where: str, revision: str | None) -> Path:
    """Fetch a hub repository's weights, config and tokenizer; never pickles."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
    others = ["*/*", "consolidated*"]  # the same weights in other formats
    try:
        return Path(snapshot_download(where, revision=revision, allow_patterns=wanted, ignore_patterns=others))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{where}: neither a folder nor a hub id that can be fetched: {first_line(error)}",
            "give a run folder, a checkpoint folder or a hub id",
        ) from error
