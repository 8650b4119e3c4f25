"""Choices among completions, against plain sorting, and exact quantiles in constant memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.metrics.selection import ALONE, BELOW, CLOSE, TIED, UNLIKE, Above, BestAgainst, BestOf, Mean
from rmtrain.metrics.selection import order_statistic as found

REWARDS = [0.5, 2.0, -1.0, 2.0, 1.0]
LENGTHS = [10, 40, 12, 90, 44]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_best_come_first_and_equal_ones_in_their_order() -> None:
    assert BestOf().take(REWARDS, LENGTHS, rng()).chosen == (1,)
    assert BestOf(top=3).take(REWARDS, LENGTHS, rng()).chosen == (1, 3, 4)
    assert BestOf(top=9, threshold=1.0).take(REWARDS, LENGTHS, rng()).chosen == (1, 3, 4)
    assert BestOf(threshold=2.5).take(REWARDS, LENGTHS, rng()).cause == BELOW
    assert Above(0.5).take(REWARDS, LENGTHS, rng()).chosen == (0, 1, 3, 4)


def test_draws_follow_the_softmax_of_the_rewards() -> None:
    rule, n = BestOf(temperature=2.0), 4000
    counts = np.bincount([rule.take(REWARDS, LENGTHS, rng(seed)).chosen[0] for seed in range(n)], minlength=5)
    expected = np.exp(np.array(REWARDS) / 2)
    expected /= expected.sum()
    assert np.abs(counts / n - expected).max() < 4 * np.sqrt(0.25 / n)
    drawn = BestOf(top=3, temperature=2.0).take(REWARDS, LENGTHS, rng())
    assert len(set(drawn.chosen)) == 3
    assert drawn == BestOf(top=3, temperature=2.0).take(REWARDS, LENGTHS, rng())


def test_pairs_keep_their_margin_and_their_lengths() -> None:
    assert BestAgainst().take(REWARDS, LENGTHS, rng())[:2] == ((1,), 2)
    assert BestAgainst(length_ratio=1.1).take(REWARDS, LENGTHS, rng())[:2] == ((1,), 4)
    drawn = {BestAgainst("random", margin=1.5).take(REWARDS, LENGTHS, rng(seed)).rejected for seed in range(50)}
    assert drawn == {0, 2}
    for rule, rewards, cause in (
        (BestAgainst(), [1.0], ALONE),
        (BestAgainst(), [1.0, 1.0], TIED),
        (BestAgainst(margin=2), [1.0, 0.0], CLOSE),
        (BestAgainst(length_ratio=2), [1.0, 0.0], UNLIKE),
    ):
        assert rule.take(rewards, [10, 30], rng()).cause == cause


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.data())
def test_order_statistics_are_those_of_sorting(values: list[float], data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(values) - 1))
    pieces = [np.array(values[start : start + 3]) for start in range(0, len(values), 3)]
    assert found(lambda: pieces, rank) == sorted(values)[rank]


def test_means_have_the_interval_of_their_rows() -> None:
    mean = Mean()
    assert mean.figures()["mean"] is None
    for value in REWARDS:
        mean.add(value)
    half = 1.96 * np.std(REWARDS, ddof=1) / np.sqrt(5)
    assert mean.figures() == pytest.approx({"n": 5, "mean": 0.9, "low": 0.9 - half, "high": 0.9 + half})
