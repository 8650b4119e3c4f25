"""Figures of a benchmark's subsets and sections, from scored rows or from published accuracies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of, length_gaps_of
from rmtrain.metrics.intervals import (
    Interval,
    effective_size,
    percentile_interval,
    resampled_sums,
    stratified_interval,
    wilson_interval,
)
from rmtrain.metrics.rankings import Floats, credits_of

_ENOUGH = 10  # preferences right, and wrong, for percentiles of resamples to be an interval


@dataclass(frozen=True)
class Subset:
    """A subset's figures; None where they can't be had."""

    n: int  # rows
    accuracy: float  # by the benchmark's own rule
    size: float  # effective number of independent rows
    interval: Interval
    accuracy_half: float | None = None  # a tie counts 1/2
    ties: int | None = None
    length_baseline: float | None = None  # accuracy of "the longer wins", equal lengths counting 1/2
    credit: Floats | None = field(default=None, repr=False)  # what each preference counts
    prompts: Sequence[str] = field(default=(), repr=False)  # of each preference
    draws: Floats | None = field(default=None, repr=False)  # [R] accuracies when prompts are drawn anew

    def to_json(self) -> dict[str, Any]:
        """The subset's entry in a result."""
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "low": self.interval.low,
            "high": self.interval.high,
            "accuracy_half": self.accuracy_half,
            "ties": self.ties,
            "length_baseline": self.length_baseline,
        }


def by_source(rows: Sequence[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """Rows by their source, sources in the order of their first row."""
    groups: dict[str, list[ScoredRow]] = {}
    for row in rows:
        groups.setdefault(row.source, []).append(row)
    return groups


def strict_subset(rows: Sequence[ScoredRow]) -> Subset:
    """Share of preferences with a strictly higher reward; the rows of one prompt are a cluster."""
    gaps, of_length = gaps_of(rows), length_gaps_of(rows)
    credit = (gaps.gaps > 0).astype(np.float64)
    return _subset(
        rows,
        credit,
        clusters_of(rows)[gaps.groups],
        [rows[group].cluster or rows[group].id for group in gaps.groups],
        accuracy_half=float(credits_of(gaps.gaps).mean()),
        ties=int((gaps.gaps == 0).sum()),
        length_baseline=float(credits_of(of_length.gaps).mean()) if of_length else None,
    )


def credit_subset(rows: Sequence[ScoredRow], credit_of: Callable[[Sequence[float]], float]) -> Subset:
    """Mean credit of rows, each by its rewards; a tie is a credit that is neither 0 nor 1."""
    credit = np.array([credit_of(row.rewards) for row in rows], dtype=np.float64)
    known = all(row.lengths for row in rows)
    return _subset(
        rows,
        credit,
        clusters_of(rows),
        [row.cluster or row.id for row in rows],
        accuracy_half=None,
        ties=int(((credit > 0) & (credit < 1)).sum()),
        length_baseline=float(np.mean([credit_of(row.lengths) for row in rows])) if known else None,
    )


def _subset(
    rows: Sequence[ScoredRow],
    credit: Floats,
    clusters: Any,
    prompts: Sequence[str],
    accuracy_half: float | None,
    ties: int,
    length_baseline: float | None,
) -> Subset:
    accuracy, size = float(credit.mean()), effective_size(credit, clusters)
    interval = wilson_interval(accuracy, size)
    return Subset(len(rows), accuracy, size, interval, accuracy_half, ties, length_baseline, credit, prompts)


def resampled(subsets: Mapping[str, Subset], seed: int) -> dict[str, Subset]:
    """The subsets with `draws`: prompts drawn with replacement, all their rows together, in whatever subsets they are.

    The prompts of AlpacaEval and MT-Bench, for one, are in several subsets of RewardBench 1. What is drawn apart and
    then taken together needs seeds of its own: with one seed the draws would rise and fall together.
    """
    place: dict[str, int] = {}
    for subset in subsets.values():
        for prompt in subset.prompts:
            place.setdefault(prompt, len(place))
    sums = np.zeros((len(place), 2 * len(subsets)))
    for column, subset in enumerate(subsets.values()):
        rows = [place[prompt] for prompt in subset.prompts]
        np.add.at(sums[:, 2 * column], rows, np.asarray(subset.credit))
        np.add.at(sums[:, 2 * column + 1], rows, 1)
    if not len(sums):
        return dict(subsets)
    drawn = resampled_sums(sums, seed=seed)
    with np.errstate(invalid="ignore"):  # a resample may leave a subset out
        accuracies = drawn[:, ::2] / drawn[:, 1::2]
    return {name: replace(subset, draws=accuracies[:, i]) for i, (name, subset) in enumerate(subsets.items())}


def published_subset(accuracy: float, n: int) -> Subset:
    """A subset of which only the accuracy is known, and from the benchmark how many rows it has."""
    return Subset(n, accuracy, n, wilson_interval(accuracy, n))


def weighted_figures(subsets: Mapping[str, Subset], weights: Mapping[str, float]) -> dict[str, float | None] | None:
    """Score, interval, score with ties half, ties, and length baseline of a weighted mean of subsets.

    None if a subset is missing.
    The interval is a bootstrap over prompts where these are known and at least ten preferences are right and ten wrong;
    else, and near 0 and 1 where resampling sees too little, Wilson's of independent strata.
    """
    if any(name not in subsets for name in weights):
        return None
    parts, shares = [subsets[name] for name in weights], list(weights.values())
    score = float(np.average([part.accuracy for part in parts], weights=shares))
    sizes = [part.size for part in parts]
    draws = [part.draws for part in parts if part.draws is not None]
    if len(draws) == len(parts) and min(score, 1 - score) * sum(sizes) >= _ENOUGH:
        interval = percentile_interval(np.average(draws, axis=0, weights=shares))
    else:  # the Ties subset of RewardBench 2 scores -0.01 to 1.01
        interval = stratified_interval([min(1.0, max(0.0, part.accuracy)) for part in parts], sizes, shares)

    def mean(values: list[float | None]) -> float | None:
        return None if None in values else float(np.average(np.array(values, dtype=np.float64), weights=shares))

    ties = [part.ties for part in parts if part.ties is not None]
    return {
        "score": score,
        "low": min(score, interval.low),
        "high": max(score, interval.high),
        "score_half": mean([part.accuracy_half for part in parts]),
        "ties": sum(ties) if len(ties) == len(parts) else None,
        "length_baseline": mean([part.length_baseline for part in parts]),
    }


def incomplete(subsets: Mapping[str, Subset], counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Subsets with other than the published number of rows."""
    return {
        name: {"n": subset.n, "expected": counts[name]}
        for name, subset in subsets.items()
        if name in counts and subset.n != counts[name]
    }


def totals(subsets: Mapping[str, Subset]) -> dict[str, Any]:
    """Rows and entries of all subsets."""
    return {
        "n": sum(subset.n for subset in subsets.values()),
        "subsets": {name: subset.to_json() for name, subset in subsets.items()},
    }
