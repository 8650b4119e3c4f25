"""The paper's formulas against independent computations, the authors' test vectors, and where their code departs."""

import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit, logit

from rmtrain.metrics.alignment_gap import (
    BETAS,
    EPSILON,
    bar_edges,
    count_flips,
    dpo_losses,
    ideal_gaps,
    loss_bounds,
    median_gap_draws,
)
from rmtrain.metrics.calibration import fit_scale
from rmtrain.metrics.rankings import credits_of, sigmoid


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("beta", BETAS)
def test_the_ideal_policy_is_the_optimum_of_reward_less_kl(beta: float, rng: np.random.Generator) -> None:
    """Over four answers: the maximum of E[r] - beta KL(pi, pi_ref), where reward gaps are the raters' log-odds."""
    reference = rng.dirichlet(np.ones(4))
    rewards = rng.normal(size=4) * min(1, beta)  # so that no probability underflows

    def objective(logits: np.ndarray) -> float:
        policy = np.exp(logits - np.logaddexp.reduce(logits))
        return float(-(policy @ rewards) + beta * (policy @ np.log(policy / reference)))

    best = scipy.optimize.minimize(objective, np.log(reference), method="BFGS", options={"gtol": 1e-10}).x
    for w, l in ((0, 1), (2, 3), (3, 0)):  # noqa: E741
        alpha = expit(rewards[w] - rewards[l])
        expected = best[w] - best[l]
        found = ideal_gaps(np.log(reference[[w]] / reference[[l]]), alpha, beta)
        assert found == pytest.approx([expected], abs=2e-3)


@pytest.mark.parametrize("beta", [*BETAS, 0.3])
def test_idealised_accuracy_in_its_ratio_form_and_as_a_threshold_of_c(beta: float, rng: np.random.Generator) -> None:
    gaps, alpha = rng.normal(0, 3, 500), rng.uniform(0.2, 0.99, 500)
    found = ideal_gaps(gaps, alpha, beta)
    odds = (alpha / (1 - alpha)).astype(np.longdouble)
    ratio = np.exp(gaps.astype(np.longdouble)) * odds ** (1 / np.longdouble(beta))
    np.testing.assert_array_equal(found > 0, ratio > 1)
    np.testing.assert_array_equal(found > 0, -gaps < logit(alpha) / beta)  # c < logit(alpha) / beta
    assert credits_of(found).mean() == pytest.approx((ratio > 1).mean())


def test_a_constant_share_is_a_threshold_and_unanimous_votes_are_kept_from_infinity(rng: np.random.Generator) -> None:
    gaps = rng.normal(0, 10, 400)
    assert credits_of(ideal_gaps(gaps, 0.75, 0.1)).mean() == (-gaps < np.log(3) / 0.1).mean()
    odds = np.log((1 - EPSILON) / EPSILON)
    assert ideal_gaps(np.zeros(2), [1.0, 0.0], 2.0).tolist() == pytest.approx([odds / 2, -odds / 2])
    assert ideal_gaps(gaps, 0.5, 0.01).tolist() == gaps.tolist()


def test_a_preference_is_ranked_right_exactly_up_to_the_bound_on_its_loss(rng: np.random.Generator) -> None:
    policy, reference = rng.normal(0, 4, 2000), rng.normal(0, 4, 2000)
    for beta in (0.01, 0.1, 1.0):
        losses, bounds = dpo_losses(policy, reference, beta), loss_bounds(reference, beta)
        np.testing.assert_array_equal(policy > 0, losses < bounds)
        np.testing.assert_allclose(losses, -np.log(expit(beta * (policy - reference))), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(bounds, -np.log(expit(beta * -reference)), rtol=1e-9, atol=1e-15)
    c = np.array([0.0, 5, 10, 30, 50])  # what a reference that is wrong by c nats asks of the loss at beta 0.1
    assert loss_bounds(-c, 0.1).tolist() == pytest.approx([0.693, 0.474, 0.313, 0.049, 0.0067], abs=6e-4)


def test_flips_are_counted_by_hand_and_ties_apart() -> None:
    reference = np.array([1.0, 1, 1, -1, -1, -1, -1, 0, 2])
    policy = np.array([2.0, 3, -1, 1, -1, -2, -3, 5, 0])
    flips = count_flips(policy, reference)
    assert (flips.both, flips.only_reference, flips.only_policy, flips.neither, flips.ties) == (2, 1, 1, 3, 2)
    assert flips.rate == 1 / 4
    assert count_flips(np.ones(3), np.ones(3)).rate is None


def test_the_calibrating_scale_is_the_most_likely_one(rng: np.random.Generator) -> None:
    gaps = rng.normal(0.5, 2, 300)
    expected = scipy.optimize.minimize_scalar(
        lambda k: np.logaddexp(0, -k * gaps).mean(), bounds=(0, 20), method="bounded", options={"xatol": 1e-10}
    ).x
    assert fit_scale(gaps) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(sigmoid(0.7 * gaps), expit(0.7 * gaps), rtol=1e-12)
    assert fit_scale(-np.abs(gaps)) == 0
    assert fit_scale(np.abs(gaps)) == 1e6
    assert fit_scale(np.array([])) == 0


def test_draws_of_the_median_gap_are_those_of_clusters_drawn_one_by_one(rng: np.random.Generator) -> None:
    ideal = rng.integers(0, 2, (120, 5)).astype(float)
    policy, clusters = rng.integers(0, 3, 120) / 2, rng.integers(0, 40, 120)
    draws = median_gap_draws(ideal, policy, clusters)
    by_hand = []
    names = np.unique(clusters)
    members = {name: np.flatnonzero(clusters == name) for name in names}
    for _ in range(3000):
        rows = np.concatenate([members[name] for name in rng.choice(names, len(names))])
        by_hand.append(np.median(ideal[rows].mean(axis=0)) - policy[rows].mean())
    assert draws.mean() == pytest.approx(np.mean(by_hand), abs=0.005)
    assert draws.std() == pytest.approx(np.std(by_hand), rel=0.06)


def test_bars_hold_every_gap_and_none_holds_both_signs(rng: np.random.Generator) -> None:
    gaps = rng.normal(1, 3, 200)
    edges = bar_edges(gaps)
    assert np.histogram(gaps, edges)[0].sum() == 200
    assert np.abs(edges).min() == 0
    assert 40 <= len(edges) - 1 <= 42
    assert np.histogram(np.zeros(3), bar_edges(np.zeros(3)))[0].tolist() == [3]
    assert len(bar_edges(np.array([]))) == 1
    tiny = np.array([-5e-324, 40.0])
    assert np.histogram(tiny, bar_edges(tiny))[0].sum() == 2


# The authors' unit tests (angie-chen55/pref-learning-ranking-acc, rlhf_minimizer_client_test.py): perplexities are
# exp(-mean log-probability), and a share below 1/2 means that the second answer is the better one.


def test_the_authors_vectors_of_likelihood_ratios() -> None:
    gaps = np.log([3.0, 4.0]) - np.log([1.0, 2.0])
    assert np.exp(ideal_gaps(gaps, [0.2, 0.9], 2)) == pytest.approx([1.5, 6.0])
    gaps = np.array([2.0, 1.5]) - np.array([4.0, 2.0])
    alpha = np.exp([-0.1, -0.2])
    assert np.corrcoef(ideal_gaps(gaps, alpha, 1), alpha)[0, 1] == pytest.approx(-1)


def test_the_authors_vector_of_ranks_without_its_pair_of_divided_raters() -> None:
    gaps, alpha = np.log([3.0 / 1.0, 4.0 / 2.0, 4.0 / 3.0]), np.array([0.2, 0.9, 0.5])
    assert np.exp(ideal_gaps(gaps, alpha, 2)) == pytest.approx([1.5, 6.0, 4 / 3])
    # theirs is 1/3: they count the third pair, of which half the raters prefer either answer, as ranked wrong
    preferred = alpha != 0.5
    better_first = np.sign(alpha - 0.5)[preferred]
    found = ideal_gaps(better_first * gaps[preferred], np.maximum(alpha, 1 - alpha)[preferred], 2)
    assert credits_of(found).mean() == 1 / 2


# Where their code departs from their paper.


def test_dividing_log_probabilities_turns_the_ranking_round() -> None:
    better, worse, alpha, beta = np.array([-10.0, -30.0]), np.array([-20.0, -20.0]), 0.6, 1.0
    theirs = better / worse * (alpha / (1 - alpha)) ** (1 / beta)  # 0.75 and 2.25
    ours = ideal_gaps(better - worse, alpha, beta)
    assert (theirs > 1).tolist() == [False, True]
    assert (ours > 0).tolist() == [True, False]
    assert np.exp(ours) == pytest.approx(np.exp(better - worse) * 1.5)


def test_a_ratio_within_a_twentieth_of_one_is_no_tie() -> None:
    gap = np.log([1.03])
    assert abs(np.exp(gap[0]) - 1) < 0.05  # their tie, which never agrees with raters who prefer one answer
    assert credits_of(ideal_gaps(gap, 0.5001, 1.0)).tolist() == [1.0]


def test_left_padding_with_a_mask_for_right_padding_reads_the_prompt() -> None:
    """Their mask of a left-padded prompt, turned round, leaves the places before the last |x| of a row."""
    prompt, response, padding = [-9.0, -8.0, -7.0], [-1.0, -2.0], 4
    row = np.array([0.0] * padding + prompt + response)  # log-probability of each token of a left-padded row
    places = np.arange(len(row))
    theirs = row[(places >= padding) & (places < len(row) - len(prompt))]
    assert row[padding + len(prompt) :].tolist() == response
    assert theirs.tolist() == prompt[: len(response)]
