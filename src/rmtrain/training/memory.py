"""The bytes that a run holds on each device, and in the host's memory, under each strategy."""

from collections.abc import Mapping
from typing import NamedTuple

from rmtrain.data.prepare import ReadySplit
from rmtrain.model.batch import GroupSize, Packing, batch_tokens
from rmtrain.model.memory import MASTER_BYTES, ModelSize, TrainedTensor, optimizer_bytes
from rmtrain.recipe.schema import Recipe
from rmtrain.training.plan import TrainingPlan
from rmtrain.training.strategies import REDUCE_BUCKET, ZERO3_LIVE

GIB = 2**30


class TokenLoad(NamedTuple):
    """The tokens that go through the backbone, at once and in all."""

    batch: tuple[GroupSize, ...]  # the largest micro-batch of the plan
    largest: int  # tokens of the largest micro-batch
    longest: int  # tokens of the longest group alone, which no limit on tokens can split
    scoring: int  # tokens when scoring
    packing: Packing = "shared_prompt"
    run: int = 0  # tokens of a process in the whole run

    @classmethod
    def of(cls, recipe: Recipe, plan: TrainingPlan, splits: Mapping[str, ReadySplit], packing: Packing) -> "TokenLoad":
        """The load of a plan."""
        lengths = {name: [GroupSize(*size) for size in split.tokens.lengths()] for name, split in splits.items()}
        sizes = lengths["train"]
        microbatches = {tuple(members) for step in plan.steps for members in step if members}
        tokens = {members: batch_tokens([sizes[i] for i in members], packing) for members in microbatches}
        largest = max(tokens, key=tokens.__getitem__)
        longest = max(batch_tokens([sizes[i]], packing) for i in {i for members in tokens for i in members})
        scored = max((batch_tokens(split, packing) for name, split in lengths.items() if name != "train"), default=0)
        batch = tuple(sizes[i] for i in largest)
        run = sum(tokens[tuple(members)] for step in plan.steps for members in step if members) // plan.processes
        return cls(batch, tokens[largest], longest, min(recipe.evaluation.tokens_per_batch, scored), packing, run)


class Sharding(NamedTuple):
    """A strategy, and what it keeps in the host's memory."""

    strategy: str  # none, ddp, zero2, zero3 or fsdp
    offload: str = "none"

    def __str__(self) -> str:
        return self.strategy if self.offload == "none" else f"{self.strategy}, {self.offload} on the host"


class MemoryEstimate(NamedTuple):
    """Bytes on each device, and in the host's memory for each process."""

    parameters: int
    gradients: int
    optimizer: int  # without what is paged
    buffers: int  # bytes of the strategy's buffers
    activations: int | None  # None where the architecture can't be predicted
    peak: int | None
    host: int  # offloaded, or paged out where the device is full
    process: int = 0  # without a GPU: what the process holds beside tensors: Python, its libraries and the data
    loading: int = 0  # without a GPU: at the end of loading, while the files of the weights are still mapped

    @property
    def states(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.parameters + self.gradients + self.optimizer + self.buffers + self.process

    @property
    def stepping(self) -> int | None:
        """Bytes of a training step without the process itself; None where the architecture can't be predicted."""
        return None if self.activations is None else self.states - self.process + self.activations

    def __str__(self) -> str:
        parts = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimiser state": self.optimizer,
            "buffers": self.buffers,
            "activations": self.activations,
            "Python and its libraries": self.process,
        }
        listed = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items() if value != 0)
        host = f"; in the host's memory {_gib(self.host)}" if self.host else ""
        when = "; reached while the weights are loaded" if self.loading and self.loading == self.peak else ""
        return f"memory of a process, predicted: {_gib(self.peak)} GiB ({listed}{host}{when})"


def _gib(value: int | None) -> str:
    return "unknown" if value is None else f"{value / GIB:.2f}"


def estimate_states(size: ModelSize, optimizer: str, sharding: Sharding, processes: int) -> MemoryEstimate:
    """Parameters, gradients, optimiser state and buffers under a strategy, without activations.

    DDP holds everything, and the gradients twice (its buckets). ZeRO-2 shards gradients and optimiser state, with a
    float32 copy of what is trained; ZeRO-3 and FSDP2 shard the parameters too, and gather those of the layers at work
    (arXiv 1910.02054, 2304.11277). FSDP2 shards each tensor by rows; the first process has most.
    """
    strategy, offload = sharding
    stored, trained = size.frozen_bytes + size.trained_bytes, size.trained_bytes
    state, paged = optimizer_bytes(size.trained, optimizer)
    parameters, gradients, buffers = stored, trained, trained if strategy == "ddp" else 0
    if strategy in ("zero2", "zero3"):
        # DeepSpeed's optimiser sees its part of one flat tensor, and a float32 copy of it
        flat = (TrainedTensor(_share(sum(t.numel for t in size.trained), processes), embedding=False),)
        state, paged = optimizer_bytes(flat, optimizer)
        gradients = _share(trained, processes)
        state += gradients
        buffers = MASTER_BYTES * REDUCE_BUCKET
    elif strategy == "fsdp":
        rows = [(tensor, _share(tensor.rows, processes)) for tensor in size.trained]
        cut = tuple(t._replace(numel=t.numel // t.rows * own, rows=own) for t, own in rows)
        state, paged = optimizer_bytes(cut, optimizer)
        gradients = MASTER_BYTES * sum(tensor.numel for tensor in cut)
    if strategy == "zero3":
        parameters = _share(stored, processes)
        if processes > 1 or offload == "all":
            buffers += min(stored, ZERO3_LIVE * stored // size.elements)
    elif strategy == "fsdp":
        parameters = _share(size.frozen_bytes, processes) + gradients
        buffers = 2 * size.layer_bytes + size.outside_bytes  # this layer, the next one, and what belongs to no layer
    host = paged
    if offload != "none":
        host, state, paged, gradients = state + gradients, 0, 0, 0
    if offload == "all" and strategy != "zero2":
        host, parameters = host + parameters, 0
    return MemoryEstimate(parameters, gradients, state - paged, buffers, None, None, host)


def _share(value: int, processes: int) -> int:
    return -(-value // processes)
