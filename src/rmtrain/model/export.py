"""A checkpoint as one plain sequence-classification folder: adapters merged in float32, nothing of rmtrain needed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rmtrain.data.render import Renderer
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.forward import HEAD
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.saving import check_weights, write_companions
from rmtrain.model.sidecar import Scoring

SHARD = "5GB"  # the largest weights file, as the hub's own library cuts them


def merge(model: RewardModel) -> RewardModel:
    """Add a model's adapters to its weights, in place; it must be float32 and not quantised.

    Raises:
        CheckpointError: the sum is not finite, or the base can't store it.
    """
    if not hasattr(model.module, "merge_and_unload"):
        return model
    try:
        whole = model.module.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        if "merge" not in str(error) and isinstance(error, RuntimeError):  # memory, say
            raise
        raise CheckpointError(
            f"the adapters can't be merged: {error}", "use the adapter as it is, without export"
        ) from error
    return replace(model, module=whole)


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
    module.save_pretrained(folder, max_shard_size=SHARD)
    module.config.dtype = dtype
    write_companions(module.config, renderer, folder, scoring, record)
    check_weights(folder)
