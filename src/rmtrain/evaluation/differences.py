"""Paired statistics for two models on the same rows: the difference, its interval, an exact test, a verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from rmtrain.data.benchmarks.definition import Benchmark, Weights
from rmtrain.errors import DataError
from rmtrain.evaluation.figures import credits_by_rule, scored_prompt
from rmtrain.evaluation.results import NO_SOURCE, ScoredRow, clusters_of
from rmtrain.metrics.intervals import (
    Z_POWER,
    Z,
    detectable_difference,
    difference_interval,
    mcnemar_exact,
    resampled_means,
)
from rmtrain.metrics.rankings import Floats, Ints, Labels


@dataclass(frozen=True)
class Difference:
    """Model A minus model B on n units, which are preferences or, by some benchmarks' rule, rows.

    The interval is a paired bootstrap over prompts. The exact McNemar test counts prompts on which one model is right
    more often than the other, since the preferences of one prompt are not independent; with one preference a prompt and
    no ties it is the usual test. A figure of no units is None.
    """

    n: int
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    mcnemar_p: float | None
    within_noise: bool | None  # False: interval and test both exclude a difference of zero
    prompts: int
    a_better: int  # prompts
    b_better: int
    # smallest true difference that a comparison of this size and disagreement detects with a power of 80 %
    detectable: float | None

    @property
    def verdict(self) -> str:
        """One sentence: it claims a difference only where the interval and the test agree."""
        if self.difference is None or self.mcnemar_p is None:
            return "There are no preferences to compare on."
        if self.a_better == self.b_better == 0:
            return f"A and B do equally well on each of {self.prompts} prompts."
        better, points = ("A" if self.difference > 0 else "B"), 100 * abs(self.difference)
        if not self.within_noise:
            return f"{better} is better, by {points:.2f} points (p = {self.mcnemar_p:.2g})."
        lead = f"{better} is ahead by {points:.2f} points" if points else "the accuracies are equal"
        least = ""
        if self.detectable is not None:
            least = f"; a difference of {100 * self.detectable:.2f} would be detected four times in five"
        return f"Within noise: {lead} (p = {self.mcnemar_p:.2g}){least}."


@dataclass(frozen=True)
class Comparison:
    """Two models on the rows that both have."""

    overall: Difference
    groups: int  # rows
    only_a: int  # rows of A that B lacks
    only_b: int
    not_alike: int  # rows of one id whose prompts or preferences differ
    benchmark: str | None
    score: Difference | None  # of the benchmark's current score
    sections: Mapping[str, Difference | None]  # None: a subset is missing
    by_source: Mapping[str, Difference | None]

    def to_json(self) -> dict[str, Any]:
        """The comparison as `compare --json` gives it."""
        return {
            **asdict(self.overall),
            "groups": self.groups,
            "verdict": self.overall.verdict,
            **{key: getattr(self, key) for key in ("only_a", "only_b", "not_alike", "benchmark")},
            "score": {**asdict(self.score), "verdict": self.score.verdict} if self.score else None,
            "sections": {name: asdict(part) if part else None for name, part in self.sections.items()},
            "by_source": {name: asdict(part) if part else None for name, part in self.by_source.items()},
        }


def compare_rows(
    a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow], benchmark: Benchmark | None = None
) -> Comparison:
    """Compare two models on the rows that both have.

    A tie counts 1/2; on the rows of a benchmark its own rule decides. A subset with a formula of its own has no figure
    for a row: its score is bootstrapped whole, and its test asks on which prompts all right completions beat all wrong
    ones. The figures of all rows and of a source count its rows in the same way.

    Args:
        a_rows: rows scored by A.
        b_rows: rows scored by B, in any order.
        benchmark: the rows' benchmark.

    Raises:
        DataError: no row is in both, or they lack rewards that the benchmark needs.
    """
    by_id = {row.id: row for row in b_rows}
    shared = [(row, by_id[row.id]) for row in a_rows if row.id in by_id]
    alike = [(a, _in_order_of(a, b)) for a, b in shared if _alike(a, b)]
    only_a, only_b, not_alike = len(a_rows) - len(shared), len(b_rows) - len(shared), len(shared) - len(alike)
    if not alike and (a_rows or b_rows):
        raise DataError(
            f"A and B have no row in common: {only_a} are in A alone, {only_b} in B alone, "
            f"and {not_alike} have the same id but other prompts or preferences",
            "score both on the same data: rmtrain compare A B --data SOURCE",
        )
    if benchmark is not None and benchmark.needs_rewards and any(a.margins or b.margins for a, b in alike):
        raise DataError(
            f"{benchmark.name} needs rewards, and a model that only compares completions gives none",
            "compare reward models on it",
        )
    rows = [a for a, _ in alike], [b for _, b in alike]
    units, sections, weights = _units(*rows, benchmark), dict[str, Difference | None](), dict[str, float]()
    if benchmark is not None:
        sizes = Counter(row.source for row, _ in alike)
        sections = {name: _of_scores(units, part, *rows, benchmark) for name, part in benchmark.sections(sizes).items()}
        weights = dict(benchmark.eras(sizes, ())["current"].overall)
    return Comparison(
        overall=_of_means(units),
        groups=len(alike),
        only_a=only_a,
        only_b=only_b,
        not_alike=not_alike,
        benchmark=benchmark.name if benchmark else None,
        score=_of_scores(units, weights, *rows, benchmark) if benchmark else None,
        sections=sections,
        by_source={source: _of_means(units.of([source])) for source in sorted(set(units.sources))},
    )


def _in_order_of(a: ScoredRow, b: ScoredRow) -> ScoredRow:
    """B with its preferences, and their margins if it has them, in A's order."""
    margins = dict(zip(b.preferences, b.margins, strict=bool(b.margins)))
    return b._replace(preferences=a.preferences, margins=tuple(margins[p] for p in a.preferences if margins))


def _alike(a: ScoredRow, b: ScoredRow) -> bool:
    return set(a.preferences) == set(b.preferences) and (a.cluster == b.cluster or not (a.cluster and b.cluster))


class _Units(NamedTuple):
    """What each unit, a preference or a row by the benchmark's rule, counts for A and for B."""

    a: Floats  # [n]
    b: Floats  # [n]
    clusters: Labels  # [n]
    sources: Labels  # [n]

    def of(self, sources: Sequence[str]) -> "_Units":
        """The units of some sources."""
        here = np.isin(self.sources, sources)
        return _Units(self.a[here], self.b[here], self.clusters[here], self.sources[here])


def _units(a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow], benchmark: Benchmark | None) -> _Units:
    formulas = benchmark.own_formulas if benchmark else {}

    def credit(rows: Sequence[ScoredRow]) -> tuple[Floats, Ints]:
        by_rule = credits_by_rule(rows, benchmark.rule if benchmark else "pairs")
        values = by_rule.official if benchmark else by_rule.shared
        for unit, row in enumerate(by_rule.rows):
            if rows[row].source in formulas:
                values[unit] = all(rows[row].rewards[i] > rows[row].rewards[j] for i, j in rows[row].preferences)
        return values, by_rule.rows

    def with_prompt(row: ScoredRow) -> ScoredRow:  # rows that a formula takes together are one cluster
        formula = formulas.get(row.source)
        return row._replace(cluster=f"{row.source} {formula.prompt_of(row.id)}") if formula else row

    (a, places), (b, _) = credit(a_rows), credit(b_rows)
    sources = np.array([row.source or NO_SOURCE for row in a_rows], dtype=object)
    return _Units(a, b, clusters_of([with_prompt(row) for row in a_rows])[places], sources[places])


def _of_means(units: _Units, weights: Weights | None = None) -> Difference:
    """The difference of the mean over all units, or of a weighted mean of the sources' means."""
    if not len(units.a):
        return _difference(units, (None, None, None), None, None)
    strata, shares = _strata(units, weights or {}), np.array([*(weights or {"": 1.0}).values()], dtype=np.float64)
    shares /= shares.sum()
    means, draws = _means(units, strata) @ shares, _drawn(units, strata) @ shares
    return _difference(units, means, draws, detectable_difference(units.a - units.b, units.clusters, strata, shares))


def _of_scores(
    units: _Units, weights: Weights, a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow], benchmark: Benchmark
) -> Difference | None:
    """The difference of a weighted mean of subsets' scores; None if a subset is missing or its score is undefined."""
    units = units.of(list(weights))
    if not weights or not set(weights) <= set(units.sources):
        return None
    own = [name for name in weights if name in benchmark.own_formulas]
    if not own:
        return _of_means(units, weights)
    others = {name: weight for name, weight in weights.items() if name not in own}
    columns, draws = list[Floats](), list[Floats]()  # of the parts of the mean: [3] A, B, their difference; [R]
    for name in own:
        formula = benchmark.own_formulas[name]
        a, b = ([scored_prompt(row) for row in rows if row.source == name] for rows in (a_rows, b_rows))
        of_a, of_b = formula.score(a, 1).score, formula.score(b, 1).score
        if of_a is None or of_b is None:
            return None
        columns.append(np.array([of_a, of_b, of_a - of_b]))
        draws.append(formula.difference_draws(a, b, 1))
    if others:  # a formula's prompts are resampled apart: no other subset has rows of them
        rest = units.of(list(others))
        strata = _strata(rest, others)
        columns += list(_means(rest, strata).T)
        draws += list(_drawn(rest, strata).T)
    shares = np.array([weights[name] for name in [*own, *others]]) / sum(weights.values())
    drawn = np.column_stack(draws) @ shares
    # as `detectable_difference`, by the standard deviation of the draws
    detectable = float((Z + Z_POWER) * np.nanstd(drawn)) or None
    return _difference(units, np.column_stack(columns) @ shares, drawn, detectable)


def _strata(units: _Units, weights: Weights) -> Ints:
    """[n] place of each unit's source among the weights; all 0 without weights."""
    names = list(weights)
    return np.array([names.index(source) if names else 0 for source in units.sources], dtype=np.int64)


def _means(units: _Units, strata: Ints) -> Floats:
    """[3, S] means of A, of B and of their difference by stratum."""
    columns = (units.a, units.b, units.a - units.b)
    return np.array([np.bincount(strata, weights=values) / np.bincount(strata) for values in columns])


def _drawn(units: _Units, strata: Ints) -> Floats:
    """[R, S] mean differences by stratum, of resampled prompts."""
    return resampled_means(units.a - units.b, units.clusters, strata)


def _difference(
    units: _Units, means: Sequence[float | None] | Floats, draws: Floats | None, detectable: float | None
) -> Difference:
    """The difference of scores of the units.

    Args:
        units: for the test.
        means: score of A, score of B, and their difference.
        draws: [R] differences of the scores on resampled prompts; None without units.
        detectable: of the result.
    """
    _, labels = np.unique(units.clusters, return_inverse=True)
    net = np.bincount(labels, weights=units.a - units.b)
    a_better, b_better = int((net > 0).sum()), int((net < 0).sum())
    low = high = p = within_noise = None
    if draws is not None:
        interval, p = difference_interval(draws, len(net)), mcnemar_exact(a_better, b_better)
        low, high = interval.low, interval.high
        within_noise = p >= 0.05 or low <= 0 <= high
    a, b, difference = (None if mean is None else float(mean) for mean in means)
    return Difference(
        len(units.a), a, b, difference, low, high, p, within_noise, len(net), a_better, b_better, detectable
    )
