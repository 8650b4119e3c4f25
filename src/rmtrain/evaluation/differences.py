"""Paired statistics for two models on the same rows: difference, interval, exact test and verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmtrain.data.benchmarks import benchmark_named
from rmtrain.data.benchmarks.definition import Benchmark, Weights
from rmtrain.errors import DataError
from rmtrain.evaluation.results import NO_SOURCE, ScoredRow, clusters_of, read_rows
from rmtrain.evaluation.rows_files import result_beside
from rmtrain.evaluation.subsets import credits_by_rule, scored_prompt
from rmtrain.json_values import JsonObject
from rmtrain.metrics.intervals import (
    RESAMPLES,
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
    """Model A minus model B on n units: preferences or, by the rule of some benchmarks, rows.

    The interval is a paired bootstrap over prompts. The exact McNemar test counts prompts on which one model is right
    more often than the other, since the preferences of one prompt are not independent; with one preference per prompt
    and no ties it is the usual test. Figures of no units are None.
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
    # smallest true difference that this comparison would detect with a power of 80 %
    detectable: float | None

    @property
    def verdict(self) -> str:
        """One sentence, which claims a difference only if interval and test agree."""
        if self.difference is None or self.mcnemar_p is None:
            return "There are no preferences to compare on."
        if self.a_better == self.b_better == 0:
            return f"A and B are equal on each of {self.prompts} prompts."
        better, points = ("A" if self.difference > 0 else "B"), 100 * abs(self.difference)
        if not self.within_noise:
            return f"{better} is better, by {points:.2f} points (p = {self.mcnemar_p:.2g})."
        lead = f"{better} is ahead by {points:.2f} points" if points else "the accuracies are equal"
        least = ""
        if self.detectable is not None:
            least = f"; a difference of {100 * self.detectable:.2f} would be detected four times in five"
        return f"Within noise: {lead} (p = {self.mcnemar_p:.2g}){least}."


_NO_UNITS = Difference(0, None, None, None, None, None, None, None, prompts=0, a_better=0, b_better=0, detectable=None)


@dataclass(frozen=True)
class Comparison:
    """Two models compared on their common rows."""

    overall: Difference
    groups: int  # rows
    only_a: int  # rows of A that B lacks
    only_b: int
    not_alike: int  # rows with the same id but different prompts or preferences
    benchmark: str | None
    score: Difference | None  # difference of the benchmark's current score
    sections: Mapping[str, Difference | None]  # None: a subset is missing
    by_source: Mapping[str, Difference | None]

    def to_json(self) -> JsonObject:
        """The comparison as in `compare --json`."""
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
    """Compare two models on their common rows.

    A tie counts 1/2; benchmarks have their own rules. A subset with its own formula has no figure per row: its score is
    bootstrapped as a whole, and its test counts prompts on which all right completions beat all wrong ones. The figures
    of all rows and of a source count its rows in the same way.

    Raises:
        DataError: they have no common row, or lack rewards that the benchmark needs.
    """
    by_id = {row.id: row for row in b_rows}
    shared = [(row, by_id[row.id]) for row in a_rows if row.id in by_id]
    alike = [(a, _in_order_of(a, b)) for a, b in shared if _alike(a, b)]
    only_a, only_b, not_alike = len(a_rows) - len(shared), len(b_rows) - len(shared), len(shared) - len(alike)
    if not alike and (a_rows or b_rows):
        raise DataError(
            f"A and B have no common row: {only_a} are only in A, {only_b} only in B, and {not_alike} have the same id "
            "but different prompts or preferences",
            "score both on the same data: rmtrain compare A B --data SOURCE",
        )
    if benchmark is not None and benchmark.needs_rewards and any(a.margins or b.margins for a, b in alike):
        raise DataError(
            f"{benchmark.name} needs rewards, which models that only compare completions do not give",
            "compare reward models",
        )
    rows_a, rows_b = [a for a, _ in alike], [b for _, b in alike]
    units, own = _units(rows_a, rows_b, benchmark), _own_scores(rows_a, rows_b, benchmark)
    sizes = Counter(row.source for row in rows_a)
    sections = benchmark.sections(sizes) if benchmark else {}
    return Comparison(
        overall=_of_scores(units._replace(sources=np.full(len(units.a), "")), {"": 1}) or _NO_UNITS,
        groups=len(alike),
        only_a=only_a,
        only_b=only_b,
        not_alike=not_alike,
        benchmark=benchmark.name if benchmark else None,
        score=_of_scores(units, benchmark.eras(sizes, ())["current"].overall, own) if benchmark else None,
        sections={name: _of_scores(units, weights, own) for name, weights in sections.items()},
        by_source={source: _of_scores(units, {source: 1}) for source in sorted(set(units.sources))},
    )


def _in_order_of(a: ScoredRow, b: ScoredRow) -> ScoredRow:
    """B with its preferences, and their margins if any, in A's order."""
    margins = dict(zip(b.preferences, b.margins, strict=bool(b.margins)))
    return b._replace(preferences=a.preferences, margins=tuple(margins[p] for p in a.preferences if margins))


def _alike(a: ScoredRow, b: ScoredRow) -> bool:
    return set(a.preferences) == set(b.preferences) and (a.cluster == b.cluster or not (a.cluster and b.cluster))


class _Units(NamedTuple):
    """The credit of each unit (a preference or, by the benchmark's rule, a row) for A and for B."""

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

    def with_prompt(row: ScoredRow) -> ScoredRow:  # rows that a formula combines are one cluster
        formula = formulas.get(row.source)
        return row._replace(cluster=f"{row.source} {formula.prompt_of(row.id)}") if formula else row

    (a, places), (b, _) = credit(a_rows), credit(b_rows)
    sources = np.array([row.source or NO_SOURCE for row in a_rows], dtype=object)
    return _Units(a, b, clusters_of([with_prompt(row) for row in a_rows])[places], sources[places])


class _OwnScore(NamedTuple):
    """The score of a subset with its own formula."""

    means: Floats  # [3] score of A, score of B, their difference
    draws: Floats  # [R] differences of the scores on resampled prompts


def _own_scores(
    a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow], benchmark: Benchmark | None
) -> dict[str, _OwnScore | None]:
    """Scores of subsets with their own formula; None if the score is undefined for these rows."""
    scores: dict[str, _OwnScore | None] = {}
    for name, formula in benchmark.own_formulas.items() if benchmark else ():
        a, b = ([scored_prompt(row) for row in rows if row.source == name] for rows in (a_rows, b_rows))
        of_a, of_b = formula.score(a, 1).score, formula.score(b, 1).score
        scores[name] = None
        if of_a is not None and of_b is not None:
            draws = formula.difference_draws(a, b, 1)
            scores[name] = _OwnScore(np.array([of_a, of_b, of_a - of_b]), draws)
    return scores


def _of_scores(units: _Units, weights: Weights, own: Mapping[str, _OwnScore | None] | None = None) -> Difference | None:
    """The difference of a weighted mean of subsets' scores; None if a subset is missing or its score is undefined.

    A subset's score is its own formula's, as in `own`, or else the mean of its units.
    """
    scores, units = own or {}, units.of(list(weights))
    if not weights or not set(weights) <= set(units.sources) or any(scores.get(name, 0) is None for name in weights):
        return None
    shares = np.array([*weights.values()], dtype=np.float64) / sum(weights.values())
    means, draws = np.zeros((3, len(weights))), np.zeros((RESAMPLES, len(weights)))
    for place, name in enumerate(weights):
        if (score := scores.get(name)) is not None:
            means[:, place], draws[:, place] = score
    # a formula's prompts are resampled separately, since no other subset contains them
    plain = [name for name in weights if name not in scores]
    rest, places = units.of(plain), [list(weights).index(name) for name in plain]
    strata = np.array([plain.index(source) for source in rest.sources], dtype=np.int64)
    if plain:
        columns = (rest.a, rest.b, rest.a - rest.b)
        means[:, places] = [np.bincount(strata, weights=values) / np.bincount(strata) for values in columns]
        draws[:, places] = resampled_means(rest.a - rest.b, rest.clusters, strata)
    if len(plain) == len(weights):
        detectable = detectable_difference(units.a - units.b, units.clusters, strata, shares)
    else:  # as in `detectable_difference`, from the standard deviation of the draws
        detectable = float((Z + Z_POWER) * np.nanstd(draws @ shares)) or None
    return _difference(units, means @ shares, draws @ shares, detectable)


def _difference(units: _Units, means: Floats, draws: Floats, detectable: float | None) -> Difference:
    """A difference from means of A, of B and of both, and from [R] draws; the test is over the units' clusters."""
    _, labels = np.unique(units.clusters, return_inverse=True)
    net = np.bincount(labels, weights=units.a - units.b)
    a_better, b_better = int((net > 0).sum()), int((net < 0).sum())
    interval, p = difference_interval(draws, len(net)), mcnemar_exact(a_better, b_better)
    a, b, difference = map(float, means)
    return Difference(
        n=len(units.a),
        a=a,
        b=b,
        difference=difference,
        low=interval.low,
        high=interval.high,
        mcnemar_p=p,
        within_noise=p >= 0.05 or interval.low <= 0 <= interval.high,
        prompts=len(net),
        a_better=a_better,
        b_better=b_better,
        detectable=detectable,
    )


def compare_files(paths: Sequence[Path]) -> Comparison:
    """Compare two rows files by the rules of the benchmark named in the results beside them.

    Raises:
        DataError: a file can't be read, the benchmarks differ, or there is no common row.
    """
    benchmarks = {name for path in paths if (name := result_beside(path).get("benchmark"))}
    if len(benchmarks) > 1:
        raise DataError(
            f"A and B were scored on different benchmarks: {' and '.join(sorted(benchmarks))}", "name one of them"
        )
    a_rows, b_rows = map(read_rows, paths)
    return compare_rows(a_rows, b_rows, benchmark_named(benchmarks.pop()) if benchmarks else None)
