"""Which preferences are made of a row."""

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.pairing import BELOW_MIN_GAP, DISAGREE, IDENTICAL, TIE, make_preferences
from rmtrain.data.schemas.rows import ParsedRow
from rmtrain.data.types import Message, Preference


def row(scores: list[float | None] | None, stated: tuple[Preference, ...] | None = None, texts: str = "") -> ParsedRow:
    texts = texts or "abcdefgh"[: len(scores or "ab")]
    completions = tuple((Message("assistant", text),) for text in texts)
    return ParsedRow((Message("user", "q"),), completions, stated, None if scores is None else tuple(scores))


@settings(deadline=None)
@given(st.lists(st.integers(1, 10), min_size=2, max_size=6), st.sampled_from([0.0, 1.0, 2.5]))
def test_all_is_every_ordered_pair_with_a_large_enough_gap(scores: list[int], min_gap: float) -> None:
    pairing = make_preferences(row([float(score) for score in scores]), "all", min_gap)
    by_definition = {
        (a, b)
        for a, b in permutations(range(len(scores)), 2)
        if scores[a] > scores[b] and scores[a] - scores[b] >= min_gap
    }
    assert {(p.better, p.worse) for p in pairing.kept} == by_definition
    assert len(pairing.kept) == len(by_definition)
    assert all(p.gap == scores[p.better] - scores[p.worse] for p in pairing.kept)
    possible = len(scores) * (len(scores) - 1) // 2
    assert len(pairing.kept) + pairing.dropped.total() == possible
    assert set(pairing.dropped) <= {TIE, BELOW_MIN_GAP}


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=6))
def test_best_modes_are_part_of_all(scores: list[int]) -> None:
    values: list[float | None] = [float(score) for score in scores]
    everything = set(make_preferences(row(values), "all", 0).kept)
    rest = make_preferences(row(values), "best_vs_rest", 0)
    worst = make_preferences(row(values), "best_vs_worst", 0)
    assert set(worst.kept) <= set(rest.kept) <= everything
    assert len(rest.kept) + rest.dropped.total() == len(scores) - 1
    assert len(worst.kept) + worst.dropped.total() == 1
    assert all(scores[p.better] == max(scores) for p in rest.kept)
    assert all(scores[p.worse] == min(scores) for p in worst.kept)


def test_best_is_the_first_of_the_best_and_worst_the_last_of_the_worst() -> None:
    scores: list[float | None] = [2.0, 5.0, 5.0, 1.0, 1.0]
    assert make_preferences(row(scores), "best_vs_worst", 0).kept == (Preference(1, 4, 4.0),)
    rest = make_preferences(row(scores), "best_vs_rest", 0)
    assert [(p.better, p.worse) for p in rest.kept] == [(1, 0), (1, 3), (1, 4)]
    assert rest.dropped == {TIE: 1}


@pytest.mark.parametrize("mode", ["all", "best_vs_rest", "best_vs_worst", "as_given"])
def test_stated_preferences_are_taken_in_every_mode(mode: str) -> None:
    stated = (Preference(1, 0, 2.0), Preference(1, 2, None))
    assert make_preferences(row([1.0, 3.0, 2.0], stated), mode, 0).kept == stated  # type: ignore[arg-type]


def test_as_given_makes_none_from_scores() -> None:
    assert make_preferences(row([1.0, 3.0]), "as_given", 0) == ((), Counter())
    assert make_preferences(row(None), "all", 0) == ((), Counter())


@pytest.mark.parametrize(
    ("gap", "min_gap", "cause"),
    [(0.0, 0.0, TIE), (-1.0, 0.0, DISAGREE), (0.4, 0.5, BELOW_MIN_GAP), (0.5, 0.5, None), (None, 9.0, None)],
)
def test_stated_gaps(gap: float | None, min_gap: float, cause: str | None) -> None:
    pairing = make_preferences(row(None, (Preference(0, 1, gap),)), "all", min_gap)
    assert pairing.dropped == ({cause: 1} if cause else {})
    assert len(pairing.kept) == (cause is None)


def test_a_gap_that_misses_the_least_by_rounding_alone_is_kept() -> None:
    scores: list[float | None] = [11 / 3, 4.0]
    assert 4.0 - 11 / 3 != 1 / 3
    assert make_preferences(row(scores), "all", 1 / 3).kept


def test_identical_texts_have_no_preference_whatever_their_scores() -> None:
    pairing = make_preferences(row([3.0, 1.0, 2.0], texts="aab"), "all", 0)
    assert pairing.dropped == {IDENTICAL: 1}
    assert {(p.better, p.worse) for p in pairing.kept} == {(0, 2), (2, 1)}
