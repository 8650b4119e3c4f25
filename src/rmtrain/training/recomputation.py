"""What `optim.gradient_checkpointing: auto` stands for: the fastest way to fit a run into the free memory of its GPUs.

Smaller micro-batches come before recomputing, which takes about a third more time: a Mistral-7B on an H200 reached the
same share of the matrix rate with 5,000 tokens at once as with 12,000 (docs/gpu.md).
"""

from collections.abc import Iterator
from typing import NamedTuple

from rmtrain.json_values import JsonObject
from rmtrain.training.memory import GIB, Sharding
from rmtrain.training.memory_plan import FITS, MemoryPlan

_LEAST = {"none": 4096, "full": 1024}  # tokens of a micro-batch, below which the next way is tried


class Choice(NamedTuple):
    """Changes of a recipe by dotted key, and why."""

    changes: JsonObject
    reason: str


def fastest_fit(plan: MemoryPlan) -> Choice:
    """The first way that is predicted to fit, or where none does, the last one.

    Args:
        plan: of the recipe with `optim.gradient_checkpointing: none`.
    """
    if plan.free is None or plan.peak() is None:
        return Choice({}, "the activations of this architecture can't be predicted")
    last = Choice({}, "")
    for changes, changed, peak in _tried(plan):
        takes = f"takes {peak / GIB:.1f} of the {plan.free / GIB:.1f} GiB free on a GPU"
        last = Choice(changes, f"with {changed.load.largest:,} tokens a micro-batch the run {takes}")
        if peak <= FITS * plan.free:
            return last
    return last._replace(reason=f"nothing tried fits: {last.reason}")


def _tried(plan: MemoryPlan) -> Iterator[tuple[JsonObject, MemoryPlan, int]]:
    """Changes, the plan under them and its peak in bytes, the fastest first.

    Where the recipe leaves the strategy open, whole models on every GPU come before sharded ones.
    """
    several = plan.recipe.distributed.strategy == "auto" and plan.processes > 1
    for kind in _LEAST:
        ways = [(changes, plan.under(changes)) for changes in _ways(plan, kind)]
        for whole in (True, False) if several else (False,):
            for changes, changed in ways:
                if changed is None:
                    continue
                peak = changed.estimate(Sharding("ddp")).peak if whole else changed.peak()
                if peak is not None:
                    yield changes, changed, peak


def _ways(plan: MemoryPlan, kind: str) -> Iterator[JsonObject]:
    """Micro-batches of the planned size, then of half that size, and so on.

    Where they get smaller, scoring takes no more tokens at once than they do.
    """
    recipe, load = plan.recipe, plan.load
    changes: JsonObject = {} if kind == "none" else {"optim.gradient_checkpointing": kind}
    yield changes
    tokens = load.largest // 2
    while recipe.optim.tokens_per_microbatch is not None and tokens >= max(_LEAST[kind], load.longest):
        scoring = min(recipe.evaluation.tokens_per_batch, tokens)
        yield {**changes, "optim.tokens_per_microbatch": tokens, "evaluation.tokens_per_batch": scoring}
        tokens //= 2
