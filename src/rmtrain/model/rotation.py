"""Rotary position embeddings whose frequencies follow the longest row of a batch (dynamic NTK, LongRoPE)."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from rmtrain.errors import InputError


def fixed_rotation(config: PretrainedConfig) -> int | None:
    """Tokens of a row up to which its rotary frequencies are its own, whatever lies beside it; None is any number."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, Mapping)]
    limits: list[Any] = []
    for entry in by_layer or [parameters]:
        kind = str(entry.get("rope_type"))
        if "dynamic" in kind:
            limits.append(text.max_position_embeddings)
        elif kind == "longrope":
            limits.append(entry.get("original_max_position_embeddings") or text.max_position_embeddings)
    return int(min(limits)) if limits else None


def require_fixed_rotation(config: PretrainedConfig, longest: int) -> None:
    """Refuse rows longer than `fixed_rotation`: transformers would turn all rows of their batch by other frequencies.

    Raises:
        InputError: says up to which length rows can be scored.
    """
    limit = fixed_rotation(config)
    if limit is not None and longest > limit:
        raise InputError(
            f"a row has {longest} tokens, and beyond {limit} the rotary frequencies of this model follow the longest "
            "row of a batch: rewards would depend on what is scored together",
            f"set data.max_length to at most {limit}",
        )
