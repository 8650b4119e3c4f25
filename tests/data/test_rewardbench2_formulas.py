import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.data.benchmarks.definition import ScoredPrompt
from rmtrain.data.benchmarks.rewardbench2 import COUNTS, ties_score
from rmtrain.data.benchmarks.rm_bench import style_accuracy
from rmtrain.metrics.rankings import best_of_credit


def reference(ref, tied):
    """The Ties formula as the paper writes it, over (rewards, number right) by prompt number."""

    def parts(rewards, right):
        good, wrong = rewards[:right], rewards[right:]
        return min(good) - max(wrong), max(good) - min(good)

    acc_ref = np.mean([parts(*prompt)[0] > 0 for prompt in ref.values()])
    acc_tied = np.mean([parts(*prompt)[0] > 0 for prompt in tied.values()])
    both = sorted(set(ref) & set(tied))
    m_ref, m_tied = (np.array([parts(*side[n])[0] for n in both]) for side in (ref, tied))
    spread = np.array([parts(*tied[n])[1] for n in both])
    least = np.minimum(m_ref, m_tied)
    margins = np.tanh(least[spread > 0] / spread[spread > 0] - 1) if (spread > 0).any() else np.zeros(1)
    return (
        0.3 * acc_tied + 0.3 * acc_ref + 0.2 * np.mean(m_tied > spread) + 0.2 * np.mean(least > spread)
    ) + 0.01 * np.mean(margins)


def prompts_of(ref, tied):
    return [ScoredPrompt(f"ref:{n}", *prompt) for n, prompt in ref.items()] + [
        ScoredPrompt(f"tied:{n}", *prompt) for n, prompt in tied.items()
    ]


small = st.integers(-3, 3).map(float)


@st.composite
def ties_prompts(draw):
    numbers = [str(n) for n in range(draw(st.integers(1, 5)))]

    def forms(right):
        return {
            n: (draw(st.lists(small, min_size=(r := draw(right)) + 1, max_size=r + 4)), r)
            for n in numbers
            if n == "0" or draw(st.booleans())
        }

    return forms(st.just(1)), forms(st.integers(2, 4))


@given(ties_prompts())
def test_ties_score_agrees_with_the_formula(prompts):
    figures = ties_score(prompts_of(*prompts))
    assert figures.score == pytest.approx(reference(*prompts))
    assert figures.draws.shape == (10_000,)


def test_the_best_ties_score_is_just_above_one():
    prompts = prompts_of({"0": ([100.0, 0.0], 1)}, {"0": ([100.0, 99.9, 0.0], 2)})
    figures = ties_score(prompts)
    assert figures.score == pytest.approx(1.01)
    assert list(figures.terms.values()) == [1, 1, 1, 1, pytest.approx(1)]


def test_prompts_without_spread_are_left_out_of_the_margin():
    ref = {"0": ([2.0, 0.0], 1), "1": ([3.0, 0.0], 1)}
    tied = {"0": ([5.0, 5.0, 0.0], 2), "1": ([4.0, 2.0, 0.0], 2)}
    usual = np.tanh(min(3.0, 2.0) / 2.0 - 1)
    assert ties_score(prompts_of(ref, tied)).terms["margin"] == pytest.approx(usual)
    assert ties_score(prompts_of({"0": ref["0"]}, {"0": tied["0"]})).terms["margin"] == 0


def test_terms_over_both_forms_are_none_where_no_prompt_has_both():
    figures = ties_score([ScoredPrompt("ref:0", [1.0, 0.0], 1)])
    assert figures.score is None
    assert list(figures.terms.values()) == [None, 1, None, None, None]
    assert ties_score([]).score is None


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([ScoredPrompt("ref:3", [1.0], 1)], "ref:3 has 1 right of 1"),
        ([ScoredPrompt("tied:3", [1.0, 2.0, 0.0], 2)] * 2, "tied:3 occurs twice"),
    ],
)
def test_prompts_that_can_not_be_scored_are_refused(prompts, message):
    with pytest.raises(ValueError, match=message):
        ties_score(prompts)


@pytest.mark.parametrize(
    ("rewards", "credit"),
    [([2, 1, 0, 1], 1), ([2, 2, 0, 1], 0.5), ([1, 1, 1, 1], 0.25), ([1, 2, 0, 0], 0), ([1, 2, 2, 2], 0)],
)
def test_best_of_four_shares_a_tie_at_the_top(rewards, credit):
    assert best_of_credit(rewards) == credit


def test_random_rewards_score_a_quarter():
    rewards = np.random.default_rng(0).random((4000, 4))
    assert np.mean([best_of_credit(row.tolist()) for row in rewards]) == pytest.approx(0.25, abs=0.02)


def test_counts_add_up():
    assert sum(COUNTS.values()) == 1865


def test_style_accuracy_by_hand():
    # right completions concise 1, detailed 2, markdown 3; wrong ones 0, 2, 2.5
    figures = style_accuracy(np.array([[1.0, 2.0, 3.0, 0.0, 2.0, 2.5]]))
    # wins by style: [[1, 0, 0], [1, 0, 0], [1, 1, 1]], as equal rewards do not win
    assert figures == {"hard": 0, "normal": pytest.approx(2 / 3), "easy": 1}
    assert np.mean(list(figures.values())) == pytest.approx(5 / 9)


def test_rewarding_style_alone_is_easy_and_never_hard():
    rewards = np.tile([0.0, 1.0, 2.0, 0.0, 1.0, 2.0], (5, 1))
    assert style_accuracy(rewards) == {"hard": 0, "normal": 0, "easy": 1}
