"""What is said of a difference between two models: of means, and of RewardBench 2's score, which is none."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmtrain.evaluation.bench_results import ties_prompt
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics.intervals import (
    Z_POWER,
    Z,
    detectable_difference,
    difference_interval,
    mcnemar_exact,
    resampled_means,
)
from rmtrain.metrics.rankings import Floats, Ints, Labels
from rmtrain.metrics.rewardbench2 import SUBSETS, ties_difference_draws, ties_score

Figures = dict[str, Any]  # as `compare --json` gives them

_OTHERS = tuple(name for name in SUBSETS if name != "Ties")


def paired_figures(
    a: Floats, b: Floats, clusters: Labels, strata: Ints | None = None, shares: Floats | None = None
) -> Figures:
    """Of a mean of credits.

    Args:
        a: [n] credits of A.
        b: [n] credits of B.
        clusters: [n] label of each one's cluster.
        strata: [n] part of a weighted mean that each is of, 0 to S - 1, such as a subset; None is a plain mean.
        shares: [S] of the parts, summing to 1.
    """
    if not len(a):
        return _figures(a - b, clusters, (None, None, None), None, None)
    if strata is None or shares is None:
        strata, shares = np.zeros(len(a), dtype=np.int64), np.ones(1)
    means = [float(np.bincount(strata, weights=part) / np.bincount(strata) @ shares) for part in (a, b, a - b)]
    draws = resampled_means(a - b, clusters, strata) @ shares
    return _figures(a - b, clusters, means, draws, detectable_difference(a - b, clusters, strata, shares))


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
    scores = (ties_a.score, ties_b.score, ties_a.score - ties_b.score)
    ties = _figures((a - b)[of_ties], clusters[of_ties], scores, draws, _detectable(draws))
    known = [ties, *(figures for figures in sections.values() if figures)]
    sections["Ties"] = ties
    if len(known) < len(SUBSETS):
        return sections, None
    labels = np.array([_OTHERS.index(source) for source in sources[~of_ties]])
    others = resampled_means((a - b)[~of_ties], clusters[~of_ties], labels, seed=0)
    means = [float(np.mean([figures[key] for figures in known])) for key in ("a", "b", "difference")]
    drawn = np.column_stack([others, draws]).mean(axis=1)
    return sections, _figures(a - b, clusters, means, drawn, _detectable(drawn))


def _detectable(draws: Floats) -> float | None:
    """As `detectable_difference`, of a score that is no mean, by the standard deviation of its [R] draws."""
    return float((Z + Z_POWER) * np.nanstd(draws)) or None


def _figures(
    differences: Floats,
    clusters: Labels,
    means: Sequence[float | None],
    draws: Floats | None,
    detectable: float | None,
) -> Figures:
    """Figures of a difference.

    Args:
        differences: [n] credit of A less that of B, for the test.
        clusters: [n] label of each one's cluster.
        means: score of A, score of B, and the difference.
        draws: [R] differences of the scores on resampled prompts; None if n is 0.
        detectable: as the result has it.
    """
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
