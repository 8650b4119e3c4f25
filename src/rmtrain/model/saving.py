"""Reward models written in the hub's layout, adapters merged or not, and read back before anything relies on them."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rmtrain.data.render import Renderer
from rmtrain.errors import CheckpointError, InputError
from rmtrain.files import staged_folder, write_json
from rmtrain.model.adapters import portable_name
from rmtrain.model.digests import seal
from rmtrain.model.forward import HEAD
from rmtrain.model.portable import make_portable
from rmtrain.model.reward_model import NO_HEAD, RewardModel
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

    A fully fine-tuned backbone, trained in float32, is stored in the recipe's dtype; the score head stays float32. An
    adapter's tensors get names by which transformers alone finds them. The folder is written under a temporary name and
    renamed.

    Raises:
        RunFailedError: it can't be written, on a full disk say; nothing of it is left.
        CheckpointError: what was written is damaged.
    """
    with staged_folder(folder, left="the checkpoints are complete: continue with --resume", replace=True) as staging:
        _copy_model(checkpoint, staging, dtype)
        check_weights(staging)
        seal(staging)


def _copy_model(checkpoint: Path, staging: Path, dtype: str) -> None:
    adapter = (checkpoint / ADAPTER).exists()
    left_out = ("trainer_state.json", MANIFEST, *(["config.json"] if adapter else []))  # older versions wrote it
    for path in checkpoint.iterdir():
        if path.name in left_out or path.suffix not in (".json", ".jinja", ".model", ".txt", ".safetensors"):
            continue
        if path.suffix != ".safetensors" or (dtype == "float32" and not adapter):
            shutil.copy(path, staging)
            continue
        stored = load_file(path)
        if adapter:
            save_file({portable_name(n): t for n, t in stored.items()}, staging / path.name, metadata={"format": "pt"})
            continue
        for name, tensor in stored.items():
            if tensor.is_floating_point() and not name.startswith(f"{HEAD}."):
                stored[name] = tensor.to(getattr(torch, dtype))
        save_file(stored, staging / path.name, metadata={"format": "pt"})
    if not adapter:
        config = read_object(staging / "config.json")
        write_json(staging / "config.json", {**config, "dtype": dtype})


def merge(model: RewardModel) -> RewardModel:
    """Add a model's adapters to its weights, in place; it must be float32 and not quantised.

    Raises:
        CheckpointError: the sum is not finite, or the base can't store it.
    """
    if not hasattr(model.module, "merge_and_unload"):
        return model
    try:
        return replace(model, module=model.module.merge_and_unload(safe_merge=True))
    except (ValueError, RuntimeError) as error:
        if "merge" not in str(error) and isinstance(error, RuntimeError):  # memory, say
            raise
        raise CheckpointError(
            f"the adapters can't be merged: {error}", "use the adapter as it is, without export"
        ) from error


def stored_bytes(module: Any, dtype: str) -> int:
    """Bytes that a model's weight files take in a dtype."""
    size = getattr(torch, dtype).itemsize
    return sum(p.numel() * (4 if name.startswith(f"{HEAD}.") else size) for name, p in module.named_parameters())


def write_model(module: Any, renderer: Renderer, scoring: Scoring, record: Mapping[str, object], folder: Path) -> None:
    """Write a whole model into a folder, with config, tokenizer and contract; the module is left in the stored dtype.

    Args:
        module: whole, not quantised.
        scoring: how it is scored; the backbone is stored in its dtype, and the score head stays float32.
        folder: exists, and is empty.

    Raises:
        InputError: a score head with a bias, for which the plain class has no place.
        CheckpointError: what was written is not finite, as where a weight is too large for float16.
    """
    if getattr(module, HEAD).bias is not None:
        raise InputError("the score head has a bias, which transformers' class leaves out", "it can't be exported")
    dtype = getattr(torch, str(scoring.dtype))
    for name, parameter in module.named_parameters():
        if not name.startswith(f"{HEAD}."):
            parameter.data = parameter.data.to(dtype)
    module.save_pretrained(folder, max_shard_size="5GB")  # as the hub's own library cuts them
    module.config.dtype = dtype
    write_companions(module.config, renderer, folder, scoring, record)
    check_weights(folder)


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


def _require_all(folder: Path, saved: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if wrong := [name for name, shape in expected.items() if saved.get(name, shape) != shape]:
        raise CheckpointError(f"{folder}: {wrong[0]} is {saved[wrong[0]]} there, and {expected[wrong[0]]} in training")
    missing, surplus = sorted(expected.keys() - saved.keys()), saved.keys() - expected.keys()
    # transformers stores some architectures cut or joined otherwise, under other names: as many numbers in all
    lost = sum(math.prod(expected[name]) for name in missing)
    if missing and lost != sum(math.prod(saved[name]) for name in surplus):
        raise CheckpointError(f"{folder}: {', '.join(missing[:5])} is missing in its safetensors files")
