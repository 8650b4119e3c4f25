"""The plan of a run: which groups each process trains on in each micro-batch, from their lengths alone."""

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmtrain.model.batch import GroupSize, Packing, batch_tokens


class TrainingPlan(NamedTuple):
    """Steps of `accumulation * processes` micro-batches each.

    Micro-batch m of process r in a step is `steps[step][m * processes + r]`. Only the last step of an epoch can have
    fewer groups than the global batch size; where it has fewer groups than micro-batches, some are empty.
    """

    steps: list[list[list[int]]]
    accumulation: int
    processes: int
    steps_per_epoch: int

    def share(self, process: int) -> list[list[int]]:
        """The micro-batches of one process, in order, over the whole run."""
        return [step[m * self.processes + process] for step in self.steps for m in range(self.accumulation)]


def plan_training(
    sizes: Sequence[GroupSize],
    *,
    epochs: float,
    max_steps: int | None,
    global_batch_size: int,
    processes: int,
    seed: int,
    packing: Packing,
    max_tokens: int | None,
    max_groups: int | None,
    one_pass: Sequence[int] | None = None,
) -> TrainingPlan:
    """Shuffle each epoch, cut it into global batches, and each of them into equal micro-batches.

    The number of micro-batches is the least that keeps all of them within `max_tokens` and `max_groups`, and the same
    in every step, so that accumulation is a constant to the trainer and to DeepSpeed. A group that alone exceeds
    `max_tokens` makes a micro-batch of its own. What is in a global batch depends neither on limits nor on `processes`.

    Args:
        epochs: passes, may be a fraction.
        global_batch_size: groups a step.
        max_tokens: through the backbone at once, on a process.
        one_pass: the groups of an epoch, by number; some may be repeated. None: each once.
    """
    groups = range(len(sizes)) if one_pass is None else one_pass
    steps_per_epoch = math.ceil(len(groups) / global_batch_size)
    total = whole_steps(epochs * steps_per_epoch)
    total = min(total, max_steps) if max_steps is not None else total
    batches: list[list[int]] = []
    for epoch in range(math.ceil(total / steps_per_epoch)):
        order = [groups[i] for i in np.random.default_rng([seed, epoch]).permutation(len(groups)).tolist()]
        batches += [order[start : start + global_batch_size] for start in range(0, len(order), global_batch_size)]
    batches = batches[:total]

    largest = min(global_batch_size, len(groups))
    least = [1]  # micro-batches of a process, by each limit alone
    if max_groups:
        least.append(math.ceil(largest / (processes * max_groups)))
    if max_tokens:
        unpadded: Packing = "shared_prompt" if packing == "shared_prompt" else "padding_free"
        tokens = max(batch_tokens([sizes[i] for i in batch], unpadded) for batch in batches)
        least.append(min(math.ceil(tokens / (processes * max_tokens)), math.ceil(largest / processes)))
    accumulation = max(least)
    while True:
        bins = accumulation * processes
        steps = [_deal(_split(batch, sizes, bins, packing, max_groups), processes) for batch in batches]
        if max_tokens is None or bins >= largest or _within(steps, sizes, packing, max_tokens):
            return TrainingPlan(steps, accumulation, processes, steps_per_epoch)
        accumulation += 1


def whole_steps(steps: float) -> int:
    """A fractional number of steps rounded up, 0 only for 0; 1.1 * 10 is 11, as it is meant, not 12."""
    return max(1, math.ceil(round(steps, 6))) if steps > 0 else 0


def interval_steps(every: float, total: int) -> int:
    """Steps between events: `every` itself from 1 up, that share of the run below 1, and 0 for never."""
    return whole_steps(every * total) if every < 1 else int(every)


def _deal(parts: list[list[int]], processes: int) -> list[list[int]]:
    """Micro-batches, heaviest first, in alternating order, so that no process always gets the heavier one."""
    rows = [parts[start : start + processes] for start in range(0, len(parts), processes)]
    return [part for place, row in enumerate(rows) for part in (row if place % 2 == 0 else reversed(row))]


def _within(steps: list[list[list[int]]], sizes: Sequence[GroupSize], packing: Packing, max_tokens: int) -> bool:
    return all(
        len(members) <= 1 or batch_tokens([sizes[i] for i in members], packing) <= max_tokens
        for step in steps
        for members in step
    )


def _split(
    batch: list[int], sizes: Sequence[GroupSize], bins: int, packing: Packing, max_groups: int | None
) -> list[list[int]]:
    """Cut a global batch into `bins` micro-batches of nearly equal work, heaviest first."""

    def tokens(index: int) -> int:
        return batch_tokens([sizes[index]], packing)

    if packing == "none":  # neighbours in length share a micro-batch, so that little is padded
        order = sorted(batch, key=lambda i: (-max(sizes[i].suffixes) - sizes[i].prefix, i))
        return [part.tolist() for part in np.array_split(np.asarray(order, dtype=int), bins)]
    # longest processing time first: the next heaviest group goes to the lightest micro-batch
    limit = max_groups or len(batch)
    loads = [(0, place) for place in range(bins)]
    members: list[list[int]] = [[] for _ in range(bins)]
    for index in sorted(batch, key=lambda i: (-tokens(i), i)):
        load, place = heapq.heappop(loads)
        members[place].append(index)
        if len(members[place]) < limit:
            heapq.heappush(loads, (load + tokens(index), place))
    return sorted(members, key=lambda part: -sum(map(tokens, part)))
