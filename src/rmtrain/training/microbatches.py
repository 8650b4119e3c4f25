"""The planned micro-batches of one process, packed when they are read, or by a thread ahead of that."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

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

    With `text` they also name the tokens of every completion that is better than another, for the text loss.
    """

    def __init__(
        self, split: TokenizedSplit, plan: TrainingPlan, process: int, packing: Packing, pad_id: int, text: bool = False
    ) -> None:
        self.split, self.plan, self.packing, self.pad_id, self.text = split, plan, packing, pad_id, text
        self.share, self.mean_weight = plan.share(process), _mean_weight(split, plan)

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Microbatch:
        """A packed batch with its completions, its preferences, their weights, and the ids of its groups."""
        step = self.plan.steps[index // self.plan.accumulation]
        # each group weighs 1 / groups of the global batch; the trainer divides by micro-batches and processes again
        scale = self.plan.accumulation * self.plan.processes / sum(map(len, step))
        members = self.share[index]
        if not members:  # fewer groups than micro-batches: run any group, with no weight
            members, scale = next(part for part in step if part)[:1], 0.0
        groups = [self.split.group(i) for i in members]
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
            "preferences": _preferences(groups, scale, self.mean_weight),
            "completions": _completions(groups, scale),
            "ids": [group.id for group in groups],
            "counts": counts if scale else dict.fromkeys(counts, 0),
        }


def _mark_better(group: TokenizedGroup) -> TokenizedGroup:
    """The group with the tokens after its prefix as responses, of completions that are better than another alone."""
    first, places = max(1, len(group.prefix)), group.spread(range(len(group.suffixes)))
    better = {places[preference.better] for preference in group.preferences}
    ends = [len(group.prefix) + len(suffix) for suffix in group.suffixes]
    return group._replace(starts=tuple(first if place in better else end for place, end in enumerate(ends)))


def _mean_weight(split: TokenizedSplit, plan: TrainingPlan) -> float:
    """Mean, over all groups that a run trains on (repeats included), of the mean weight of a group's preferences."""
    if "weights" not in split.table.column_names:
        return 1.0
    lists = split.column("weights")  # null for groups of an entry without weights
    counts, values = lists.value_lengths().fill_null(0).to_numpy(), lists.flatten().to_numpy()
    if counts.all() and values.min() == values.max():
        return float(values[0])  # so that equal weights are as none, to the last bit
    owners = np.repeat(np.arange(len(counts)), counts)
    means = np.where(counts > 0, np.bincount(owners, values, len(counts)) / counts.clip(min=1), 1.0)
    return float(means[[place for step in plan.steps for members in step for place in members]].mean())


def _preferences(groups: Sequence[TokenizedGroup], weight: float, mean_weight: float = 1.0) -> Preferences:
    rows, first = [], 0
    for group in groups:
        places = group.spread(range(first, first + len(group.suffixes)))
        share = weight / len(group.preferences)
        rows += [
            (places[p.better], places[p.worse], share * (p.weight / mean_weight), p.gap or 0.0, p.probability)
            for p in group.preferences
        ]
        first += len(group.suffixes)
    better, worse, *figures = zip(*rows, strict=True)
    return Preferences(torch.tensor(better), torch.tensor(worse), *map(torch.tensor, figures))


def _completions(groups: Sequence[TokenizedGroup], weight: float) -> Completions:
    rows = [
        (number, weight / len(group.suffixes), len(suffix), score)
        for number, group in enumerate(groups)
        for suffix, score in zip(group.suffixes, group.suffix_scores(), strict=True)
    ]
    return Completions(*map(torch.tensor, zip(*rows, strict=True)))


def microbatch_loader(dataset: MicrobatchDataset, pin_memory: bool) -> DataLoader[Microbatch]:
    """Load micro-batches in order; `pin_memory` makes copies to the GPU faster."""
    return DataLoader(dataset, batch_size=1, collate_fn=itemgetter(0), pin_memory=pin_memory)


def packed_ahead(batches: Iterator[Microbatch], count: int) -> Iterator[Microbatch]:
    """The same micro-batches; a thread packs the next `count` while the present one is trained on."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(count))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield batch
