"""Calibration: whether sigmoid(reward gap) is the true probability of a preference, as the Bradley-Terry model assumes.

The event "the better completion wins" is true in every preference, so its predicted probability can't be compared with
its frequency. But either completion could have been listed first. Counting each preference in both orders gives, by
symmetry, the comparison made here: the model's confidence in its own choice, sigmoid(|gap|), with whether that choice
is right (1/2 for a tie).
"""

from dataclasses import dataclass

import numpy as np

from rmtrain.metrics.rankings import Floats, credits_of, sigmoid

BINS = 15
_LARGEST_SCALE = 1e6  # result of `fit_scale` if every preference is ranked right


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
    confidence, credit = sigmoid(magnitudes)[inverse][order], shared[inverse][order]
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
    return float((sigmoid(-gaps) ** 2).mean()) if len(gaps) else None


def fit_temperature(gaps: Floats) -> float | None:
    """The T > 0 for which sigmoid(gap / T) has the lowest loss, -mean log sigmoid(gap / T) (arXiv 1706.04599).

    None if there is no optimum: for a mean gap of 0 or less, a larger T is always better, and without a gap below 0, a
    smaller T.
    """
    if not len(gaps) or gaps.mean() <= 0 or gaps.min() >= 0:
        return None
    unit = float(np.abs(gaps).mean())
    return unit / fit_scale(gaps / unit)


def fit_scale(gaps: Floats) -> float:
    """The scale above 0 that maximises the likelihood of sigmoid(scale * gap): calibration by a single temperature.

    The likelihood is concave in the scale; its derivative is bisected. 0 if the gaps rank no better than chance, and a
    million if they rank every preference right.
    """

    def slope(scale: float) -> float:
        return float((gaps * sigmoid(-scale * gaps)).mean())

    low, high = 0.0, _LARGEST_SCALE
    if not len(gaps) or slope(low) <= 0:
        return 0.0
    if slope(high) > 0 or gaps.min() >= 0:
        return high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return high
