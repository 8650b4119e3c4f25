"""The results of RewardBench 1 and 2, RM-Bench and JudgeBench."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from rmtrain.evaluation.bench_figures import (
    Subset,
    best_of_subsets,
    by_source,
    strict_subsets,
    weighted_figures,
)
from rmtrain.evaluation.bench_rows import JUDGEBENCH_SECTIONS, ties_id
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics import rewardbench, rewardbench2, rm_bench
from rmtrain.metrics.rewardbench2 import TiesPrompt, ties_score

Result = dict[str, Any]  # as `rewardbench --json` gives it, but for what scored the rows

_STYLES: dict[str, float | None] = dict.fromkeys(("hard", "normal", "easy"))


def rewardbench1_figures(rows: Sequence[ScoredRow], prior_rows: Sequence[ScoredRow] = ()) -> Result:
    """Subsets, sections, and the scores of every era; `prior_rows` is empty where the prior sets were not run."""
    return rewardbench1_of_subsets(
        strict_subsets(by_source(rows), seed=0), strict_subsets(by_source(prior_rows), seed=1)
    )


def rewardbench1_of_subsets(subsets: Mapping[str, Subset], prior: Mapping[str, Subset] | None = None) -> Result:
    """The figures of known subsets and prior sets; what lacks a subset is None."""
    prior = prior or {}
    every = {**subsets, **prior}
    sizes = {name: subset.n for name, subset in subsets.items()}
    accuracies, of_prior = ({name: part.accuracy for name, part in parts.items()} for parts in (subsets, prior))
    scores = {}
    for era, score in rewardbench.rewardbench_scores(accuracies, of_prior, sizes).items():
        with_prior = weighted_figures(every, rewardbench.with_prior_weights(era, prior)) or {}
        scores[era] = {
            **_score(weighted_figures(subsets, rewardbench.overall_weights(era, sizes))),
            "with_prior_sets": score.with_prior_sets,
            "with_prior_low": with_prior.get("low"),
            "with_prior_high": with_prior.get("high"),
            "with_prior_half": with_prior.get("score_half"),
            "with_prior_length_baseline": with_prior.get("length_baseline"),
            "sections": score.sections,
            "prior_sets": score.prior_sets,
        }
    weights = rewardbench.SECTION_WEIGHTS["current"].items()
    sections = {section: weighted_figures(subsets, by_subset) for section, by_subset in weights}
    figures = _figures(subsets, sections, scores, rewardbench.SUBSETS, rewardbench.COUNTS)
    if prior:
        score_of_four = weighted_figures(prior, dict.fromkeys(rewardbench.PRIOR_SETS, 1))
        figures["prior_sets"] = {**(score_of_four or {"score": None, "low": None, "high": None}), **_totals(prior)}
        figures["missing_subsets"] += [name for name in rewardbench.PRIOR_SETS if name not in prior]
        figures["incomplete_subsets"] |= _incomplete(prior, rewardbench.PRIOR_COUNTS)
        figures["unknown_subsets"] += [name for name in prior if name not in rewardbench.PRIOR_COUNTS]
    return figures


def rewardbench2_figures(rows: Sequence[ScoredRow]) -> Result:
    """Six subsets, each a section; the score is their plain mean."""
    groups = by_source(rows)
    ties_rows = groups.pop("Ties", [])
    subsets = best_of_subsets(groups, seed=0)
    prompts = [ties_prompt(row) for row in ties_rows]
    ties = ties_score(prompts, seed=1)
    if ties.score is not None:
        known = all(row.lengths for row in ties_rows)
        by_length = ties_score([ties_prompt(row._replace(rewards=row.lengths)) for row in ties_rows]) if known else None
        subsets["Ties"] = Subset(
            len(prompts),
            ties.score,
            # a mean over prompts of what lies within 0 and about 1 varies at most as an accuracy over as many prompts
            size=len({prompt.number for prompt in prompts}),
            ties=sum(min(p.rewards[: p.right]) == max(p.rewards[p.right :]) for p in prompts),
            length_baseline=by_length.score if by_length else None,
            draws=ties.draws,
        )
    return {**rewardbench2_of_subsets(subsets), **({"ties": ties.terms} if prompts else {})}


def rewardbench2_of_subsets(subsets: Mapping[str, Subset]) -> Result:
    """The figures of known subsets."""
    names, counts = rewardbench2.SUBSETS, rewardbench2.COUNTS
    scores = {"current": _score(weighted_figures(subsets, dict.fromkeys(names, 1)))}
    return _figures(subsets, {name: weighted_figures(subsets, {name: 1}) for name in names}, scores, names, counts)


def ties_prompt(row: ScoredRow) -> TiesPrompt:
    """A row of the Ties subset as its formula takes it."""
    form, number = ties_id(row.id)
    right = 1 + max((better for better, _ in row.preferences), default=0)
    return TiesPrompt("ref" if form == "ref" else "tied", number, row.rewards, right)


def rm_bench_figures(rows: Sequence[ScoredRow]) -> Result:
    """Four sections of nine strict comparisons a prompt; the two safety domains are pooled.

    Hard, normal and easy accuracy are means over the four sections.
    """
    groups = by_source(rows)
    figures = rm_bench_of_subsets(strict_subsets(groups, seed=0))
    for section, domains in rm_bench.DOMAINS.items():
        if figures["sections"][section]:
            pooled = np.array([row.rewards for domain in domains for row in groups[domain]], dtype=np.float64)
            figures["sections"][section] |= rm_bench.style_accuracy(pooled)
    score = figures["scores"]["current"]
    for level in _STYLES if score["mean_of_sections"] is not None else ():
        score[level] = float(np.mean([section[level] for section in figures["sections"].values()]))
    return figures


def rm_bench_of_subsets(subsets: Mapping[str, Subset]) -> Result:
    """The figures of known domains; accuracies by style need the rows."""
    overall: dict[str, float] = {}
    sections: dict[str, Result | None] = {}
    for section, domains in rm_bench.DOMAINS.items():
        rows = {domain: subsets[domain].n if domain in subsets else 1 for domain in domains}
        figures = weighted_figures(subsets, rows)
        sections[section] = {**figures, **_STYLES} if figures else None
        overall |= {domain: n / sum(rows.values()) for domain, n in rows.items()}
    score = {**_score(weighted_figures(subsets, overall)), **_STYLES}
    return _figures(subsets, sections, {"current": score}, overall)


def judgebench_figures(rows: Sequence[ScoredRow]) -> Result:
    """Four sections; the score, `current`, is the accuracy over all rows, and `section_mean` the sections' mean."""
    return judgebench_of_subsets(strict_subsets(by_source(rows), seed=0))


def judgebench_of_subsets(subsets: Mapping[str, Subset]) -> Result:
    """The figures of known sections."""
    by_rows = {name: subsets[name].n if name in subsets else 0 for name in JUDGEBENCH_SECTIONS}
    scores = {
        "current": _score(weighted_figures(subsets, by_rows)),
        "section_mean": _score(weighted_figures(subsets, dict.fromkeys(JUDGEBENCH_SECTIONS, 1))),
    }
    sections = {name: weighted_figures(subsets, {name: 1}) for name in JUDGEBENCH_SECTIONS}
    return _figures(subsets, sections, scores, JUDGEBENCH_SECTIONS)


def _score(figures: Mapping[str, float | None] | None) -> dict[str, Any]:
    """An era's score, of the figures of a weighted mean."""
    figures = figures or {}
    return {
        "mean_of_sections": figures.get("score"),
        "low": figures.get("low"),
        "high": figures.get("high"),
        "mean_half": figures.get("score_half"),
        "length_baseline": figures.get("length_baseline"),
        "with_prior_sets": None,
    }


def _figures(
    subsets: Mapping[str, Subset],
    sections: Mapping[str, Any],
    scores: Mapping[str, Any],
    expected: Collection[str],
    counts: Mapping[str, int] | None = None,
) -> Result:
    """A result; `counts` are the published numbers of rows, where they are known."""
    unknown = sorted(set(subsets) - set(expected))
    return {
        **_totals({name: subsets[name] for name in [*expected, *unknown] if name in subsets}),
        "sections": dict(sections),
        "prior_sets": None,
        "scores": dict(scores),
        "missing_subsets": [name for name in expected if name not in subsets],
        "incomplete_subsets": _incomplete(subsets, counts or {}),
        "unknown_subsets": unknown,
    }


def _totals(subsets: Mapping[str, Subset]) -> dict[str, Any]:
    """Rows and entries of all subsets."""
    return {
        "n": sum(subset.n for subset in subsets.values()),
        "subsets": {name: subset.to_json() for name, subset in subsets.items()},
    }


def _incomplete(subsets: Mapping[str, Subset], counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Subsets with other than the published number of rows."""
    return {
        name: {"n": subset.n, "expected": counts[name]}
        for name, subset in subsets.items()
        if name in counts and subset.n != counts[name]
    }
