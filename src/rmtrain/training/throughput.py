"""The figures of a log line: accuracy and rewards, speed, waiting for data, memory, share of the matrix rate."""

import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate.utils import gather
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rmtrain.model.forward import HEAD
from rmtrain.training.objectives import RewardBatch

COUNTS = ("tokens", "distinct_tokens", "pairs", "groups")
_SIDE = 8192  # side of the square matrices whose product is timed: large enough to fill any GPU
_PRODUCTS = 20


class Meter:
    """Sums up micro-batches on one process; sums of rewards stay on the device until they are logged.

    Args:
        operations: useful floating-point operations a distinct token; None where they can't be counted.
        matrix_rate: operations a second that the device's matrix products reach; None without a GPU.
    """

    def __init__(self, operations: int | None = None, matrix_rate: float | None = None) -> None:
        self.operations, self.matrix_rate = operations, matrix_rate
        self._start: float | None = None  # until the first step begins
        self._clear()

    def _clear(self) -> None:
        self._counts = dict.fromkeys(COUNTS, 0)
        self._learnt: Tensor | None = None
        self._waited = 0.0

    def begin(self) -> None:
        """Start the clock, if it does not run yet."""
        if self._start is None:
            self._start = time.perf_counter()

    def count(self, counts: Mapping[str, int]) -> None:
        """Add a micro-batch's counts."""
        for name, value in counts.items():
            self._counts[name] += value

    def learn(self, batch: RewardBatch) -> None:
        """Add the rewards and reward gaps of a micro-batch."""
        rewards = batch.rewards.detach().double()
        chosen, rejected = batch.pairs
        gaps = (chosen - rejected).detach().double()
        right = (gaps > 0).sum() + 0.5 * (gaps == 0).sum()
        parts = [right, gaps.sum(), rewards.sum(), (rewards**2).sum(), torch.ones_like(rewards).sum()]
        sums = torch.stack(parts)
        self._learnt = sums if self._learnt is None else self._learnt + sums

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in here is spent on waiting for data."""
        before = time.perf_counter()
        yield
        if self._start is not None:
            self._waited += time.perf_counter() - before

    def pause(self, began: float) -> None:
        """Leave the time since `began` out of the training time."""
        if self._start is not None:
            self._start += time.perf_counter() - began

    def drain(self, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
        """Figures over all processes since the last call, and what to add to the run's totals."""
        now = time.perf_counter()
        seconds, self._start = now - (self._start or now), now
        learnt = [0.0] * 5 if self._learnt is None else self._learnt.tolist()
        own = [*learnt, *self._counts.values(), self._waited / seconds, peak_memory()]
        self._clear()
        everyone = gather(torch.tensor([own], dtype=torch.float64, device=device))
        *sums, _, _ = everyone.sum(0).tolist()
        right, gap, reward, squared, rewards = sums[:5]
        counts = dict(zip(COUNTS, sums[5:], strict=True))
        mean = reward / rewards
        figures = {
            "accuracy": right / counts["pairs"],
            "reward_gap": gap / counts["pairs"],
            "reward_mean": mean,
            "reward_std": max(squared / rewards - mean**2, 0.0) ** 0.5,
            "tokens_per_second": counts["tokens"] / seconds,
            "distinct_tokens_per_second": counts["distinct_tokens"] / seconds,
            "pairs_per_second": counts["pairs"] / seconds,
            "waiting_for_data": everyone[:, -2].mean().item(),
            "peak_memory_bytes": everyone[:, -1].max().item(),
        }
        if self.operations is not None and self.matrix_rate is not None:
            done = self.operations * counts["distinct_tokens"] / seconds
            figures["matrix_rate_used"] = done / (len(everyone) * self.matrix_rate)
        return figures, {**counts, "seconds": seconds}


def peak_memory() -> int:
    """Bytes of tensors on the GPU, or without a GPU of the process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def operations_per_token(module: nn.Module) -> int | None:
    """Useful floating-point operations of a step a token: 4 a frozen weight of a linear layer, 6 a trained one.

    Two each for the forward pass, the gradient of the input, and that of the weight (arXiv 2001.08361). Neither
    recomputation nor attention's own products count, nor the head, which sees a completion's last token alone. None
    where other layers hold matrices, such as experts, of which a token meets a few.
    """
    operations = 0
    for name, layer in module.named_modules():
        if f".{HEAD}." in f".{name}." or isinstance(layer, nn.Embedding):
            continue
        own = list(layer.parameters(recurse=False))
        if isinstance(layer, nn.Linear):  # a quantised or sharded weight has another size than it stands for
            operations += (6 if layer.weight.requires_grad else 4) * layer.in_features * layer.out_features
        elif isinstance(layer, Conv1D):
            operations += (6 if layer.weight.requires_grad else 4) * layer.nx * layer.nf
        elif any(parameter.ndim > 1 for parameter in own):
            return None
    return operations


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second of large matrix products, the median of several, timed on the GPU; None without one."""
    if device.type != "cuda":
        return None
    generator = torch.Generator(device).manual_seed(0)  # zeros would run faster, and the run's random state is kept
    left, right = (torch.randn(_SIDE, _SIDE, generator=generator, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    for _ in range(_PRODUCTS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        _ = left @ right
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1000)
    del left, right, _
    torch.cuda.empty_cache()
    return 2 * _SIDE**3 / statistics.median(times[_PRODUCTS // 4 :])  # the first warm up
