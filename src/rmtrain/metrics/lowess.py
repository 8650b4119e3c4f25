"""Locally weighted regression: how a mean changes with a quantity, without a formula for it."""

import numpy as np
from jaxtyping import Float64

from rmtrain.metrics.rankings import Floats

Points = Float64[np.ndarray, " G"]


def lowess(x: Floats, y: Floats, at: Points, share: float = 0.5, rounds: int = 3) -> Points:
    """The mean of y at G places on the axis of x, by LOWESS (Cleveland 1979).

    At each place a line is fitted to the nearest share of the points, with tricube weights by distance; then points far
    from the curve lose weight and the fit is repeated.

    Args:
        x, y: n > 0 points.
        at: places in ascending order; between them residuals are taken from straight lines.
        share: the share of the points in each fit, as in arXiv 2409.17407, whose released code takes 0.5.
        rounds: how often to fit again with bisquare weights of the residuals.
    """
    nearest = max(1, min(len(x), int(np.ceil(share * len(x)))))
    trust, curve = np.ones(len(x)), np.zeros(len(at))
    for _ in range(rounds + 1):
        curve = np.array([_local_mean(x, y, trust, place, nearest) for place in at])
        residuals = np.abs(y - np.interp(x, at, curve))
        scale = 6 * float(np.median(residuals))
        if scale <= 1e-12 * float(np.abs(y).max()):
            break
        trust = np.clip(1 - (residuals / scale) ** 2, 0, None) ** 2
    return curve


def _local_mean(x: Floats, y: Floats, trust: Floats, place: float, nearest: int) -> float:
    distances = np.abs(x - place)
    reach = np.partition(distances, nearest - 1)[nearest - 1]
    near = np.clip(1 - (distances / reach) ** 3, 0, None) ** 3 if reach > 0 else (distances == 0).astype(np.float64)
    weights = near * trust if (near * trust).any() else near
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(x), 1 / len(x))
    mean_x, mean_y = float(weights @ x), float(weights @ y)
    spread = float(weights @ (x - mean_x) ** 2)
    if spread <= 1e-12 * max(1.0, float(np.ptp(x)) ** 2):
        return mean_y
    return mean_y + float(weights @ ((x - mean_x) * y)) / spread * (place - mean_x)
