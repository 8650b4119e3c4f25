"""Choosing among a prompt's K completions by reward: the best ones, a sample, or a pair."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float64, UInt64

ALONE = "fewer than two answers"
TIED = "all rewards are equal"
CLOSE = "no answer is lower by the least margin"
UNLIKE = "no lower answer is of like length"
BELOW = "below the threshold"


class Taken(NamedTuple):
    """Indices of the chosen completions of a group; with `rejected`, one preferred to another."""

    chosen: tuple[int, ...] = ()
    rejected: int | None = None
    cause: str = ""  # why none is chosen


class Rule(Protocol):
    """A rule that chooses completions of a group."""

    def take(self, rewards: Sequence[float], lengths: Sequence[int], rng: np.random.Generator) -> Taken:
        """The choice among K completions, whose lengths are in characters; `rng` is for this group alone."""


@dataclass(frozen=True)
class BestOf:
    """The best of N (arXiv 2112.09332), or a sample of them."""

    top: int = 1  # how many to choose, highest rewards first; among equal rewards, the earlier completion
    threshold: float | None = None  # the lowest reward to choose
    # draw without replacement, with probabilities proportional to exp(reward / temperature), by the Gumbel-top-k trick
    # (arXiv 1903.06059); None takes the highest
    temperature: float | None = None

    def take(self, rewards: Sequence[float], lengths: Sequence[int], rng: np.random.Generator) -> Taken:
        """See `Rule`."""
        values = np.asarray(rewards, dtype=np.float64)
        keys = values if self.temperature is None else values / self.temperature + rng.gumbel(size=len(values))
        order = np.argsort(-keys, kind="stable")
        kept = [int(k) for k in order if self.threshold is None or rewards[k] >= self.threshold]
        return Taken(tuple(kept[: self.top]), cause="" if kept else BELOW)


@dataclass(frozen=True)
class Above:
    """All completions with at least this reward."""

    threshold: float

    def take(self, rewards: Sequence[float], lengths: Sequence[int], rng: np.random.Generator) -> Taken:
        """See `Rule`."""
        kept = tuple(k for k, reward in enumerate(rewards) if reward >= self.threshold)
        return Taken(kept, cause="" if kept else BELOW)


@dataclass(frozen=True)
class BestAgainst:
    """A pair: the best completion, and one of lower reward."""

    against: Literal["worst", "random"] = "worst"  # choose the worst remaining completion, or draw one
    margin: float = 0.0  # smallest difference of the two rewards
    length_ratio: float | None = None  # largest ratio of the two lengths; None for any ratio

    def take(self, rewards: Sequence[float], lengths: Sequence[int], rng: np.random.Generator) -> Taken:
        """See `Rule`."""
        best = int(np.argmax(rewards))
        lower = [k for k, reward in enumerate(rewards) if reward < rewards[best]]
        apart = [k for k in lower if rewards[best] - rewards[k] >= self.margin]
        alike = [k for k in apart if self._is_alike(lengths[best], lengths[k])]
        if not alike:
            causes = ((len(rewards) < 2, ALONE), (not lower, TIED), (not apart, CLOSE), (True, UNLIKE))
            return Taken(cause=next(cause for holds, cause in causes if holds))
        if self.against == "random":
            return Taken((best,), alike[int(rng.integers(len(alike)))])
        return Taken((best,), min(alike, key=lambda k: rewards[k]))

    def _is_alike(self, one: int, other: int) -> bool:
        return self.length_ratio is None or max(one, other) <= self.length_ratio * max(1, min(one, other))


def order_statistic(read: Callable[[], Iterable[Float64[np.ndarray, " n"]]], rank: int) -> float:
    """The value at `rank` (from 0) of all values in ascending order, exactly and in constant memory.

    A radix search: values are counted by their leading 16 bits, then the values with the right bits by the next 16. So
    `read` must give all values, in pieces, at each call.
    """
    prefix = 0
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, dtype=np.int64)
        for piece in read():
            keys = _sortable(piece)
            matching = keys[keys >> np.uint64(shift + 16) == prefix] if shift < 48 else keys
            counts += np.bincount(
                ((matching >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16
            )
        place = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        rank -= int(counts[:place].sum())
        prefix = (prefix << 16) | place
    bits = np.array([prefix], dtype=np.uint64)
    positive = bits >> np.uint64(63) == 1
    return float(np.where(positive, bits ^ np.uint64(1 << 63), ~bits).view(np.float64)[0])


def _sortable(values: Float64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Integers with the same order as the values."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    return np.where(bits >> np.uint64(63) == 1, ~bits, bits | np.uint64(1 << 63))


@dataclass
class Mean:
    """A mean over independent rows, from their sums."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Count a row."""
        self.n += 1
        self.total += value
        self.squares += value * value

    def figures(self) -> dict[str, float | int | None]:
        """Mean and 95 % interval by the normal approximation; None if there are too few rows."""
        mean = self.total / self.n if self.n else None
        if mean is None or self.n < 2:
            return {"n": self.n, "mean": mean, "low": None, "high": None}
        variance = max(0.0, (self.squares - self.n * mean * mean) / (self.n - 1))
        half = 1.96 * (variance / self.n) ** 0.5
        return {"n": self.n, "mean": mean, "low": mean - half, "high": mean + half}
