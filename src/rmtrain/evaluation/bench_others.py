"""The results of RewardBench 2, RM-Bench and JudgeBench."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rmtrain.evaluation.bench_figures import (
    Subset,
    by_source,
    credit_subset,
    incomplete,
    resampled,
    strict_subset,
    totals,
    weighted_figures,
)
from rmtrain.evaluation.bench_rows import JUDGEBENCH_SECTIONS, ties_id
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics import rewardbench2, rm_bench
from rmtrain.metrics.rewardbench2 import TiesPrompt, TiesScore, ties_score
from rmtrain.metrics.rm_bench import style_accuracy, style_matrix

_STYLES: dict[str, float | None] = dict.fromkeys(("hard", "normal", "easy"))


def rewardbench2_figures(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Six subsets, each a section; the score is their plain mean.

    The era `current` leaves prompts without spread out of the Ties margin, as the `rewardbench` package does up to
    0.1.4; `main_branch` gives them the limit of the formula.
    """
    groups = by_source(rows)
    subsets = resampled(
        {
            name: credit_subset(members, rewardbench2.best_of_credit)
            for name, members in groups.items()
            if name != "Ties"
        },
        seed=0,
    )
    if "Ties" not in groups:
        return rewardbench2_of_subsets(subsets)
    prompts = [ties_prompt(row) for row in groups["Ties"]]
    ties = ties_score(prompts, seed=1)
    if ties.score is None or ties.interval is None:
        return {**rewardbench2_of_subsets(subsets), "ties": _ties_json(ties)}
    # a mean over prompts of what lies within 0 and about 1 varies at most as an accuracy over as many prompts
    size = len({prompt.number for prompt in prompts})
    known = all(row.lengths for row in groups["Ties"])
    longer = ties_score([ties_prompt(row._replace(rewards=row.lengths)) for row in groups["Ties"]]) if known else None
    subset = Subset(
        len(prompts),
        ties.score,
        size,
        ties.interval,
        ties=sum(min(p.rewards[: p.right]) == max(p.rewards[p.right :]) for p in prompts),
        length_baseline=longer.score if longer else None,
        draws=ties.draws,
    )
    limit = ties_score(prompts, "limit")
    assert limit.score is not None
    figures = rewardbench2_of_subsets({**subsets, "Ties": subset}, ties_limit=limit.score)
    figures["sections"]["Ties"] |= {"low": ties.interval.low, "high": ties.interval.high}
    return {**figures, "ties": _ties_json(ties)}


def rewardbench2_of_subsets(subsets: Mapping[str, Subset], ties_limit: float | None = None) -> dict[str, Any]:
    """The figures of known subsets; `ties_limit` is the Ties score by the other convention, where it is known."""
    names = [*rewardbench2.SUBSETS, *sorted(set(subsets) - set(rewardbench2.SUBSETS))]
    ordered = {name: subsets[name] for name in names if name in subsets}
    mean = weighted_figures(ordered, dict.fromkeys(rewardbench2.SUBSETS, 1))
    scores = {"current": _score(mean)}
    if mean and ties_limit is not None:
        others = [ordered[name].accuracy for name in rewardbench2.SUBSETS if name != "Ties"]
        scores["main_branch"] = {**_score(mean), "mean_of_sections": float(np.mean([*others, ties_limit]))}
    sections = {name: weighted_figures(ordered, {name: 1}) for name in rewardbench2.SUBSETS}
    figures = _figures(ordered, sections, scores, rewardbench2.SUBSETS)
    return {**figures, "incomplete_subsets": incomplete(ordered, rewardbench2.COUNTS)}


def ties_prompt(row: ScoredRow) -> TiesPrompt:
    """A row of the Ties subset as its formula takes it."""
    form, number = ties_id(row.id)
    right = 1 + max((better for better, _ in row.preferences), default=0)
    return TiesPrompt("ref" if form == "ref" else "tied", number, row.rewards, right)


def _ties_json(ties: TiesScore) -> dict[str, float | None]:
    return {
        "tied_accuracy": ties.tied_accuracy,
        "ref_accuracy": ties.ref_accuracy,
        "preferred": ties.preferred,
        "preferred_hard": ties.preferred_hard,
        "margin": ties.margin,
    }


def rm_bench_figures(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Four sections of nine strict comparisons a prompt; the two safety domains are pooled.

    Hard, normal and easy accuracy are means over the four sections.
    """
    groups = by_source(rows)
    figures = rm_bench_of_subsets(resampled({name: strict_subset(members) for name, members in groups.items()}, 0))
    score, levels = figures["scores"]["current"], ("hard", "normal", "easy")
    for section, domains in rm_bench.DOMAINS.items():
        if figures["sections"][section]:
            pooled = np.array([row.rewards for domain in domains for row in groups[domain]], dtype=np.float64)
            figures["sections"][section] |= asdict(style_accuracy(style_matrix(pooled)))
    for level in levels if score["mean_of_sections"] is not None else ():
        score[level] = float(np.mean([section[level] for section in figures["sections"].values()]))
    return figures


def rm_bench_of_subsets(subsets: Mapping[str, Subset]) -> dict[str, Any]:
    """The figures of known domains; accuracies by style need the rows."""
    weights = {
        section: {domain: subsets[domain].n if domain in subsets else 1 for domain in domains}
        for section, domains in rm_bench.DOMAINS.items()
    }
    overall = {domain: n / sum(by_domain.values()) for by_domain in weights.values() for domain, n in by_domain.items()}
    sections = {
        section: {**figures, **_STYLES} if (figures := weighted_figures(subsets, by_domain)) else None
        for section, by_domain in weights.items()
    }
    score = {**_score(weighted_figures(subsets, overall)), **_STYLES}
    return _figures(subsets, sections, {"current": score}, list(overall))


def judgebench_figures(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Four sections; the score, `current`, is the accuracy over all rows, and `section_mean` the sections' mean."""
    subsets = {name: strict_subset(members) for name, members in by_source(rows).items()}
    return judgebench_of_subsets(resampled(subsets, seed=0))


def judgebench_of_subsets(subsets: Mapping[str, Subset]) -> dict[str, Any]:
    """The figures of known sections."""
    sections = {name: weighted_figures(subsets, {name: 1}) for name in JUDGEBENCH_SECTIONS}
    by_rows = {name: subsets[name].n if name in subsets else 0 for name in JUDGEBENCH_SECTIONS}
    scores = {
        "current": _score(weighted_figures(subsets, by_rows)),
        "section_mean": _score(weighted_figures(subsets, dict.fromkeys(JUDGEBENCH_SECTIONS, 1))),
    }
    return _figures(subsets, sections, scores, list(JUDGEBENCH_SECTIONS))


def _score(figures: Mapping[str, float | None] | None) -> dict[str, float | None]:
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
    scores: Mapping[str, dict[str, float | None]],
    expected: Sequence[str],
) -> dict[str, Any]:
    return {
        **totals(subsets),
        "sections": dict(sections),
        "prior_sets": None,
        "scores": dict(scores),
        "missing_subsets": [name for name in expected if name not in subsets],
        "incomplete_subsets": {},
        "unknown_subsets": [name for name in subsets if name not in expected],
    }
