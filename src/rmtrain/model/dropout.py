"""Dropout of the base model, which is off in training as in TRL, unless the recipe says otherwise."""

from typing import Any

from torch import nn
from transformers import PretrainedConfig


def disable_dropout(module: nn.Module) -> None:
    """Set every dropout probability of a model to 0: of its dropout layers, and what its layers hold as numbers."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
        for name, value in list(vars(layer).items()):
            if isinstance(value, float) and "drop" in name:
                setattr(layer, name, 0.0)


def has_dropout(config: PretrainedConfig) -> bool:
    """Whether a model of this config drops anything in training."""

    def drops(values: dict[str, Any]) -> bool:
        return any(
            drops(value) if isinstance(value, dict) else "drop" in str(name) and isinstance(value, float) and value > 0
            for name, value in values.items()
        )

    return drops(config.to_dict())
