"""What a run takes on each device, and in the host's memory, under each strategy."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import gather_object

from rmtrain.data.prepare import ReadySplit
from rmtrain.model.batch import GroupSize, Packing, batch_tokens
from rmtrain.model.devices import free_memory, process_state
from rmtrain.model.footprint import MASTER_BYTES, Census, Trained, activation_bytes, optimizer_bytes
from rmtrain.recipe.schema import Recipe
from rmtrain.training.engines import REDUCE_BUCKET, ZERO3_LIVE
from rmtrain.training.plan import TrainingPlan

GIB = 2**30


class Workload(NamedTuple):
    """Tokens that go through the backbone at once."""

    largest: int  # in the largest micro-batch of the plan
    longest: int  # in the longest group alone, which no limit on tokens can cut
    scoring: int  # when scoring what is not trained on

    @classmethod
    def of(cls, recipe: Recipe, plan: TrainingPlan, splits: Mapping[str, ReadySplit], packing: Packing) -> "Workload":
        """What a plan asks for."""
        lengths = {name: [GroupSize(*size) for size in split.tokens.lengths()] for name, split in splits.items()}
        sizes = lengths["train"]
        members = {tuple(members) for step in plan.steps for members in step if members}
        largest = max(batch_tokens([sizes[i] for i in group], packing) for group in members)
        longest = max(batch_tokens([sizes[i]], packing) for i in {i for group in members for i in group})
        scored = max((batch_tokens(held, packing) for name, held in lengths.items() if name != "train"), default=0)
        return cls(largest, longest, min(recipe.evaluation.tokens_per_batch, scored))


class Layout(NamedTuple):
    """A strategy, with what it keeps in the host's memory."""

    strategy: str  # none, ddp, zero2, zero3 or fsdp
    offload: str = "none"

    def __str__(self) -> str:
        return self.strategy if self.offload == "none" else f"{self.strategy}, {self.offload} on the host"


class Need(NamedTuple):
    """Bytes on each device, and in the host's memory for each process."""

    parameters: int
    gradients: int
    optimizer: int  # without what is paged
    buffers: int  # of the engine
    activations: int | None  # None where the architecture can't be predicted
    peak: int | None
    host: int  # offloaded, or paged out where the device is full

    @property
    def states(self) -> int:
        """All that is there whatever the batch."""
        return self.parameters + self.gradients + self.optimizer + self.buffers


def need(census: Census, recipe: Recipe, work: Workload, layout: Layout, processes: int) -> Need:
    """What a run takes under a layout.

    DDP holds everything, and the gradients twice (its buckets). ZeRO-2 cuts gradients and optimiser state into one part
    a process, with a float32 copy of what is trained; ZeRO-3 and FSDP2 cut the parameters too, and gather those of the
    layers at work (arXiv 1910.02054, 2304.11277). FSDP2 cuts each tensor by rows; the first process has most.
    """
    strategy, offload = layout
    stored, trained = census.frozen_bytes + census.trained_bytes, census.trained_bytes
    state, paged = optimizer_bytes(census.trained, recipe.optim.optimizer)
    parameters, gradients, buffers = stored, trained, trained if strategy == "ddp" else 0
    if strategy in ("zero2", "zero3"):
        # DeepSpeed's optimiser sees its part of one flat tensor, and a float32 copy of it
        flat = (Trained(_share(sum(t.numel for t in census.trained), processes), embedding=False),)
        state, paged = optimizer_bytes(flat, recipe.optim.optimizer)
        gradients = _share(trained, processes)
        state += gradients
        buffers = MASTER_BYTES * REDUCE_BUCKET
    elif strategy == "fsdp":
        cut = tuple(_rows_of_first(tensor, processes) for tensor in census.trained)
        state, paged = optimizer_bytes(cut, recipe.optim.optimizer)
        gradients = MASTER_BYTES * sum(tensor.numel for tensor in cut)
    if strategy == "zero3":
        parameters = _share(stored, processes)
        if processes > 1 or offload == "all":
            buffers += min(stored, ZERO3_LIVE * stored // census.elements)
    elif strategy == "fsdp":
        parameters = _share(census.frozen_bytes, processes) + gradients
        buffers = 2 * census.layer_bytes + census.outside_bytes  # this layer, the next one, and what is in none
    host = paged
    if offload != "none":
        host, state, paged, gradients = state + gradients, 0, 0, 0
    if offload == "all" and strategy != "zero2":
        host, parameters = host + parameters, 0
    states = Need(parameters, gradients, state - paged, buffers, None, None, host)
    optim = recipe.optim
    training = activation_bytes(census, work.largest, optim.gradient_checkpointing, optim.activation_offloading)
    scoring = activation_bytes(census, work.scoring, "none", offloading=False)
    if training is None or scoring is None:
        return states
    most = max(training.kept + training.working, scoring.working)
    return states._replace(activations=most, peak=states.states + most, host=host + training.offloaded)


def _share(value: int, processes: int) -> int:
    return -(-value // processes)


def _rows_of_first(tensor: Trained, processes: int) -> Trained:
    rows = _share(tensor.rows, processes)
    return tensor._replace(numel=tensor.numel // tensor.rows * rows, rows=rows)


def describe_need(found: Need) -> str:
    """One line for the log."""
    parts = {
        "parameters": found.parameters,
        "gradients": found.gradients,
        "optimiser state": found.optimizer,
        "buffers": found.buffers,
        "activations": found.activations,
    }
    listed = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items() if value != 0)
    host = f"; in the host's memory {_gib(found.host)}" if found.host else ""
    return f"memory of a process, predicted: {_gib(found.peak)} GiB ({listed}{host})"


def _gib(value: int | None) -> str:
    return "unknown" if value is None else f"{value / GIB:.2f}"


def least_free_memory() -> int | None:
    """Free bytes of the fullest GPU of all processes, or of this machine where there is one process; None without."""
    if not torch.cuda.is_available():
        return None
    state = process_state()
    devices = [state.device.index] if state.num_processes > 1 else range(torch.cuda.device_count())
    return int(min(gather_object([free_memory(torch.device("cuda", device)) for device in devices])))


def host_memory() -> int:
    """Bytes of memory that this machine has, or that its job or container may take if that is less."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *cgroup_limits(Path("/"))])


def cgroup_limits(root: Path) -> list[int]:
    """Bytes that this process's control groups allow, its own and those around it, of both versions (cgroups(7))."""
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            mounted = root / "sys/fs/cgroup" / top
            group = mounted / place.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    limits.append(int((folder / name).read_text(encoding="ascii")))
                if folder == mounted:
                    break
    return limits
