"""The result of RewardBench 1: subsets, sections, and the scores of every era."""

from collections.abc import Mapping, Sequence
from typing import Any

from rmtrain.evaluation.bench_figures import (
    Subset,
    by_source,
    incomplete,
    resampled,
    strict_subset,
    totals,
    weighted_figures,
)
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics.rewardbench import (
    COUNTS,
    PRIOR_COUNTS,
    PRIOR_SETS,
    SECTION_WEIGHTS,
    SUBSETS,
    EraScore,
    overall_weights,
    rewardbench_scores,
    with_prior_weights,
)


def rewardbench1_figures(rows: Sequence[ScoredRow], prior_rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """The figures of scored rows; `prior_rows` is empty where the prior sets were not run."""
    return figures_of_subsets(
        resampled({name: strict_subset(members) for name, members in by_source(rows).items()}, seed=0),
        resampled({name: strict_subset(members) for name, members in by_source(prior_rows).items()}, seed=1),
    )


def figures_of_subsets(subsets: Mapping[str, Subset], prior: Mapping[str, Subset]) -> dict[str, Any]:
    """The figures of known subsets and prior sets; what lacks a subset is None."""
    core = {name: subsets[name] for name in [*SUBSETS, *sorted(set(subsets) - set(SUBSETS))] if name in subsets}
    scored = {name: core[name] for name in SUBSETS if name in core}
    known_prior = {name: subset for name, subset in prior.items() if name in PRIOR_COUNTS}
    counts = {name: subset.n for name, subset in scored.items()}
    scores = rewardbench_scores(
        {name: subset.accuracy for name, subset in scored.items()},
        {name: subset.accuracy for name, subset in known_prior.items()},
        counts,
    )
    prior_figures = weighted_figures(known_prior, dict.fromkeys(PRIOR_SETS, 1))
    return {
        **totals(core),
        "sections": {
            section: weighted_figures(scored, weights) for section, weights in SECTION_WEIGHTS["current"].items()
        },
        "prior_sets": {**(prior_figures or {"score": None, "low": None, "high": None}), **totals(prior)}
        if prior
        else None,
        "scores": {era: _era_json(era, score, scored, known_prior) for era, score in scores.items()},
        "missing_subsets": [name for name in SUBSETS if name not in scored]
        + [name for name in PRIOR_SETS if prior and name not in prior],
        "incomplete_subsets": incomplete({**core, **prior}, {**COUNTS, **PRIOR_COUNTS}),
        "unknown_subsets": [name for name in core if name not in COUNTS]
        + [name for name in prior if name not in PRIOR_COUNTS],
    }


def _era_json(era: str, score: EraScore, subsets: Mapping[str, Subset], prior: Mapping[str, Subset]) -> dict[str, Any]:
    none = dict.fromkeys(("low", "high", "score_half", "length_baseline"))
    mean = weighted_figures(subsets, overall_weights(era, {name: part.n for name, part in subsets.items()})) or none
    weights = with_prior_weights(era, prior)
    with_prior = (weighted_figures({**subsets, **prior}, weights) if weights and prior else None) or none
    return {
        "mean_of_sections": score.mean_of_sections,
        "low": mean["low"],
        "high": mean["high"],
        "mean_half": mean["score_half"],
        "length_baseline": mean["length_baseline"],
        "with_prior_sets": score.with_prior_sets,
        "with_prior_low": with_prior["low"],
        "with_prior_high": with_prior["high"],
        "with_prior_half": with_prior["score_half"],
        "with_prior_length_baseline": with_prior["length_baseline"],
        "sections": score.sections,
        "prior_sets": score.prior_sets,
    }
