"""Figures over seeds and paired differences, against an independent computation."""

import numpy as np
import pytest

from rmtrain.errors import DataError
from rmtrain.evaluation.differences import compare_rows
from rmtrain.evaluation.results import ScoredRow
from rmtrain.evaluation.seeds import Seeds, seed_difference, seed_figures


def rows_of(seed: int, prompts: int, lift: float) -> list[ScoredRow]:
    """Two rows a prompt of three completions each, of which the first is the best; its reward is lifted."""
    noise = np.random.default_rng(seed).normal(loc=(lift, 0.0, 0.0), size=(2 * prompts, 3))
    return [
        ScoredRow(str(i), "made", tuple(map(float, noise[i])), ((0, 1), (0, 2)), False, (3, 2, 1), f"prompt {i // 2}")
        for i in range(2 * prompts)
    ]


def right(seeds: Seeds) -> np.ndarray:
    """Credit [seed, prompt, 4 preferences]."""
    each = [[[row.rewards[0] > other for other in row.rewards[1:]] for row in rows] for rows in seeds.values()]
    return np.array(each, dtype=float).reshape(len(seeds), -1, 4)


A = {seed: rows_of(seed, 60, 0.9) for seed in (0, 1, 2)}
B = {seed: rows_of(10 + seed, 60, 0.3) for seed in (0, 1, 2)}


def test_the_difference_is_that_of_all_seeds_and_its_interval_is_over_prompts() -> None:
    found, credit = seed_difference(A, B), right(A) - right(B)
    assert found.difference == pytest.approx(credit.mean())
    assert found.by_seed == pytest.approx(tuple(credit.mean(axis=(1, 2))))
    assert (found.n, found.prompts, found.seeds) == (240, 60, 3)
    rng, of_prompts = np.random.default_rng(1), credit.mean(axis=(0, 2))
    draws = [of_prompts[rng.integers(0, 60, 60)].mean() for _ in range(10_000)]
    assert [found.low, found.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.004)
    assert found.found


def test_one_seed_is_a_plain_comparison() -> None:
    found, plain = seed_difference({0: A[0]}, {0: B[0]}), compare_rows(A[0], B[0]).overall
    assert (found.difference, found.low, found.high) == pytest.approx((plain.difference, plain.low, plain.high))
    assert found.detectable == pytest.approx(plain.detectable)


def test_a_setting_equals_itself_and_seeds_must_agree() -> None:
    same = seed_difference(A, A)
    assert same.difference == 0
    assert not same.found
    assert same.low < 0 < same.high
    turned = seed_difference(A, {0: B[0], 1: B[1], 2: [row._replace(rewards=(9.0, 0.0, 0.0)) for row in B[2]]})
    assert turned.by_seed[2] < 0
    assert not turned.found


def test_each_source_weighs_the_same_whatever_its_rows() -> None:
    def named(seeds: Seeds) -> Seeds:  # a sixth of the prompts are of the first source
        return {
            seed: [row._replace(source="few" if place < 20 else "many") for place, row in enumerate(rows)]
            for seed, rows in seeds.items()
        }

    found, credit = seed_difference(named(A), named(B), each_source_alike=True), right(A) - right(B)
    of_prompts = credit.mean(axis=2)  # [seed, prompt]
    alike = (of_prompts[:, :10].mean(axis=1) + of_prompts[:, 10:].mean(axis=1)) / 2
    assert found.by_seed == pytest.approx(tuple(alike))
    assert found.difference == pytest.approx(alike.mean())
    assert found.difference != pytest.approx(credit.mean(), abs=1e-4)
    rng, few, many = np.random.default_rng(1), of_prompts[:, :10].mean(axis=0), of_prompts[:, 10:].mean(axis=0)
    draws = [(few[rng.integers(0, 10, 10)].mean() + many[rng.integers(0, 50, 50)].mean()) / 2 for _ in range(10_000)]
    assert [found.low, found.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.02)
    one = {seed: [row._replace(source="") for row in rows] for seed, rows in A.items()}
    assert seed_difference(one, one, each_source_alike=True) == seed_difference(one, one)


def test_losses_are_compared_in_nats() -> None:
    def losses(seeds: Seeds) -> np.ndarray:
        gaps = [row.rewards[0] - other for rows in seeds.values() for row in rows for other in row.rewards[1:]]
        return np.logaddexp(0, -np.array(gaps))

    found = seed_difference(A, B, "loss")
    assert found.difference == pytest.approx(losses(A).mean() - losses(B).mean())
    assert seed_figures(A).loss == pytest.approx(losses(A).mean())


def test_figures_are_means_over_seeds_and_more_seeds_do_not_stand_for_more_prompts() -> None:
    figures, one = seed_figures(A), seed_figures({0: A[0]})
    assert figures.accuracy == pytest.approx(right(A).mean())
    assert {seed: of["accuracy"] for seed, of in figures.by_seed.items()} == pytest.approx(
        dict(enumerate(right(A).mean(axis=(1, 2))))
    )
    copied = seed_figures({0: A[0], 1: A[0], 2: A[0]})
    assert copied.high - copied.low == pytest.approx(one.high - one.low, rel=0.02)


def test_other_rows_other_seeds_and_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="different rows"):
        seed_difference({0: A[0]}, {0: A[0][1:]})
    with pytest.raises(DataError, match="no common seed"):
        seed_difference({0: A[0]}, {1: A[1]})
    with pytest.raises(DataError, match="no preferences"):
        seed_figures({0: []})
