"""Maximum tokens per forward pass: predicted from the free memory, halved after each out-of-memory error."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from rmtrain.model.devices import free_memory
from rmtrain.model.reward_model import RewardModel

CPU_PASS = 2048  # tokens: larger passes exceed a CPU's caches and are no faster
_SHARE = 0.5  # share of the free memory to use; the rest covers what the prediction omits
_LEAST = 256  # tokens: with fewer, the first pass runs out of memory anyway and reports it
_budgets: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # for each module, the tokens of a pass that fit


def token_budget(model: RewardModel) -> int | None:
    """The tokens of a forward pass that fit into this device's memory; None if the model's config does not state its
    width."""
    if model.module not in _budgets:
        width = bytes_per_token(model.module)
        if width is None:
            return None
        _budgets[model.module] = max(_LEAST, int(_SHARE * free_memory(model.device) / width))
    return _budgets[model.module]


def halve_budget(model: RewardModel, tokens: int) -> int:
    """The lower token budget after so many tokens did not fit."""
    _budgets[model.module] = max(1, tokens // 2)
    return _budgets[model.module]


def bytes_per_token(module: Any) -> int | None:
    """Memory of a forward pass per token, beside the weights and without gradients.

    The peak of a layer: gate, up, their product and its copy in the feed-forward block, and three copies of the
    residual stream in float32 (a norm's input, its output, and the sum).
    """
    config = getattr(module, "config", None)
    text = config.get_text_config() if config is not None else None
    hidden = getattr(text, "hidden_size", None)
    if hidden is None:
        return None
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    return int(4 * getattr(module, "compute_dtype", torch.float32).itemsize * inner + 3 * 4 * hidden)
