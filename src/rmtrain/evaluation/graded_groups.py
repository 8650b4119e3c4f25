"""Groups of three or more completions with graded scores: how models rank them, and the gain of best-of-N."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np

from rmtrain.evaluation.results import ScoredRow, clusters_of
from rmtrain.metrics.graded import (
    best_of_n_kl,
    exact_match,
    expected_best_of_n,
    fit_best_of_n,
    kendall_tau_b,
    ndcg,
    top1_credit,
)
from rmtrain.metrics.intervals import clustered_interval, percentile_interval, resampled_means, resampled_sums
from rmtrain.metrics.rankings import Floats, Labels

Scores = Sequence[Sequence[float] | None]
_SMALLEST_GROUP = 3  # for two completions, preferences suffice


@dataclass(frozen=True)
class Mean:
    """A mean over n groups with its 95 % interval, by prompt."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Ranking:
    """How a model ranks whole groups; none of these is a pairwise accuracy. A figure is None if no group allows it."""

    groups: int
    exact_match: Mean | None  # over groups whose scores all differ
    chance: float | None  # mean of 1/K! over the same groups
    tau_b: Mean | None
    ndcg: Mean | None
    top1: Mean | None


@dataclass(frozen=True)
class Chooser:
    """The score of the completion that a model chooses among all K, and among N drawn from these."""

    score: Mean
    share: Mean | None  # share of the possible gain over a random choice; None if no group has one
    curve: list[Mean]  # N = 1 ... the size of the smallest group
    fit: dict[str, float | None] | None  # alpha, beta and peak_kl of the curve's gain


@dataclass(frozen=True)
class Choices:
    """Best-of-N with every model, on the same groups."""

    groups: int
    random: Mean
    best: Mean  # the highest score of each group
    kl: list[float]  # nats, for N = 1 ..., from the sampled policy
    best_curve: list[Mean]
    choosers: dict[str, Chooser]


def rankings(models: Mapping[str, Sequence[ScoredRow]], scores: Scores) -> dict[str, Ranking]:
    """Figures of every model that gives rewards; empty without graded groups."""
    chosen = _graded(scores)
    return {name: _ranking(rows, [scores[i] or () for i in chosen]) for name, rows in _picked(models, chosen).items()}


def best_of_n(models: Mapping[str, Sequence[ScoredRow]], scores: Scores) -> Choices | None:
    """The gain of best-of-N with each model that gives rewards; None without graded groups."""
    chosen = _graded(scores)
    if not chosen:
        return None
    picked, graded = _picked(models, chosen), [scores[i] or () for i in chosen]
    clusters = clusters_of(next(iter(picked.values())))
    drawn = min(map(len, graded))
    random = np.array([np.mean(scores) for scores in graded], dtype=np.float64)
    best = np.array([max(scores) for scores in graded], dtype=np.float64)
    return Choices(
        groups=len(chosen),
        random=_mean(random, clusters),
        best=_mean(best, clusters),
        kl=[best_of_n_kl(n) for n in range(1, drawn + 1)],
        best_curve=_curve([expected_best_of_n(values, values) for values in graded], drawn, clusters),
        choosers={name: _chooser(rows, graded, random, best, drawn, clusters) for name, rows in picked.items()},
    )


def _graded(scores: Scores) -> list[int]:
    return [i for i, values in enumerate(scores) if values is not None and len(values) >= _SMALLEST_GROUP]


def _picked(models: Mapping[str, Sequence[ScoredRow]], chosen: Sequence[int]) -> dict[str, list[ScoredRow]]:
    """The chosen rows of the models that give rewards."""
    picked = {name: [rows[i] for i in chosen] for name, rows in models.items()} if chosen else {}
    return {name: rows for name, rows in picked.items() if all(row.rewards for row in rows)}


def _ranking(rows: Sequence[ScoredRow], graded: Sequence[Sequence[float]]) -> Ranking:
    clusters, pairs = clusters_of(rows), [(row.rewards, scores) for row, scores in zip(rows, graded, strict=True)]
    untied = np.array([len(set(scores)) == len(scores) for scores in graded])
    matches = np.array([float(exact_match(*pair)) for pair in pairs])[untied]
    chances = [1 / factorial(len(scores)) for scores in graded if len(set(scores)) == len(scores)]

    def mean_of(figure: Callable[[Sequence[float], Sequence[float]], float | None]) -> Mean | None:
        values = [figure(*pair) for pair in pairs]
        known = np.array([value is not None for value in values])
        return _mean(np.array([v for v in values if v is not None]), clusters[known]) if known.any() else None

    return Ranking(
        groups=len(rows),
        exact_match=_share_of_groups(matches, clusters[untied]),
        chance=float(np.mean(chances)) if chances else None,
        tau_b=mean_of(kendall_tau_b),
        ndcg=mean_of(ndcg),
        top1=_share_of_groups(np.array([top1_credit(*pair) for pair in pairs]), clusters),
    )


def _share_of_groups(credit: Floats, clusters: Labels) -> Mean | None:
    interval = clustered_interval(credit, clusters)
    return Mean(float(credit.mean()), interval.low, interval.high, len(credit)) if interval else None


def _chooser(
    rows: Sequence[ScoredRow],
    graded: Sequence[Sequence[float]],
    random: Floats,
    best: Floats,
    drawn: int,
    clusters: Labels,
) -> Chooser:
    expected = [expected_best_of_n(row.rewards, values) for row, values in zip(rows, graded, strict=True)]
    score = np.array([values[-1] for values in expected])
    curve = _curve(expected, drawn, clusters)
    fit = fit_best_of_n([point.value - curve[0].value for point in curve])
    return Chooser(
        score=_mean(score, clusters),
        share=share_of_sums(score - random, best - random, clusters),
        curve=curve,
        fit={"alpha": fit.alpha, "beta": fit.beta, "peak_kl": fit.peak_kl} if fit else None,
    )


def _curve(expected: Sequence[Floats], drawn: int, clusters: Labels) -> list[Mean]:
    return [_mean(np.array([values[n] for values in expected]), clusters) for n in range(drawn)]


def _mean(values: Floats, clusters: Labels) -> Mean:
    interval = percentile_interval(resampled_means(values, clusters, np.zeros(len(values), dtype=np.int64))[:, 0])
    return Mean(float(values.mean()), interval.low, interval.high, len(values))


def share_of_sums(gains: Floats, possible: Floats, clusters: Labels) -> Mean | None:
    """Ratio of the sums, so that each group counts by its possible gain; None if there is none."""
    if possible.sum() <= 0:
        return None
    _, places = np.unique(clusters, return_inverse=True)
    sums = np.column_stack([np.bincount(places, weights=part) for part in (gains, possible)]).astype(np.float64)
    drawn = resampled_sums(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        interval = percentile_interval(np.where(drawn[:, 1] > 0, drawn[:, 0] / drawn[:, 1], np.nan))
    return Mean(float(gains.sum() / possible.sum()), interval.low, interval.high, len(gains))
