"""Scored rows of a benchmark, or accuracies of its subsets → its result: subsets, sections and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rmtrain.data.benchmarks.definition import Benchmark, Sizes, era_scores
from rmtrain.evaluation.results import ScoredRow
from rmtrain.evaluation.subsets import Score, Subset, by_source, formula_subset, subsets_of, weighted_score
from rmtrain.json_values import JsonObject


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of a benchmark; sections and scores follow from the subsets."""

    benchmark: Benchmark
    ckpt: str | None
    subsets: Mapping[str, Subset]
    prior: Mapping[str, Subset]  # the prior sets by name; empty if not scored
    details: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # section → name → figure of its rows
    terms: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # subset with its own formula → terms
    truncated: int | None = None  # truncated rows; None if no rows were scored
    identical: int | None = None  # preferences between completions of the same tokens; None if no rows were scored

    @property
    def sections(self) -> dict[str, Score | None]:
        """Scores of the sections; None for a section that lacks a subset."""
        weights = self.benchmark.sections(_sizes(self.subsets))
        return {section: weighted_score(self.subsets, by_subset) for section, by_subset in weights.items()}

    def to_json(self) -> JsonObject:
        """The result as in `rewardbench --json`, without the entries on the scorer."""
        expected, prior = self.benchmark.subsets, self.benchmark.prior if self.prior else None
        unknown = sorted(set(self.subsets) - set(expected))
        details = dict.fromkeys(self.benchmark.detail_names)
        needed = (*expected, *(prior.in_score if prior else ()))
        return {
            "benchmark": self.benchmark.name,
            "ckpt": self.ckpt,
            **_totals({name: self.subsets[name] for name in (*expected, *unknown) if name in self.subsets}),
            "sections": {
                name: {**asdict(score), **details, **self.details.get(name, {})} if score else None
                for name, score in self.sections.items()
            },
            "prior_sets": self._prior_json(prior.in_score) if prior else None,
            "scores": {name: {**era, **details, **self._mean_details()} for name, era in self._eras().items()},
            "missing_subsets": [name for name in needed if name not in {**self.subsets, **self.prior}],
            "incomplete_subsets": self._incomplete(),
            "unknown_subsets": unknown + [name for name in self.prior if prior and name not in prior.counts],
            **{subset.lower(): dict(terms) for subset, terms in self.terms.items()},
            "truncated": self.truncated,
            "identical": self.identical,
        }

    def _eras(self) -> dict[str, JsonObject]:
        """The scores by each formula; entries on prior sets only if the benchmark has prior sets."""
        every, sizes, scores = {**self.subsets, **self.prior}, _sizes(self.subsets), {}
        plain = era_scores(self.benchmark, _accuracies(self.subsets), _accuracies(self.prior), sizes)
        for name, era in self.benchmark.eras(sizes, self.prior).items():
            scores[name] = _score_json(weighted_score(self.subsets, era.overall), "mean_of_sections", "mean_half", "")
            if self.benchmark.prior is None:
                scores[name]["with_prior_sets"] = None
                continue
            with_prior = weighted_score(every, era.with_prior)
            scores[name] |= _score_json(with_prior, "with_prior_sets", "with_prior_half", "with_prior_")
            scores[name] |= {"sections": plain[name].sections, "prior_sets": plain[name].prior_sets}
        return scores

    def _prior_json(self, in_score: Sequence[str]) -> JsonObject:
        score = weighted_score(self.prior, dict.fromkeys(in_score, 1))
        return {**(asdict(score) if score else dict.fromkeys(("score", "low", "high"))), **_totals(self.prior)}

    def _mean_details(self) -> dict[str, float]:
        """Means of the sections' details, if every section has them."""
        names = self.benchmark.detail_names if set(self.details) == set(self.sections) else ()
        return {name: float(np.mean([part[name] for part in self.details.values()])) for name in names}

    def _incomplete(self) -> dict[str, dict[str, int]]:
        """Subsets whose number of rows differs from the published one."""
        split_sizes, n = self.benchmark.split_sizes, sum(_sizes(self.subsets).values())
        if split_sizes and n not in split_sizes:
            return {"all rows": {"n": n, "expected": split_sizes[0]}}
        counts = {**self.benchmark.counts, **self.benchmark.prior_counts}
        return {
            name: {"n": subset.n, "expected": counts[name]}
            for name, subset in {**self.subsets, **self.prior}.items()
            if subset.n != counts.get(name, subset.n)
        }


def _score_json(score: Score | None, mean: str, half: str, prefix: str) -> JsonObject:
    """The entries of a score, under the names of its era."""
    names = {"score": mean, "low": f"{prefix}low", "high": f"{prefix}high", "score_half": half}
    names["length_baseline"] = f"{prefix}length_baseline"
    return {name: getattr(score, key, None) for key, name in names.items()}


def benchmark_result(
    benchmark: Benchmark, rows: Sequence[ScoredRow], prior_rows: Sequence[ScoredRow] = (), ckpt: str | None = None
) -> BenchmarkResult:
    """The result of scored rows, whose `source` is the subset, or of a prior set's rows the set.

    The accuracy of a subset follows the benchmark's rule, and `accuracy_half` counts a tie 1/2. Intervals are 95 %,
    clustered by prompt within subsets.
    """
    groups = by_source(rows)
    with_formula = {name: groups.pop(name) for name in benchmark.own_formulas if name in groups}
    subsets, terms = subsets_of(groups, benchmark.rule, seed=0), {}
    for name, own in with_formula.items():
        subset, terms[name] = formula_subset(benchmark.own_formulas[name], own)
        subsets |= {name: subset} if subset else {}
    details = {}
    if benchmark.details is not None:
        for section, weights in benchmark.sections(_sizes(subsets)).items():
            if set(weights) <= set(groups):
                pooled = [row.rewards for name in weights for row in groups[name]]
                details[section] = benchmark.details(np.array(pooled, dtype=np.float64))
    return BenchmarkResult(
        benchmark,
        ckpt,
        subsets,
        subsets_of(by_source(prior_rows), benchmark.rule, seed=1),
        details,
        terms,
        truncated=sum(row.truncated for row in [*rows, *prior_rows]),
        identical=sum(row.identical for row in [*rows, *prior_rows]),
    )


def training_check(sidecar: Mapping[str, Any], benchmark: str) -> JsonObject | None:
    """The record in a checkpoint's `rmtrain.json` of how its training rows were compared with a benchmark.

    None: nothing is recorded, as in models of others and of earlier versions. `checked` is false for rows that were not
    compared; otherwise the other fields are those of `Check.record`.
    """
    checks = sidecar.get("checks")
    if not isinstance(checks, list):
        return None
    recorded = (check for check in checks if isinstance(check, dict) and check.get("name") == benchmark)
    check = next(recorded, None)
    return {"checked": False} if check is None else {"checked": True, **check}


def _sizes(subsets: Mapping[str, Subset]) -> Sizes:
    return {name: subset.n for name, subset in subsets.items()}


def _accuracies(subsets: Mapping[str, Subset]) -> dict[str, float]:
    return {name: subset.accuracy for name, subset in subsets.items()}


def _totals(subsets: Mapping[str, Subset]) -> JsonObject:
    """Number of rows, and entries of all subsets."""
    entries = {name: subset.to_json() for name, subset in subsets.items()}
    return {"n": sum(_sizes(subsets).values()), "subsets": entries}
