"""Figures of a benchmark's subsets and of weighted means of subsets, from scored rows or only from accuracies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rmtrain.data.benchmarks.definition import OwnFormula, ScoredPrompt, Weights
from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of, with_lengths_as_rewards
from rmtrain.json_values import JsonObject
from rmtrain.metrics.intervals import (
    effective_size,
    percentile_interval,
    resampled_means,
    stratified_interval,
    wilson_interval,
)
from rmtrain.metrics.rankings import Floats, Ints, best_of_credit, credits_of

_ENOUGH = 10  # minimum right and minimum wrong preferences for a percentile bootstrap


@dataclass(frozen=True)
class Subset:
    """A subset's figures; None if unknown, as when only the accuracy was published."""

    n: int  # rows
    accuracy: float  # counted by the benchmark's own rule
    size: float  # effective number of independent rows
    accuracy_half: float | None = None  # a tie counts 1/2
    ties: int | None = None
    length_baseline: float | None = None  # accuracy of "the longer wins"; equal lengths count 1/2
    draws: Floats | None = field(default=None, repr=False)  # [R] accuracies of resampled prompts

    def to_json(self) -> JsonObject:
        """The subset's entry in a result."""
        interval = wilson_interval(_fraction(self.accuracy), self.size)
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "low": min(self.accuracy, interval.low),
            "high": max(self.accuracy, interval.high),
            "accuracy_half": self.accuracy_half,
            "ties": self.ties,
            "length_baseline": self.length_baseline,
        }


@dataclass(frozen=True)
class Score:
    """A weighted mean of subsets; a figure is None if a subset lacks it."""

    score: float
    low: float
    high: float
    score_half: float | None  # ties count 1/2
    ties: int | None
    length_baseline: float | None


def by_source(rows: Sequence[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """Rows by source, in the order of each source's first row."""
    groups: dict[str, list[ScoredRow]] = {}
    for row in rows:
        groups.setdefault(row.source, []).append(row)
    return groups


class Credits(NamedTuple):
    """The credit of each unit: a preference or, by the benchmark's rule, a row."""

    official: Floats  # [n] from 0 to 1, by the benchmark's rule
    shared: Floats  # [n] the same, but a tie counts 1/2
    rows: Ints  # [n] row of each unit


def credits_by_rule(rows: Sequence[ScoredRow], rule: str) -> Credits:
    """Credits of rows of a benchmark by its rule, `pairs` or `best`."""
    if rule == "best":
        shared = np.array([best_of_credit(row.rewards) for row in rows], dtype=np.float64)
        return Credits(shared, shared, np.arange(len(rows)))
    gaps = gaps_of(rows)
    return Credits((gaps.gaps > 0).astype(np.float64), credits_of(gaps.gaps), gaps.groups)


def subsets_of(groups: Mapping[str, Sequence[ScoredRow]], rule: str, seed: int) -> dict[str, Subset]:
    """Subsets with `draws`: prompts are resampled with all their rows, across subsets.

    The prompts of AlpacaEval and MT-Bench, for example, are in several subsets of RewardBench 1. Groups of rows that
    are resampled separately and then averaged need different seeds: draws with the same seed are correlated.
    """
    if not groups:
        return {}
    credits = [credits_by_rule(rows, rule) for rows in groups.values()]
    prompts = [clusters_of(rows)[units.rows] for rows, units in zip(groups.values(), credits, strict=True)]
    columns = np.repeat(np.arange(len(groups)), [len(units.rows) for units in credits])
    official = np.concatenate([units.official for units in credits])
    draws = resampled_means(official, np.concatenate(prompts), columns, seed=seed)
    return {
        name: Subset(
            n=len(rows),
            accuracy=float(units.official.mean()),
            size=effective_size(units.official, own_prompts),
            accuracy_half=float(units.shared.mean()) if rule == "pairs" else None,
            ties=int(((units.shared > 0) & (units.shared < 1)).sum()),
            length_baseline=_length_baseline(rows, rule),
            draws=draws[:, column],
        )
        for column, ((name, rows), units, own_prompts) in enumerate(zip(groups.items(), credits, prompts, strict=True))
    }


def _length_baseline(rows: Sequence[ScoredRow], rule: str) -> float | None:
    by_length = with_lengths_as_rewards(rows)
    return float(credits_by_rule(by_length, rule).shared.mean()) if by_length else None


def scored_prompt(row: ScoredRow) -> ScoredPrompt:
    """A row in the form that a subset's own formula takes."""
    return ScoredPrompt(row.id, row.rewards, 1 + max((better for better, _ in row.preferences), default=0))


def weighted_score(subsets: Mapping[str, Subset], weights: Weights) -> Score | None:
    """A weighted mean of subsets; None if a subset is missing or there are no weights.

    The interval is a bootstrap over prompts if these are known and at least ten preferences are right and ten wrong.
    Otherwise, as resampling underestimates the variance near 0 and 1, it is Wilson's for independent strata.
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
        interval = stratified_interval([_fraction(part.accuracy) for part in parts], sizes, shares)

    def mean(values: list[float | None]) -> float | None:
        return None if None in values else float(np.average(np.array(values, dtype=np.float64), weights=shares))

    ties = [part.ties for part in parts if part.ties is not None]
    return Score(
        score,
        low=min(score, interval.low),
        high=max(score, interval.high),
        score_half=mean([part.accuracy_half for part in parts]),
        ties=sum(ties) if len(ties) == len(parts) else None,
        length_baseline=mean([part.length_baseline for part in parts]),
    )


def _fraction(accuracy: float) -> float:
    return min(1.0, max(0.0, accuracy))  # the Ties subset of RewardBench 2 scores -0.01 to 1.01


def formula_subset(formula: OwnFormula, rows: Sequence[ScoredRow]) -> tuple[Subset | None, Mapping[str, float | None]]:
    """A subset with its own formula, and the terms of the formula; its score may be undefined."""
    prompts = [scored_prompt(row) for row in rows]
    scored = formula.score(prompts, 1)
    if scored.score is None:
        return None, scored.terms
    by_length = [scored_prompt(row) for row in with_lengths_as_rewards(rows)]
    subset = Subset(
        n=len(rows),
        accuracy=scored.score,
        # a mean over prompts of values between 0 and about 1 varies at most as an accuracy over as many prompts
        size=len({formula.prompt_of(row.id) for row in rows}),
        ties=sum(min(p.rewards[: p.right]) == max(p.rewards[p.right :]) for p in prompts),
        length_baseline=formula.score(by_length, 1).score if by_length else None,
        draws=scored.draws,
    )
    return subset, scored.terms
