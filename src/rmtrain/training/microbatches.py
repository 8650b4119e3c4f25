"""The planned micro-batches of one process, packed when they are asked for."""

import os
import signal
import threading

import torch
from torch.utils.data import DataLoader, Dataset

from rmtrain.data.token_cache import TokenizedSplit
from rmtrain.model.batch import Batch, GroupSize, Packing, pack
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
        """A packed batch with its preferences, their weights, and the ids of its groups."""
        step = self.plan.steps[index // self.plan.accumulation]
        # each group weighs 1 / groups of the global batch; the trainer divides by micro-batches and processes again
        scale = self.plan.accumulation * self.plan.processes / sum(map(len, step))
        members = self.share[index]
        if not members:  # fewer groups than micro-batches: run any group, with no weight
            members, scale = next(part for part in step if part)[:1], 0.0
        groups = [self.split.group(i) for i in members]
        batch = pack(groups, self.packing, self.pad_id)
        better, worse, weights, gaps, first = [], [], [], [], 0
        for group in groups:
            places = group.spread(range(first, first + len(group.suffixes)))
            for preference in group.preferences:
                better.append(places[preference.better])
                worse.append(places[preference.worse])
                weights.append(scale / len(group.preferences))
                gaps.append(preference.gap or 0.0)
            first += len(group.suffixes)
        counts = {
            "tokens": batch["input_ids"].numel(),
            "distinct_tokens": sum(GroupSize.of(group).distinct_tokens for group in groups),
            "pairs": len(better),
            "groups": len(groups),
        }
        return {
            **batch,
            "better": torch.tensor(better),
            "worse": torch.tensor(worse),
            "weights": torch.tensor(weights, dtype=torch.float32),
            "gaps": torch.tensor(gaps, dtype=torch.float32),
            "ids": [group.id for group in groups for _ in group.preferences],
            "counts": counts if scale else dict.fromkeys(counts, 0),
        }


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
