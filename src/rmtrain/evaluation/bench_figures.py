"""Figures of a benchmark's subsets and sections, from scored rows or from published accuracies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of, length_gaps_of
from rmtrain.metrics.intervals import (
    effective_size,
    percentile_interval,
    resampled_means,
    stratified_interval,
    wilson_interval,
)
from rmtrain.metrics.rankings import Floats, Labels, credits_of
from rmtrain.metrics.rewardbench2 import best_of_credit

_ENOUGH = 10  # preferences right, and wrong, for percentiles of resamples to be an interval


@dataclass(frozen=True)
class Subset:
    """A subset's figures; None where they can't be had, as of a subset of which only the accuracy is published."""

    n: int  # rows
    accuracy: float  # by the benchmark's own rule
    size: float  # effective number of independent rows
    accuracy_half: float | None = None  # a tie counts 1/2
    ties: int | None = None
    length_baseline: float | None = None  # accuracy of "the longer wins", equal lengths counting 1/2
    draws: Floats | None = field(default=None, repr=False)  # [R] accuracies when prompts are drawn anew

    def to_json(self) -> dict[str, Any]:
        """The subset's entry in a result."""
        interval = wilson_interval(_proportion(self.accuracy), self.size)
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "low": min(self.accuracy, interval.low),
            "high": max(self.accuracy, interval.high),
            "accuracy_half": self.accuracy_half,
            "ties": self.ties,
            "length_baseline": self.length_baseline,
        }


def _proportion(accuracy: float) -> float:
    return min(1.0, max(0.0, accuracy))  # the Ties subset of RewardBench 2 scores -0.01 to 1.01


def by_source(rows: Sequence[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """Rows by their source, sources in the order of their first row."""
    groups: dict[str, list[ScoredRow]] = {}
    for row in rows:
        groups.setdefault(row.source, []).append(row)
    return groups


class _Measured(NamedTuple):
    """A subset, and what each of its n preferences counts and is of."""

    subset: Subset
    credit: Floats
    prompts: Labels


def strict_subsets(groups: Mapping[str, Sequence[ScoredRow]], seed: int) -> dict[str, Subset]:
    """Of each group of rows the share of preferences with a strictly higher reward."""
    return _resampled({name: _strict(rows) for name, rows in groups.items()}, seed)


def best_of_subsets(groups: Mapping[str, Sequence[ScoredRow]], seed: int) -> dict[str, Subset]:
    """Of each the share of rows whose right completion, the first, has the highest reward, or its part of a tie."""
    return _resampled({name: _best_of(rows) for name, rows in groups.items()}, seed)


def _strict(rows: Sequence[ScoredRow]) -> _Measured:
    gaps, of_length = gaps_of(rows), length_gaps_of(rows)
    return _measured(
        rows,
        (gaps.gaps > 0).astype(np.float64),
        clusters_of(rows)[gaps.groups],
        accuracy_half=float(credits_of(gaps.gaps).mean()),
        ties=int((gaps.gaps == 0).sum()),
        length_baseline=float(credits_of(of_length.gaps).mean()) if of_length else None,
    )


def _best_of(rows: Sequence[ScoredRow]) -> _Measured:
    credit = np.array([best_of_credit(row.rewards) for row in rows])
    known = all(row.lengths for row in rows)
    return _measured(
        rows,
        credit,
        clusters_of(rows),
        ties=int(((credit > 0) & (credit < 1)).sum()),
        length_baseline=float(np.mean([best_of_credit(row.lengths) for row in rows])) if known else None,
    )


def _measured(rows: Sequence[ScoredRow], credit: Floats, prompts: Labels, **beside: Any) -> _Measured:
    subset = Subset(len(rows), float(credit.mean()), effective_size(credit, prompts), **beside)
    return _Measured(subset, credit, prompts)


def _resampled(measured: Mapping[str, _Measured], seed: int) -> dict[str, Subset]:
    """The subsets with `draws`: prompts drawn with replacement, all their rows together, in whatever subsets they are.

    The prompts of AlpacaEval and MT-Bench, for one, are in several subsets of RewardBench 1. What is drawn apart and
    then taken together needs seeds of its own: with one seed the draws would rise and fall together.
    """
    if not measured:
        return {}
    parts = list(measured.values())
    columns = np.repeat(np.arange(len(parts)), [len(part.credit) for part in parts])
    credit, prompts = (np.concatenate(values) for values in zip(*(part[1:] for part in parts), strict=True))
    draws = resampled_means(credit, prompts, columns, seed=seed)
    return {name: replace(part.subset, draws=draws[:, i]) for i, (name, part) in enumerate(measured.items())}


def weighted_figures(subsets: Mapping[str, Subset], weights: Mapping[str, float]) -> dict[str, float | None] | None:
    """Score, interval, score with ties half, ties, and length baseline of a weighted mean of subsets.

    None if a subset is missing, or if there are none to weigh.
    The interval is a bootstrap over prompts where these are known and at least ten preferences are right and ten wrong;
    else, and near 0 and 1 where resampling sees too little, Wilson's of independent strata.
    """
    if not weights or any(name not in subsets for name in weights):
        return None
    parts, shares = [subsets[name] for name in weights], list(weights.values())
    score = float(np.average([part.accuracy for part in parts], weights=shares))
    sizes = [part.size for part in parts]
    draws = [part.draws for part in parts if part.draws is not None]
    if len(draws) == len(parts) and min(score, 1 - score) * sum(sizes) >= _ENOUGH:
        interval = percentile_interval(np.average(draws, axis=0, weights=shares))
    else:
        interval = stratified_interval([_proportion(part.accuracy) for part in parts], sizes, shares)

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
