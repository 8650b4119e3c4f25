"""The planned micro-batches of one process, packed when they are read, or by a thread ahead of that."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from rmtrain.data.token_cache import TokenizedSplit
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.model.batch import Batch, GroupSize, Packing, pack, target_places
from rmtrain.training.objectives import Completions, Preferences
from rmtrain.training.plan import TrainingPlan


class Microbatch(Batch):
    """A packed batch and what the loss reads of it."""

    preferences: Preferences
    completions: Completions
    ids: list[str]  # the ids of its groups
    counts: dict[str, int]  # numbers of its tokens, pairs and groups; 0 where it only fills a place


class MicrobatchDataset(Dataset[Microbatch]):
    """One process's micro-batches over the whole run, in order, each packed when it is read.

    Args:
        text: also name the tokens of every completion that is better than another, for the text loss.
        by_preference: a group weighs as much as it has preferences; else all groups weigh the same.
    """

    def __init__(
        self,
        split: TokenizedSplit,
        plan: TrainingPlan,
        process: int,
        packing: Packing,
        pad_id: int,
        text: bool = False,
        by_preference: bool = False,
    ) -> None:
        self.split, self.plan, self.packing, self.pad_id, self.text = split, plan, packing, pad_id, text
        self.share = plan.share(process)
        counts = split.column("preferences").value_lengths().to_numpy() if by_preference else np.ones(len(split), int)
        self._weights: list[int] = counts.tolist()  # of groups, not yet divided by those of their step
        self.mean_weight = _mean_weight(split, plan, counts)

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Microbatch:
        """A packed batch with its completions, its preferences, their weights, and the ids of its groups."""
        step = self.plan.steps[index // self.plan.accumulation]
        # the weights of a global batch sum to 1; the trainer divides by micro-batches and processes again
        scale = self.plan.accumulation * self.plan.processes / sum(self._weights[i] for part in step for i in part)
        members = self.share[index]
        if not members:  # fewer groups than micro-batches: run any group, with no weight
            members, scale = next(part for part in step if part)[:1], 0.0
        groups, weights = [self.split.group(i) for i in members], [scale * self._weights[i] for i in members]
        counts = {
            "distinct_tokens": sum(GroupSize.of(group).distinct_tokens for group in groups),
            "pairs": sum(len(group.preferences) for group in groups),
            "groups": len(groups),
        }
        batch = pack(groups, self.packing, self.pad_id)
        counts["tokens"] = batch["input_ids"].numel()
        if self.text:
            batch = {**batch, **target_places([*map(_mark_better, groups)], batch, self.packing)}
        return {
            **batch,
            "preferences": _preferences(groups, weights, self.mean_weight),
            "completions": _completions(groups, weights),
            "ids": [group.id for group in groups],
            "counts": counts if scale else dict.fromkeys(counts, 0),
        }


def _mark_better(group: TokenizedGroup) -> TokenizedGroup:
    """The group with marked responses: the tokens after its prefix, of each completion that is better than another."""
    first, places = max(1, len(group.prefix)), group.spread(range(len(group.suffixes)))
    better = {places[preference.better] for preference in group.preferences}
    ends = [len(group.prefix) + len(suffix) for suffix in group.suffixes]
    return group._replace(starts=tuple(first if place in better else end for place, end in enumerate(ends)))


def _mean_weight(split: TokenizedSplit, plan: TrainingPlan, of_groups: NDArray[np.int64]) -> float:
    """Mean, over all groups that a run trains on (repeats included), of the mean weight of a group's preferences.

    Args:
        of_groups: the groups' own weights in that mean.
    """
    if "weights" not in split.table.column_names:
        return 1.0
    lists = split.column("weights")  # null for groups of an entry without weights
    counts, values = lists.value_lengths().fill_null(0).to_numpy(), lists.flatten().to_numpy()
    if counts.all() and values.min() == values.max():
        return float(values[0])  # so that equal weights are as none, to the last bit
    owners = np.repeat(np.arange(len(counts)), counts)
    means = np.where(counts > 0, np.bincount(owners, values, len(counts)) / counts.clip(min=1), 1.0)
    trained = [place for step in plan.steps for members in step for place in members]
    return float(np.average(means[trained], weights=of_groups[trained]))


def _preferences(groups: Sequence[TokenizedGroup], weights: Sequence[float], mean_weight: float) -> Preferences:
    rows, first = [], 0
    for group, weight in zip(groups, weights, strict=True):
        places = group.spread(range(first, first + len(group.suffixes)))
        share = weight / len(group.preferences)
        rows += [
            (places[p.better], places[p.worse], share * (p.weight / mean_weight), p.gap or 0.0, p.probability)
            for p in group.preferences
        ]
        first += len(group.suffixes)
    better, worse, *figures = zip(*rows, strict=True)
    return Preferences(torch.tensor(better), torch.tensor(worse), *map(torch.tensor, figures))


def _completions(groups: Sequence[TokenizedGroup], weights: Sequence[float]) -> Completions:
    rows = [
        (number, weight / len(group.suffixes), len(suffix), score)
        for number, (group, weight) in enumerate(zip(groups, weights, strict=True))
        for suffix, score in zip(group.suffixes, group.suffix_scores(), strict=True)
    ]
    return Completions(*map(torch.tensor, zip(*rows, strict=True)))


def packed_ahead(batches: Iterator[Microbatch], count: int) -> Iterator[Microbatch]:
    """The same micro-batches; a thread packs the next `count` while the present one is trained on."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(count))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield batch
