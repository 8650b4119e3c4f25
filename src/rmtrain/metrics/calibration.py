"""Calibration: whether sigmoid(reward gap) is the true probability of a preference, as the Bradley-Terry model assumes.

The event "the better completion wins" is true in every preference, so its predicted probability can't be compared with
its frequency. But either completion could have been listed first. Counting each preference in both orders gives, by
symmetry, the comparison made here: the model's confidence in its own choice, sigmoid(|gap|), with whether that choice
is right (1/2 for a tie).
"""

from dataclasses import dataclass

import numpy as np

from rmtrain.metrics.rankings import Floats, credits_of

BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Preferences of similar confidence."""

    n: int
    confidence: float  # mean of sigmoid(|gap|), 0.5 to 1
    accuracy: float


def reliability_bins(gaps: Floats, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Preferences sorted by confidence and cut into bins of equal mass (arXiv 1904.01685); fewer where n < bins."""
    magnitudes, inverse = np.unique(np.abs(gaps), return_inverse=True)
    # equal confidences share their mean credit, so that bins do not depend on the order of rows
    shared = np.bincount(inverse, weights=credits_of(gaps)) / np.bincount(inverse) if len(gaps) else gaps
    order = np.argsort(inverse, kind="stable")
    confidence, credit = _sigmoid(magnitudes)[inverse][order], shared[inverse][order]
    return tuple(
        ReliabilityBin(len(part), float(confidence[part].mean()), float(credit[part].mean()))
        for part in np.array_split(np.arange(len(gaps)), bins)
        if len(part)
    )


def expected_calibration_error(gaps: Floats, bins: int = BINS) -> float | None:
    """Expected calibration error: mean over preferences of their bin's |accuracy - confidence|; None without
    preferences."""
    parts = reliability_bins(gaps, bins)
    return sum(part.n * abs(part.accuracy - part.confidence) for part in parts) / len(gaps) if parts else None


def brier_score(gaps: Floats) -> float | None:
    """Mean of (1 - sigmoid(gap))^2 (Brier 1950), whichever completion is listed first; None without preferences."""
    return float((_sigmoid(-gaps) ** 2).mean()) if len(gaps) else None


def fit_temperature(gaps: Floats) -> float | None:
    """The T > 0 for which sigmoid(gap / T) has the lowest loss, -mean log sigmoid(gap / T) (arXiv 1706.04599).

    The loss is convex in 1 / T, whose optimum is found by bisection. None if there is no optimum: for a mean gap of 0
    or less, a larger T is always better, and without a gap below 0, a smaller T.
    """
    if not len(gaps) or gaps.mean() <= 0 or gaps.min() >= 0:
        return None
    scale = float(np.abs(gaps).mean())
    low, high = 0.0, 1.0 / scale
    while _slope(gaps, high) < 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(gaps, middle) < 0 else (low, middle)
    return 2 / (low + high)


def _slope(gaps: Floats, inverse: float) -> float:
    """Of the loss by 1 / T."""
    return float(-(gaps * _sigmoid(-inverse * gaps)).mean())


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))
