"""What is said of a difference between two models: of means, and of RewardBench 2's score, which is none."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmtrain.evaluation.bench_results import ties_prompt
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics.intervals import (
    Z_POWER,
    Strata,
    Z,
    detectable_difference,
    difference_interval,
    mcnemar_exact,
    paired_difference_draws,
)
from rmtrain.metrics.rankings import Floats, Labels
from rmtrain.metrics.rewardbench2 import SUBSETS, ties_difference_draws, ties_score

Figures = dict[str, Any]  # as `compare --json` gives them

_OTHERS = tuple(name for name in SUBSETS if name != "Ties")


def paired_figures(a: Floats, b: Floats, clusters: Labels, strata: Strata | None = None) -> Figures:
    """Of a mean of credits.

    Args:
        a: [n] credits of A.
        b: [n] credits of B.
        clusters: [n] label of each one's cluster.
        strata: of a weighted mean; None is the plain one.
    """
    differences = a - b
    if not len(differences):
        return _figures(differences, clusters, (None, None, None), None, None)
    mean = strata.mean if strata else (lambda values: float(values.mean()))
    draws = paired_difference_draws(differences, clusters, strata)
    detectable = detectable_difference(differences, clusters, strata)
    return _figures(differences, clusters, (mean(a), mean(b), mean(differences)), draws, detectable)


def rewardbench2_differences(
    a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow], a: Floats, b: Floats, clusters: Labels
) -> tuple[dict[str, Figures | None], Figures | None]:
    """Figures of each subset, and of the score, the mean of six; None where a subset is missing.

    The prompts of Ties are resampled by themselves: they share none with the other subsets.

    Args:
        a_rows: rows scored by A; of Ties, both forms of a prompt are a cluster.
        b_rows: the same by B.
        a: [n] credit of A's rows.
        b: [n] credit of B's rows.
        clusters: [n] label of each row's cluster.
    """
    sources = np.array([row.source for row in a_rows], dtype=object)
    of_ties = sources == "Ties"
    sections: dict[str, Figures | None] = {
        name: paired_figures(a[here], b[here], clusters[here]) if (here := sources == name).any() else None
        for name in _OTHERS
    }
    of_a, of_b = ([ties_prompt(row) for row in rows if row.source == "Ties"] for rows in (a_rows, b_rows))
    ties_a, ties_b = ties_score(of_a), ties_score(of_b)
    if ties_a.score is None or ties_b.score is None:
        return {**sections, "Ties": None}, None
    draws = ties_difference_draws(of_a, of_b, seed=1)
    ties = _drawn_figures((a - b)[of_ties], clusters[of_ties], ties_a.score, ties_b.score, draws)
    known = [ties, *(figures for figures in sections.values() if figures)]
    sections["Ties"] = ties
    if len(known) < len(SUBSETS):
        return sections, None
    labels = np.array([_OTHERS.index(source) for source in sources[~of_ties]])
    strata = Strata(labels, np.full(len(_OTHERS), 1 / len(_OTHERS)))
    others = paired_difference_draws((a - b)[~of_ties], clusters[~of_ties], strata, seed=0)
    drawn = (len(_OTHERS) * others + draws) / len(SUBSETS)
    mean_a, mean_b = (float(np.mean([figures[side] for figures in known])) for side in "ab")
    return sections, _drawn_figures(a - b, clusters, mean_a, mean_b, drawn)


def _drawn_figures(differences: Floats, clusters: Labels, a: float, b: float, draws: Floats) -> Figures:
    """Of two scores that are no means.

    Args:
        differences: [n] credit of A less that of B, for the test.
        clusters: [n] label of each one's cluster.
        a: score of A.
        b: score of B.
        draws: [R] differences of the scores on resampled prompts.
    """
    detectable = (Z + Z_POWER) * float(np.nanstd(draws)) if draws.any() else None
    return _figures(differences, clusters, (a, b, a - b), draws, detectable)


def _figures(
    differences: Floats,
    clusters: Labels,
    means: Sequence[float | None],
    draws: Floats | None,
    detectable: float | None,
) -> Figures:
    _, labels = np.unique(clusters, return_inverse=True)
    net = np.bincount(labels, weights=differences)
    a_better, b_better = int((net > 0).sum()), int((net < 0).sum())
    found: Figures = dict.fromkeys(("low", "high", "mcnemar_p", "within_noise"))
    if draws is not None:
        interval, p = difference_interval(draws, len(net)), mcnemar_exact(a_better, b_better)
        noise = p >= 0.05 or interval.low <= 0 <= interval.high
        found = {"low": interval.low, "high": interval.high, "mcnemar_p": p, "within_noise": noise}
    return {
        "n": len(differences),
        **dict(zip(("a", "b", "difference"), means, strict=True)),
        **found,
        "prompts": len(net),
        "a_better": a_better,
        "b_better": b_better,
        "detectable": detectable,
    }
