"""How well rewards rank completions: accuracy, Bradley-Terry loss, and what length alone explains."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from numpy.typing import ArrayLike

Floats = Float64[np.ndarray, " n"]
Ints = Int64[np.ndarray, " n"]
Labels = Shaped[np.ndarray, " n"]  # numbers or text


@dataclass(frozen=True)
class RewardGaps:
    """For every preference of a set of groups, the reward of the better completion minus that of the worse."""

    gaps: Floats  # [n]
    groups: Ints  # [n] index of each preference's group


@dataclass(frozen=True)
class RankingAccuracy:
    """Figures over n preferences; None without preferences."""

    n: int
    ties: int  # preferences whose two rewards are equal
    accuracy: float | None  # a tie counts 1/2
    strict: float | None  # a tie counts 0
    loss: float | None  # nats, Bradley-Terry
    mean_gap: float | None


def reward_gaps(
    rewards: Sequence[Sequence[float]], preferences: Sequence[Sequence[Sequence[int]]], ids: Sequence[str]
) -> RewardGaps:
    """Reward gaps of all preferences, each a (better, worse, ...) index pair of its group's rewards, in order.

    Raises:
        ValueError: a value is not finite, or a preference has the index of a missing completion.
    """
    parts = zip(rewards, preferences, ids, strict=True)
    return join_gaps([preference_gaps(*part) for part in parts])


def preference_gaps(rewards: Sequence[float], preferences: Sequence[Sequence[int]], name: str) -> list[float]:
    """Reward gaps of one group's preferences; arguments and errors as for `reward_gaps`."""
    if not np.isfinite(rewards).all():
        raise ValueError(f"group {name}: reward not finite: {list(rewards)}")
    gaps = []
    for better, worse, *_ in preferences:
        if not (0 <= better < len(rewards) and 0 <= worse < len(rewards)):
            raise ValueError(f"group {name}: preference ({better}, {worse}) among {len(rewards)} completions")
        gaps.append(rewards[better] - rewards[worse])
    return gaps


def join_gaps(gaps: Sequence[Sequence[float]]) -> RewardGaps:
    """The gaps of each of G groups as one array, and the group of each."""
    counts = [len(of_group) for of_group in gaps]
    flat = [gap for of_group in gaps for gap in of_group]
    return RewardGaps(np.array(flat, dtype=np.float64), np.repeat(np.arange(len(counts), dtype=np.int64), counts))


def credits_of(gaps: Floats) -> Floats:
    """Credit of each preference: 1 if the better completion has the higher reward, 1/2 on a tie, else 0."""
    return np.asarray((np.sign(gaps) + 1) / 2)


def best_of_credit(rewards: Sequence[float]) -> float:
    """1/k if the first completion is among the k that share the highest reward, else 0."""
    best = max(rewards)
    return 1 / sum(reward == best for reward in rewards) if rewards[0] == best else 0.0


def bradley_terry_losses(gaps: Floats) -> Floats:
    """-log sigmoid(gap) of each preference, in nats, without overflow (arXiv 2203.02155, eq. 1)."""
    return np.asarray(np.logaddexp(0.0, -gaps))


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(np.exp(-bradley_terry_losses(x)))


def ranking_accuracy(gaps: Floats) -> RankingAccuracy:
    """Accuracy, ties, loss and mean gap, with the same weight for every preference."""
    n, ties = len(gaps), int((gaps == 0).sum())
    if n == 0:
        return RankingAccuracy(0, 0, None, None, None, None)
    return RankingAccuracy(
        n=n,
        ties=ties,
        accuracy=float(credits_of(gaps).mean()),
        strict=float((gaps > 0).mean()),
        loss=float(bradley_terry_losses(gaps).mean()),
        mean_gap=float(gaps.mean()),
    )


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation, with average ranks for ties; None if either side is constant or empty."""
    ranks_x, ranks_y = (_centred_ranks(np.asarray(values, dtype=np.float64)) for values in (x, y))
    scale = np.sqrt((ranks_x**2).sum() * (ranks_y**2).sum())
    return float(np.clip((ranks_x * ranks_y).sum() / scale, -1, 1)) if scale > 0 else None


def _centred_ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    average = np.cumsum(counts) - (counts - 1) / 2  # ranks count from 1
    return np.asarray(average[inverse] - (len(values) + 1) / 2)
