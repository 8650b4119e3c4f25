"""Calibration of scored rows whose length bias and scale are known."""

from typing import Any

import numpy as np
import pytest
from conftest import make_groups

from rmtrain.errors import InputError
from rmtrain.evaluation.calibration import calibrated_rows, fit, show, split_by_prompt
from rmtrain.evaluation.results import ScoredRow, gaps_of, summarise
from rmtrain.model.calibration import Calibration

SCALE, BIAS = 3.0, 0.02


def biased_rows(count: int, seed: int) -> list[ScoredRow]:
    """Pairs drawn by quality; rewards are SCALE times that, and BIAS for each token up to 200."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        quality, lengths = rng.normal(size=2), rng.integers(10, 400, 2)
        better = int(rng.random() > 1 / (1 + np.exp(quality[1] - quality[0])))
        rewards = SCALE * quality + BIAS * SCALE * np.minimum(lengths, 200)
        pair = ((better, 1 - better),)
        lengths_of = tuple(map(int, lengths))
        rows.append(ScoredRow(f"r{number}", "", tuple(rewards.tolist()), pair, False, lengths_of, f"p{number}"))
    return rows


@pytest.fixture(scope="module")
def held_out() -> list[ScoredRow]:
    return biased_rows(600, 1)


def made(by_length: bool = True, **record: Any) -> Calibration:
    return fit(biased_rows(800, 0), "w", by_length, record)


def test_the_length_bias_goes_and_the_scale_is_found(held_out: list[ScoredRow]) -> None:
    calibration = made()
    assert calibration.temperature == pytest.approx(SCALE, rel=0.15)
    for length in (50, 150, 300):
        found = np.interp(length, calibration.lengths, calibration.curve) + calibration.offset
        assert found == pytest.approx(BIAS * SCALE * min(length, 200), abs=1.0)
    figures = show(calibration, held_out).figures
    correlation = figures["length_correlation"]
    assert correlation.before > 0.4
    assert abs(correlation.after) < 0.1
    assert correlation.change_interval.high < -0.2
    assert figures["accuracy"].change_interval.low > 0
    assert figures["loss"].after < figures["loss"].before
    assert figures["ece"].after < 0.06 < figures["ece"].before


def test_the_figures_are_those_of_eval(held_out: list[ScoredRow]) -> None:
    calibration = made()
    shown = show(calibration, held_out)
    before, after = summarise(held_out), summarise(calibrated_rows(calibration, held_out))
    names = {"accuracy": "accuracy", "loss": "loss", "ece": "ece", "length_correlation": "reward_length_correlation"}
    for name, of_eval in names.items():
        figure = shown.figures[name]
        assert figure.before == pytest.approx(getattr(before, of_eval))
        assert figure.after == pytest.approx(getattr(after, of_eval))
        assert figure.before_interval.low <= figure.before <= figure.before_interval.high
    low, high = shown.figures["accuracy"].before_interval.low, shown.figures["accuracy"].before_interval.high
    assert (low, high) == pytest.approx((before.accuracy_low, before.accuracy_high), abs=0.01)
    assert (shown.n, shown.prompts) == (600, 600)


def test_without_length_the_ranking_stays(held_out: list[ScoredRow]) -> None:
    calibration = made(by_length=False)
    assert calibration.lengths == ()
    gaps, after = gaps_of(held_out).gaps, gaps_of(calibrated_rows(calibration, held_out)).gaps
    np.testing.assert_allclose(after * calibration.temperature, gaps, rtol=1e-4, atol=1e-4)
    figures = show(calibration, held_out).figures
    assert figures["accuracy"].change_interval.low == figures["accuracy"].change_interval.high == 0


def test_rows_that_fit_nothing_are_refused() -> None:
    rows = biased_rows(800, 0)
    turned = [row._replace(preferences=((row.preferences[0][1], row.preferences[0][0]),)) for row in rows]
    for wrong, told in ((turned, "no temperature fits"), (rows[:5], "too few"), (rows[:9], "too few")):
        with pytest.raises(InputError, match=told):
            fit(wrong, "w", True, {})


def test_prompts_are_on_one_side_each() -> None:
    groups = make_groups(200)
    doubled = [*groups, *(group._replace(id=f"again {group.id}") for group in groups)]
    fitted, shown = split_by_prompt(doubled, 0.3)
    assert len(fitted) + len(shown) == len(doubled)
    assert not {group.prompt for group in fitted} & {group.prompt for group in shown}
    assert 0.2 < len(shown) / len(doubled) < 0.4
    assert split_by_prompt(doubled[::-1], 0.3)[1] == shown[::-1]
