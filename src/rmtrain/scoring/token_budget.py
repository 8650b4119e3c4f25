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


class TokenLimit:
    """Maximum tokens per forward pass: as many as the user asked for, or fewer if memory is short.

    `note` is the line for the user if memory is short, and empty otherwise. Later limits of the same module begin with
    what was learnt from earlier ones.
    """

    def __init__(self, model: RewardModel, asked: int) -> None:
        self._module, self.tokens, self.note = model.module, asked, ""
        if model.sharded:  # all processes must run the same passes, so each must use the same limit
            return
        if self._module not in _budgets and (width := bytes_per_token(self._module)) is not None:
            _budgets[self._module] = max(_LEAST, int(_SHARE * free_memory(model.device) / width))
        self.tokens = min(asked, _budgets.get(self._module, asked))
        if self.tokens < asked:
            self._report(f"the free memory has space for about {self.tokens:,} tokens per forward pass, not {asked:,}")

    def lower(self, tokens: int) -> None:
        """Lower the limit after so many tokens did not fit."""
        self.tokens = _budgets[self._module] = max(1, tokens // 2)
        self._report(f"out of memory at {tokens:,} tokens per forward pass: continuing with at most {self.tokens:,}")

    def _report(self, line: str) -> None:
        self.note = self.note or f"{line}; lower tokens_per_batch to avoid this"


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
