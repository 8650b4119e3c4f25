"""What is said of a difference between two models on the same rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmtrain.metrics.intervals import (
    Z_POWER,
    Interval,
    Strata,
    Z,
    detectable_difference,
    mcnemar_exact,
    no_difference_interval,
    paired_difference_interval,
    percentile_interval,
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
    mean = strata.mean if strata else (lambda values: float(values.mean()))
    means = (mean(a), mean(b), mean(a - b)) if len(a) else (None, None, None)
    interval = paired_difference_interval(a - b, clusters, strata)
    return _figures(a - b, clusters, means, interval, detectable_difference(a - b, clusters, strata))


def drawn_figures(differences: Floats, clusters: Labels, a: float, b: float, draws: Floats) -> Figures:
    """Of two scores that are no means.

    Args:
        differences: [n] credit of A less that of B, for the test.
        clusters: [n] label of each one's cluster.
        a: score of A.
        b: score of B.
        draws: [R] differences of the scores on resampled prompts.
    """
    interval, detectable = no_difference_interval(len(np.unique(clusters))), None
    if draws.any():
        interval, detectable = percentile_interval(draws), (Z + Z_POWER) * float(np.nanstd(draws))
    return _figures(differences, clusters, (a, b, a - b), interval, detectable)


def _figures(
    differences: Floats,
    clusters: Labels,
    means: Sequence[float | None],
    interval: Interval | None,
    detectable: float | None,
) -> Figures:
    _, labels = np.unique(clusters, return_inverse=True)
    net = np.bincount(labels, weights=differences) if len(differences) else np.array([])
    a_better, b_better = int((net > 0).sum()), int((net < 0).sum())
    p = mcnemar_exact(a_better, b_better) if len(differences) else None
    return {
        "n": len(differences),
        **dict(zip(("a", "b", "difference"), means, strict=True)),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "mcnemar_p": p,
        "within_noise": p >= 0.05 or interval.low <= 0 <= interval.high if interval and p is not None else None,
        "prompts": len(net),
        "a_better": a_better,
        "b_better": b_better,
        "detectable": detectable,
    }
