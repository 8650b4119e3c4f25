"""Figures of groups with graded scores against scipy, scikit-learn and enumeration."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import ndcg_score

from rmtrain.metrics.graded import (
    best_of_n_kl,
    exact_match,
    expected_best_of_n,
    fit_best_of_n,
    kendall_tau_b,
    ndcg,
    top1_credit,
)

_RNG = np.random.default_rng(0)
GROUPS = [(_RNG.integers(0, 6, k) / 2, _RNG.integers(1, 5, k).astype(float)) for k in (2, 3, 4, 6, 9) for _ in range(6)]


def test_one_ranking_in_k_factorial_matches() -> None:
    scores = [3.0, 1.0, 4.0, 2.0]
    assert sum(exact_match(rewards, scores) for rewards in itertools.permutations(range(4))) == 1
    assert exact_match([0.3, -1, 9, 0], scores)
    assert not exact_match([0.3, 0, 9, 0], scores)  # a tie ranks nothing


def test_the_authors_vector_of_whole_rankings() -> None:
    """Their first answer list is ranked against its perplexities, the second as they are: 1/2."""
    perplexities = [[1.01, 0.02, 0.05], [0.08, 0.1, 0.2, 1.0]]
    rankings = [[3, 2, 1], [1, 2, 3, 4]]
    matches = [exact_match(-np.log(p), [-r for r in ranks]) for p, ranks in zip(perplexities, rankings, strict=True)]
    assert matches == [False, True]


@pytest.mark.parametrize(("rewards", "scores"), GROUPS)
def test_tau_and_ndcg_are_those_of_scipy_and_scikit_learn(rewards: np.ndarray, scores: np.ndarray) -> None:
    expected = scipy.stats.kendalltau(rewards, scores).statistic
    found = kendall_tau_b(rewards, scores)
    assert (found is None) == math.isnan(expected)
    assert found is None or found == pytest.approx(expected)
    assert ndcg(rewards, scores) == pytest.approx(ndcg_score([2**scores - 1], [rewards]))


def test_ndcg_is_none_where_its_gain_means_nothing() -> None:
    assert ndcg([1, 2], [0, 0]) is None
    assert ndcg([1, 2], [-1, 3]) is None
    assert ndcg([1, 2], [3, 5000]) is None


def by_enumeration(rewards: np.ndarray, scores: np.ndarray) -> list[float]:
    """Every subset, equal rewards drawn among: not exchangeable with their order in the group."""
    found = []
    for n in range(1, len(rewards) + 1):
        chosen = []
        for subset in itertools.combinations(range(len(rewards)), n):
            best = max(rewards[i] for i in subset)
            chosen.append(np.mean([scores[i] for i in subset if rewards[i] == best]))
        found.append(float(np.mean(chosen)))
    return found


@pytest.mark.parametrize(("rewards", "scores"), GROUPS)
def test_best_of_n_is_the_mean_over_all_subsets(rewards: np.ndarray, scores: np.ndarray) -> None:
    found = expected_best_of_n(rewards, scores)
    assert found.tolist() == pytest.approx(by_enumeration(rewards, scores))
    assert found[0] == pytest.approx(scores.mean())
    best = expected_best_of_n(scores, scores)
    assert best[-1] == scores.max()
    assert (np.diff(best) >= -1e-12).all()
    assert (best >= found - 1e-12).all()


def test_top1_shares_its_credit_among_equal_rewards() -> None:
    assert top1_credit([1, 3, 2], [0, 1, 0]) == 1
    assert top1_credit([3, 3, 2], [0, 1, 0]) == 1 / 2
    assert top1_credit([3, 3, 2], [1, 1, 0]) == 1
    assert top1_credit([3, 1, 2], [0, 1, 1]) == 0


def test_kl_of_best_of_n() -> None:
    """Against the integral of density times log density, N u^(N - 1), of the best of N uniform numbers."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 4, 16):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float((density * np.log(density)).mean()), abs=1e-4)
    assert best_of_n_kl(16) == pytest.approx(1.835, abs=1e-3)


def test_the_fit_finds_the_curve_that_made_the_gains() -> None:
    d = np.sqrt([best_of_n_kl(n) for n in range(1, 12)])
    fit = fit_best_of_n((d * (0.8 - 0.3 * d)).tolist())
    assert fit is not None
    assert (fit.alpha, fit.beta) == pytest.approx((0.8, 0.3))
    assert fit.peak_kl == pytest.approx((0.8 / 0.6) ** 2)
    rising = fit_best_of_n((d * (0.8 + 0.3 * d)).tolist())
    assert rising is not None
    assert rising.peak_kl is None
    assert fit_best_of_n([0, 0.1, 0.2]) is None
