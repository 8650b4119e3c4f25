"""Reward models written in the hub's layout, and read back before anything relies on them."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtrain.data.render import Renderer
from rmtrain.errors import CheckpointError
from rmtrain.files import staged_folder, write_json
from rmtrain.model.digests import seal
from rmtrain.model.forward import HEAD
from rmtrain.model.portable import make_portable
from rmtrain.model.reward_model import NO_HEAD
from rmtrain.model.sidecar import Scoring
from rmtrain.model.weights import ADAPTER, MANIFEST, SIDECAR, read_object, read_tensors


def write_companions(
    config: Any, renderer: Renderer, folder: Path, scoring: Scoring, record: Mapping[str, object]
) -> None:
    """Write what makes weights loadable by anyone: config, tokenizer, how they are scored, and what they came from.

    An adapter gets no config: beside one, transformers would look for the base's weights here.
    """
    config.get_text_config().pad_token_id = renderer.pad_id  # TRL makes it EOS, and pooling would stop short of the end
    if not (folder / ADAPTER).exists():
        config.save_pretrained(folder)
    baked = renderer.baked()
    baked.save_pretrained(folder)
    make_portable(folder)
    write_json(folder / SIDECAR, {"scoring": scoring.block(baked.contract()), **record})


def save_final(checkpoint: Path, folder: Path, dtype: str) -> None:
    """Copy the model out of a training checkpoint, without the state of optimiser and schedule.

    A fully fine-tuned backbone, trained in float32, is stored in the recipe's dtype; the score head stays float32. The
    folder is written under a temporary name and renamed.

    Raises:
        RunFailedError: it can't be written, on a full disk say; nothing of it is left.
        CheckpointError: what was written is damaged.
    """
    with staged_folder(folder, left="the checkpoints are complete: continue with --resume", replace=True) as staging:
        _copy_model(checkpoint, staging, dtype)
        check_weights(staging)
        seal(staging)


def _copy_model(checkpoint: Path, staging: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    adapter = (checkpoint / ADAPTER).exists()
    kept = [p for p in checkpoint.iterdir() if p.suffix in (".json", ".jinja", ".model", ".txt", ".safetensors")]
    left = ("trainer_state.json", MANIFEST, *(["config.json"] if adapter else []))  # older versions wrote it
    for path in kept:
        if path.name in left:
            continue
        if path.suffix != ".safetensors" or adapter or dtype == "float32":
            shutil.copy(path, staging)
            continue
        tensors = load_file(path)
        kept_as_is = [n for n, t in tensors.items() if n.startswith(f"{HEAD}.") or not t.is_floating_point()]
        stored = {n: t if n in kept_as_is else t.to(getattr(torch, dtype)) for n, t in tensors.items()}
        save_file(stored, staging / path.name, metadata={"format": "pt"})
    if not adapter:
        config = read_object(staging / "config.json")
        write_json(staging / "config.json", {**config, "dtype": dtype})


def saved_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that saving a model writes: of adapters and head, or of a whole model."""
    if not hasattr(module, "peft_config"):
        return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_weights(folder: Path, expected: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Read every tensor of a saved model back: the head is there, all are finite, none is empty, and names and shapes
    are as expected.

    Raises:
        CheckpointError: names the tensor or file.
    """
    names: dict[str, tuple[int, ...]] = {}
    for file, name, tensor in read_tensors(folder):
        names[name] = tuple(tensor.shape)
        if tensor.numel() == 0 or (tensor.is_floating_point() and not tensor.isfinite().all()):
            raise CheckpointError(f"{file}: {name} is empty or not finite", "use another checkpoint")
    if not any(name == f"{HEAD}.weight" or name.endswith(f".{HEAD}.weight") for name in names):
        raise CheckpointError(f"{folder}: no score head ({HEAD}.weight) in its safetensors files", NO_HEAD)
    if (folder / ADAPTER).exists() and not any("lora_B" in name for name in names):
        raise CheckpointError(f"{folder}: the adapter file holds no LoRA weights", "use another checkpoint")
    if expected is not None:
        _require_all(folder, names, expected)


def _require_all(folder: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if wrong := [name for name, shape in expected.items() if found.get(name, shape) != shape]:
        raise CheckpointError(f"{folder}: {wrong[0]} is {found[wrong[0]]} there, and {expected[wrong[0]]} in training")
    missing, surplus = sorted(expected.keys() - found.keys()), found.keys() - expected.keys()
    # transformers stores some architectures cut or joined otherwise, under other names: as many numbers in all
    lost = sum(math.prod(expected[name]) for name in missing)
    if missing and lost != sum(math.prod(found[name]) for name in surplus):
        raise CheckpointError(f"{folder}: {', '.join(missing[:5])} is missing in its safetensors files")
