"""The planned micro-batches of one process, packed when they are asked for."""

import os
import signal
import threading
from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from rmtrain.data.token_cache import TokenizedSplit
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.model.batch import Batch, GroupSize, Packing, pack
from rmtrain.training.objectives import Completions, Preferences
from rmtrain.training.plan import TrainingPlan

_LOOK_SECONDS = 1.0  # between looks at whether the process that a worker works for is still there


class MicrobatchDataset(Dataset[Batch]):
    """One process's micro-batches over the whole run, in order, each packed when it is asked for."""

    def __init__(self, split: TokenizedSplit, plan: TrainingPlan, process: int, packing: Packing, pad_id: int) -> None:
        self.split, self.plan, self.packing, self.pad_id = split, plan, packing, pad_id
        self.share = plan.share(process)

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Batch:
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
        return {
            **batch,
            "preferences": _preferences(groups, scale),
            "completions": _completions(groups, scale),
            "ids": [group.id for group in groups],
            "counts": counts if scale else dict.fromkeys(counts, 0),
        }


def _preferences(groups: Sequence[TokenizedGroup], weight: float) -> Preferences:
    rows, first = [], 0
    for group in groups:
        places = group.spread(range(first, first + len(group.suffixes)))
        share = weight / len(group.preferences)
        rows += [(places[p.better], places[p.worse], share, p.gap or 0.0, 1.0) for p in group.preferences]
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


def microbatch_loader(dataset: MicrobatchDataset, workers: int, pin_memory: bool) -> DataLoader[Batch]:
    """Load micro-batches in order.

    Args:
        dataset: of this process.
        workers: processes that pack ahead; 0 packs in this one.
        pin_memory: for faster copies to the GPU.
    """
    return DataLoader(
        dataset,
        batch_size=1,
        collate_fn=_only,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_outlive_signals,
    )


def _only(batches: list[Batch]) -> Batch:
    return batches[0]


def _outlive_signals(worker: int) -> None:
    """A signal to the whole process group must not end a worker: the step would fail that the stop waits for.

    SIGTERM of the process that it works for does, since an interpreter that exits sends it and then waits.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the thread, which hears who sent it
    signal.signal(signal.SIGUSR2, signal.default_int_handler)  # torch's worker ends on a KeyboardInterrupt
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    main = threading.main_thread().ident
    assert main is not None
    while os.getppid() == parent:
        heard = signal.sigtimedwait({signal.SIGTERM}, _LOOK_SECONDS)
        if heard is not None and heard.si_pid == parent:
            signal.pthread_kill(main, signal.SIGUSR2)
    signal.raise_signal(signal.SIGKILL)  # it is gone, and nobody reads what this one may still hold
