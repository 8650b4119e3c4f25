"""Locally weighted regression beside numpy's weighted fit of each line, and the temperature beside scipy's minimum."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from rmtrain.metrics.calibration import fit_temperature
from rmtrain.metrics.lowess import lowess
from rmtrain.metrics.rankings import bradley_terry_losses


def line_by_line(x: np.ndarray, y: np.ndarray, at: np.ndarray, share: float, rounds: int) -> np.ndarray:
    """The same, each line by numpy's own least squares."""
    k, trust = int(np.ceil(share * len(x))), np.ones(len(x))
    for left in range(rounds, -1, -1):
        curve = []
        for place in at:
            d = np.abs(x - place)
            w = np.where(d < np.sort(d)[k - 1], (1 - (d / np.sort(d)[k - 1]) ** 3) ** 3, 0) * trust
            curve.append(np.polyval(np.polyfit(x - place, y, 1, w=np.sqrt(w)), 0))
        if left:
            residual = np.abs(y - np.interp(x, at, curve))
            trust = np.where(
                residual < 6 * np.median(residual), (1 - (residual / (6 * np.median(residual))) ** 2) ** 2, 0
            )
    return np.array(curve)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_each_line_is_the_weighted_least_squares_one(rounds: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, 80.0, 200)
    y = np.sin(x / 90) + rng.normal(scale=0.3, size=200)
    y[::17] += 9  # far off the curve
    at = np.quantile(x, np.linspace(0, 1, 21))
    np.testing.assert_allclose(lowess(x, y, at, 0.4, rounds), line_by_line(x, y, at, 0.4, rounds), atol=1e-8)


def test_a_line_is_found_whatever_is_far_off_and_equal_lengths_have_their_mean() -> None:
    x = np.arange(100.0)
    y = 3 - 0.5 * x
    y[50] = 1000
    at = np.array([0.0, 30.0, 99.0])
    np.testing.assert_allclose(lowess(x, y, at), 3 - 0.5 * at, atol=0.05)
    same = np.full(10, 7.0)
    assert lowess(same, np.arange(10.0), np.array([7.0]), rounds=0)[0] == pytest.approx(4.5)
    assert lowess(np.array([1.0]), np.array([2.0]), np.array([1.0]))[0] == 2.0


def test_places_do_not_depend_on_the_order_of_the_points() -> None:
    rng = np.random.default_rng(1)
    x, y, order = rng.integers(5, 40, 90).astype(float), rng.normal(size=90), rng.permutation(90)
    at = np.unique(x)
    np.testing.assert_allclose(lowess(x, y, at), lowess(x[order], y[order], at), atol=1e-10)


@pytest.mark.parametrize("true", [0.05, 1.0, 40.0])
def test_the_temperature_has_the_lowest_loss(true: float) -> None:
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=4000)
    won = rng.random(4000) < 1 / (1 + np.exp(-log_odds))
    gaps = true * np.where(won, log_odds, -log_odds)
    found = fit_temperature(gaps)
    assert found == pytest.approx(true, rel=0.1)
    best = minimize_scalar(
        lambda s: float(bradley_terry_losses(np.exp(s) * gaps).mean()), bounds=(-8, 8), options={"xatol": 1e-10}
    )
    assert found == pytest.approx(np.exp(-best.x), rel=1e-3)


@pytest.mark.parametrize("gaps", [[], [-1.0, 0.5], [0.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
def test_gaps_that_no_temperature_suits_have_none(gaps: list[float]) -> None:
    assert fit_temperature(np.array(gaps, dtype=np.float64)) is None
