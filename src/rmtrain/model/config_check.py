"""What a model's config must keep to before weights are loaded: bounds on its numbers, and a trial without weights."""

import re
from typing import Any

import torch
from transformers import PretrainedConfig

from rmtrain.errors import CheckpointError, InputError, first_line

_HINT = "its config.json is damaged: use another copy of the model"
# the largest number that an entry may have, by its name; a model beyond these would never be made, or fill the memory
_LIMITS = [
    (re.compile(r"(size|dim|heads|embd|inner|d_model|d_ff)$"), 1 << 24),
    (re.compile(r"experts$|rank$|^r$"), 1 << 14),
    (re.compile(r"layers?$|depths?$"), 1000),
    (re.compile(""), (1 << 63) - 1),
]


def require_bounded(values: Any, name: str, key: str = "") -> None:
    """Refuse a config with a number that no model has, wherever it is nested.

    Raises:
        CheckpointError: names the entry.
    """
    if isinstance(values, (dict, list, tuple)):
        for inner, value in values.items() if isinstance(values, dict) else ((key, value) for value in values):
            require_bounded(value, name, str(inner))
    elif isinstance(values, int):
        limit = next(limit for pattern, limit in _LIMITS if pattern.search(key))
        if abs(values) > limit:
            raise CheckpointError(f"{name}: {key} is a number beyond {limit:,} in its config", _HINT)


def model_without_weights(model_class: type[Any], config: PretrainedConfig) -> Any:
    """The model of a config on the meta device.

    Raises:
        CheckpointError: no model can be made of the config.
    """
    try:
        with torch.device("meta"):
            return model_class(config)
    except InputError:
        raise
    except Exception as error:  # values that are negative, of another type or unknown each fail in their own way
        why = f"{type(error).__name__}: {first_line(error)}"
        name = config.name_or_path or config.model_type
        raise CheckpointError(f"{name}: no model can be made of its config ({why})", _HINT) from error
