"""What is said of a difference between two models on the same rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

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

Figures = dict[str, Any]  # as `compare --json` gives them


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


def drawn_figures(differences: Floats, clusters: Labels, a: float, b: float, draws: Floats) -> Figures:
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
