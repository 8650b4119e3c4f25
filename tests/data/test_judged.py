"""What judges say of training pairs: margins, rules, books, folds, and a source that is read back alike."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_groups
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.curated_source import curation_of, record_path, write_curated
from rmtrain.data.judged import (
    KEPT,
    MAJORITY,
    REFUSED,
    Judge,
    Judged,
    Rule,
    agreements,
    folds_of,
    mean_margins,
    source_row,
)
from rmtrain.data.reader import read_source
from rmtrain.data.types import Message, Preference, PreferenceGroup, has_votes
from rmtrain.errors import DataError, InputError
from rmtrain.recipe.data_schema import DataSection

margin = st.one_of(st.none(), st.integers(-3, 3))
tables = st.integers(1, 4).flatmap(
    lambda j: st.lists(st.lists(margin, min_size=j, max_size=j), min_size=1, max_size=20)
)


def array(rows: list[list[int | None]]) -> Any:
    return np.array([[math.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


@settings(max_examples=100, deadline=None)
@given(tables, st.sampled_from([0.1, 0.3, 0.5]))
def test_figures_and_rules_equal_a_computation_row_by_row(rows: list[list[int | None]], share: float) -> None:
    margins, none = array(rows), np.zeros(len(rows), dtype=np.bool_)
    scales = []
    for column in zip(*rows, strict=True):
        known = [value for value in column if value is not None]
        square = sum(value**2 for value in known) / max(1, len(known))
        scales.append(math.sqrt(square) or 1.0)
    means: list[float] = []
    for row, agreement, majority in zip(
        rows, agreements(margins), Rule.of("majority").rejects(margins, none), strict=True
    ):
        known = [(value, scale) for value, scale in zip(row, scales, strict=True) if value is not None]
        means.append(sum(value / scale for value, scale in known) / len(known) if known else math.nan)
        share_of = sum(1 if v > 0 else 0.5 if v == 0 else 0 for v, _ in known) / len(known) if known else math.nan
        assert agreement == pytest.approx(share_of, nan_ok=True)
        assert majority == (sum(v < 0 for v, _ in known) > len(known) / 2)
    assert mean_margins(margins) == pytest.approx(means, nan_ok=True)
    judged = [place for place, mean in enumerate(means) if not math.isnan(mean)]
    count = round(share * len(judged))
    for kind, sign in (("hardest", 1), ("easiest", -1)):
        rejected = Rule.of(f"{kind}={share}").rejects(margins, none)
        assert rejected.sum() == count
        assert not any(rejected[place] for place in range(len(rows)) if math.isnan(means[place]))
        if 0 < count < len(judged):
            inside = max(sign * mean_margins(margins)[rejected])
            assert inside <= min(sign * mean_margins(margins)[place] for place in judged if not rejected[place])


@pytest.mark.parametrize("text", ["most", "hardest", "hardest=0", "easiest=1", "hardest=-0.1", "easiest=nan", ""])
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="no such rule"):
        Rule.of(text)


ODD = PreferenceGroup(
    "odd",
    (
        Message("system", "Be kind"),
        Message("user", "\n\nHuman: no transcript"),
        Message("assistant", "", '{"tool_calls": [1]}'),
    ),
    (
        (Message("assistant", "[{'role': 1}]"),),
        (Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")),
    ),
    (Preference(1, 0, 2.5),),
    "flan",
    (1.0, 3.5),
    '{"tools": [{"name": "f"}], "date": "today"}',
)


def without_gaps(group: PreferenceGroup) -> PreferenceGroup:
    return group._replace(preferences=tuple(preference._replace(gap=None) for preference in group.preferences))


def test_the_new_source_is_read_as_the_same_groups(tmp_path: Path) -> None:
    groups = [ODD, *make_groups(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(source_row(group)) + "\n" for group in groups))
    read = read_source(str(path), None, evaluation=True).groups
    assert read[0] == ODD
    assert [group._replace(preferences=()) for group in read] == [group._replace(preferences=()) for group in groups]
    assert [[p[:2] for p in group.preferences] for group in read] == [
        [p[:2] for p in group.preferences] for group in groups
    ]
    ids = PreferenceGroup("x", (), ((Message("tokens", "[1]"),), (Message("tokens", "[2]"),)), (Preference(0, 1),))
    with pytest.raises(DataError, match="rows of token ids can't be curated"):
        source_row(ids)


def test_shares_of_raters_go_with_the_rows(tmp_path: Path) -> None:
    two, three = groups_of([(0, 1)], [(1, 0)]), groups_of([(2, 0), (0, 1)])
    groups = [
        *(group._replace(id=f"pair {n}", completions=group.completions[:2]) for n, group in enumerate(two)),
        *three,
    ]
    groups = [
        group._replace(preferences=tuple(p._replace(probability=0.75) for p in group.preferences)) for group in groups
    ]
    groups.append(groups_of([(0, 2)])[0]._replace(id="certain"))
    assert has_votes(groups)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(source_row(group, soft=True)) + "\n" for group in groups))
    data = DataSection(source=str(path), votes="votes")
    read = read_source(str(path), None, data, evaluation=True).groups
    assert {each.id: {*each.preferences} for each in read} == {each.id: {*each.preferences} for each in groups}


def groups_of(*pairs: list[tuple[int, int]]) -> list[PreferenceGroup]:
    texts = tuple((Message("assistant", text),) for text in "abc")
    return [
        PreferenceGroup(f"g{n}", (Message("user", f"q{n}"),), texts, tuple(Preference(*pair) for pair in own))
        for n, own in enumerate(pairs)
    ]


def test_books_balance_and_rows_keep_what_is_left_or_all_when_marked() -> None:
    groups = groups_of([(0, 1), (0, 2)], [(1, 2)], [(2, 0), (2, 1)], [(0, 1)])
    rewards = {"g0": [3.0, 5.0, 1.0], "g1": [0.0, 0.0, 9.0], "g2": [1.0, 2.0, 8.0]}
    judge = Judge("a/b", rewards, {"g3": "no tools"})
    assert judge.margins(groups) == pytest.approx([-2.0, 2.0, -9.0, 7.0, 6.0, math.nan], nan_ok=True)
    assert judge.figures(groups) == {"ckpt": "a/b", "n": 5, "agreement": 3 / 5, "refused": 1}
    judged = Judged.by([Rule.of("majority"), Rule.of("easiest=0.4")], groups, [judge])
    assert judged.verdicts == [MAJORITY, KEPT, MAJORITY, "easiest 40 %", "easiest 40 %", KEPT]
    assert (judged.preferences().total, judged.preferences().kept) == (6, 2)
    assert dict(judged.rows().dropped) == {MAJORITY: 1, "easiest 40 %": 1}
    first, last = judged.source(mark=False)
    assert (first["id"], first["preferences"], first["agreement"]) == ("g0", [[0, 2]], [1.0])
    assert (last["id"], last["agreement"], last["margins"]) == ("g3", [None], [[None]])
    strict = Judged.by([Rule.of("refused"), Rule.of("majority")], groups, [judge, Judge("c/d", {})])
    assert dict(strict.rows().dropped) == {MAJORITY: 1, REFUSED: 1}
    assert strict.verdicts[-1] == REFUSED
    marked = judged.source(mark=True)
    assert [row["preferences"] for row in marked] == [source_row(group)["preferences"] for group in groups]
    assert [verdict for row in marked for verdict in row["verdicts"]] == judged.verdicts


def test_folds_follow_prompts_alone() -> None:
    groups = make_groups(60)
    folds = folds_of(groups, 4, seed=3)
    assert sorted(np.bincount(folds)) == [15] * 4
    assert folds_of(groups[::-1], 4, seed=3) == folds[::-1]
    assert folds_of(groups, 4, seed=4) != folds
    twice = folds_of([*groups, *groups], 4, seed=3)
    assert twice == folds * 2


def test_the_record_goes_with_the_rows_that_it_describes(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    record = {"rules": [MAJORITY], "marked": True, "weight": 0.5, "judges": [{"ckpt": "a/b"}], "data": {}, "rows": {}}
    write_curated(path, [{"id": "1"}], record)
    assert record_path(path).name == "kept.curation.json"
    found = {key: value for key, value in record.items() if key != "rows"}
    assert curation_of({"location": str(path)}) == found
    assert not any(curation_of({"location": other}) for other in (["a.jsonl"], "org/set", None))
    path.write_text('{"id": "2"}\n')
    assert curation_of({"location": str(path)}) is None
    with pytest.raises(DataError, match="the rules reject every row"):
        write_curated(path, [], record)
