"""Curation: each drop under its cause, and ledgers that balance."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.curate import Purpose, make_candidate
from rmtrain.data.curation import Curation
from rmtrain.data.digests import digests, repeated_places, unique_ids
from rmtrain.data.ledgers import Ledger, SplitReport
from rmtrain.data.mixture import CONTRADICTION, DUPLICATE, drop_contradictions, drop_duplicates
from rmtrain.data.schemas.rows import ParsedRow
from rmtrain.data.splits import leak_key
from rmtrain.data.types import Conversation, Message, Preference


def said(text: str) -> Conversation:
    return (Message("assistant", text),)


def pair(prompt: str, chosen: str, rejected: str, gap: float | None = None) -> ParsedRow:
    return ParsedRow((Message("user", prompt),), (said(chosen), said(rejected)), (Preference(0, 1, gap),))


def scored(prompt: str, **scores: float) -> ParsedRow:
    return ParsedRow((Message("user", prompt),), tuple(map(said, scores)), None, tuple(scores.values()))


def curation(rows: list[ParsedRow], purpose: Purpose = "train") -> Curation:
    made = [make_candidate(index, row, f"r{index}", purpose) for index, row in enumerate(rows)]
    return Curation.of(made, digests(leak_key(row.prompt) for row in rows))


def duplicates(split: Curation) -> list[int]:
    return repeated_places(split.facts.contents[split.kept])


def report_of(split: Curation, rows: int) -> SplitReport:
    return split.report("train", "pair", rows, lambda row: f"file:{row + 1}")


def ids(split: Curation) -> list[str]:
    return [group.id for group in split.groups]


def calling(name: str) -> Conversation:
    return (Message("assistant", "", f'{{"tool_calls": [{{"function": {{"name": "{name}"}}}}]}}'),)


def test_answers_that_differ_in_their_tool_calls_alone_are_different_and_not_empty() -> None:
    ask = (Message("user", "q"),)
    rows = [ParsedRow(ask, made, (Preference(0, 1),)) for made in ((calling("a"), calling("b")), (calling("a"),) * 2)]
    rows += [rows[0], rows[0]._replace(arguments='{"tools": [{}]}'), ParsedRow(ask, (said(""), calling("a")), ())]
    split = curation(rows)
    assert ids(split) == ["r0", "r2", "r3"]
    assert report_of(split, 5).rows.dropped == {"identical completions": 1, "empty completion": 1}
    assert duplicates(split) == [1]


def test_a_ledger_that_does_not_balance_is_refused() -> None:
    Ledger(3, 1, {"tie": 2})
    with pytest.raises(AssertionError, match="does not balance"):
        Ledger(3, 1, {"tie": 1})


def test_each_row_goes_by_its_cause() -> None:
    split = curation(
        [
            pair("q", "a", "b"),
            pair(" \n", "a", "b"),
            pair("q", "a", "  "),
            pair("q", "a", "a "),
            pair("q", "a", "b", gap=0.0),
            pair("q", "a", "b", gap=-1.0),
            ParsedRow((Message("user", "q"),), (said("a"), said("b"))),
            ParsedRow((Message("user", "q"),), (said("a"),)),
        ]
    )
    report = report_of(split, 8)
    assert report.rows == Ledger(
        8,
        1,
        {
            "empty prompt": 1,
            "empty completion": 1,
            "identical completions": 1,
            "tie": 1,
            "scores disagree": 1,
            "no preference": 1,
            "fewer than two usable completions": 1,
        },
    )
    assert report.examples["tie"] == "file:5"
    assert report.completions.total == 15
    assert report.preferences.kept == 1


def test_larger_groups_lose_single_completions_and_preferences() -> None:
    split = curation([scored("q", **{"a": 3.0, " ": 9.0, "b": 2.0, "c": 2.0})])
    (group,) = split.groups
    assert [completion[0].content for completion in group.completions] == ["a", "b", "c"]
    assert group.scores == (3.0, 2.0, 2.0)
    assert [(p.better, p.worse) for p in group.preferences] == [(0, 1), (0, 2)]
    report = report_of(split, 1)
    assert report.completions == Ledger(4, 3, {"empty completion": 1})
    assert report.preferences == Ledger(3, 2, {"tie": 1})


def test_stated_preferences_follow_their_completions_when_one_goes() -> None:
    row = ParsedRow(
        (Message("user", "q"),), tuple(map(said, ["", "a", "b"])), (Preference(2, 1, None), Preference(0, 1, None))
    )
    (group,) = curation([row]).groups
    assert group.preferences == (Preference(1, 0, None),)
    assert group.completions[1] == said("b")


def test_unrankable_completions_go_by_their_own_cause() -> None:
    row = scored("q", a=3.0, b=2.0, c=1.0)._replace(scores=(3.0, None, 1.0), faults=(None, "unrated completion", None))
    split = curation([row, row._replace(faults=("x", "x", None)), row._replace(faults=("x", "y", None))])
    assert [len(group.completions) for group in split.groups] == [2]
    assert report_of(split, 3).rows.dropped == {"x": 1, "fewer than two usable completions": 1}


def test_scoring_keeps_everything_in_place() -> None:
    rows = [pair(" ", "a", " "), pair("q", "a", "a"), ParsedRow((Message("user", "q"),), (said("a"),))]
    split = curation(rows, "scoring")
    assert ids(split) == ["r0", "r1", "r2"]
    assert report_of(split, 3).completions == Ledger(5, 5, {})


def test_duplicates_are_rows_with_the_same_prompt_and_preferences() -> None:
    rows = [
        pair("q", "a", "b"),
        pair("q", "a", "b", gap=2.0),
        pair("q", "b", "a"),
        pair("Q", "a", "b"),
        scored("p", a=3.0, b=2.0, c=1.0),
        scored("p", c=1.0, a=9.0, b=8.0),
    ]
    split = curation(rows)
    assert duplicates(split) == [1, 5]
    drop_duplicates([split])
    report = report_of(split, 6)
    assert report.rows == Ledger(6, 4, {DUPLICATE: 2})
    assert report.preferences.dropped == {DUPLICATE: 4}
    assert report.completions.dropped == {DUPLICATE: 5}


def test_contradictions_go_both_ways_and_take_the_row_with_its_last_preference() -> None:
    split = curation([pair("q", "a", "b"), pair("q", "b", "a"), pair("p", "b", "a"), scored("q", a=2.0, b=1.0, c=0.0)])
    drop_contradictions([split])
    assert ids(split) == ["r2", "r3"]
    assert [(p.better, p.worse) for p in [*split.groups][1].preferences] == [(0, 2), (1, 2)]
    report = report_of(split, 4)
    assert report.rows.dropped == {CONTRADICTION: 2}
    assert report.preferences == Ledger(6, 3, {CONTRADICTION: 3})


def test_a_row_that_loses_its_preferences_to_several_causes_says_so() -> None:
    tie_and_more = scored("q", a=2.0, b=2.0)._replace(
        completions=(said("a"), said("b"), said("c")), scores=(2.0, 2.0, 1.0)
    )
    split = curation([tie_and_more, pair("q", "c", "a"), pair("q", "c", "b")])
    drop_contradictions([split])
    assert report_of(split, 3).rows.dropped == {"no preference left": 1, CONTRADICTION: 2}


TEXT = st.sampled_from(["a", "b", "c", " "])
PAIR = st.builds(pair, TEXT, TEXT, TEXT, st.sampled_from([None, 0.0, 1.0, -1.0]))
GROUP = st.lists(st.tuples(TEXT, st.integers(1, 3)), min_size=1, max_size=5).map(
    lambda scores: ParsedRow(
        (Message("user", "q"),), tuple(said(text) for text, _ in scores), None, tuple(float(s) for _, s in scores)
    )
)


@settings(deadline=None)
@given(st.lists(PAIR | GROUP, max_size=12), st.sampled_from(["train", "evaluation"]))
def test_ledgers_balance_and_nothing_bad_is_left(rows: list[ParsedRow], purpose: Any) -> None:
    split = curation(rows, purpose)
    drop_duplicates([split])
    drop_contradictions([split])
    report = report_of(split, len(rows))  # raises when they do not
    assert report.completions.total == sum(len(row.completions) for row in rows)
    stated: set[tuple[Any, Any, Any]] = set()
    for group in split.groups:
        assert group.preferences
        assert all(completion[0].content.strip() for completion in group.completions)
        stated |= {(group.prompt, group.completions[p.better], group.completions[p.worse]) for p in group.preferences}
    assert not stated & {(prompt, worse, better) for prompt, better, worse in stated}


def test_ids_are_made_unique() -> None:
    assert unique_ids(["a", "b", "a", "a#2", "a"]) == ["a", "b", "a#3", "a#2", "a#4"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "train-1", "b"]), max_size=12))
def test_ids_are_unique_and_first_comers_keep_theirs(wanted: list[str]) -> None:
    result = unique_ids(wanted)
    assert max(Counter(result).values(), default=1) == 1
    first = [place for place, name in enumerate(wanted) if name not in wanted[:place]]
    assert all(result[place] == wanted[place] for place in first)


def test_many_rows_of_one_id_take_no_quadratic_time() -> None:
    assert len(set(unique_ids(["same"] * 50_000))) == 50_000
