"""Mixtures: entries read each in its own way, rules across them, weights, and figures that add up."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.entry_figures import entry_figures
from rmtrain.data.ledgers import Ledger
from rmtrain.data.load import CuratedData, load_data
from rmtrain.data.mixture import one_pass, weighted
from rmtrain.data.prepare import tokenize_splits
from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization
from rmtrain.display import Silent
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

Row = dict[str, Any]


def pairs(start: int, stop: int, more: str = "", **cells: Any) -> list[Row]:
    return [
        {"prompt": f"w{i} w{i + 1}", "chosen": f"w{i} w3 {more}".strip(), "rejected": f"w{i + 2}", **cells}
        for i in range(start, stop)
    ]


def flipped(rows: Sequence[Row]) -> list[Row]:
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Load a mixture whose training entries have these rows; other keys are of the data section."""

    def loaded(entries: dict[str, Any], seed: int = 0, **data: Any) -> CuratedData:
        train = []
        for name, entry in entries.items():
            rows, keys = entry if isinstance(entry, tuple) else (entry, {})
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            train.append({"source": str(tmp_path / f"{name}.jsonl"), **keys})
        more = data.pop("source", {})
        return load_data(DataSection(source={"train": train, **more}, **data), seed)

    return loaded


def kept(data: CuratedData, split: str = "train") -> dict[str, list[str]]:
    """The ids that each entry keeps, without the entry's name."""
    return {
        part.entry.name: [group.id.removeprefix(f"{part.entry.name}/") for group in groups]
        for part, groups in data.splits[split].by_part()
    }


def dropped(data: CuratedData) -> dict[str, dict[str, int]]:
    return {part.entry.name: dict(part.report.rows.dropped) for part in data.splits["train"].parts}


def test_each_entry_is_read_in_its_own_way_and_the_rest_is_the_sections(load: Any) -> None:
    renamed = [{"question": "w1", "good": "w2", "bad": "w3", "source": "own"}]
    scored = [{"prompt": "w9", "completions": ["w1", "w2", "w3"], "scores": [3.0, 2.5, 1.0]}]
    data = load(
        {
            "a": (renamed, {"columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}}),
            "b": (scored, {"name": "graded", "preferences": "best_vs_rest"}),
            "c": (scored[:1], {"min_gap": 0.0, "tags": ["code"]}),
        },
        min_gap=1.0,
        duplicates="keep",
    )
    train = data.splits["train"]
    assert [group.id for group in train.groups] == ["a/train-0", "graded/train-0", "c/train-0"]
    assert [group.source for group in train.groups] == ["a/own", "graded", "c"]
    assert [[(p.better, p.worse) for p in group.preferences] for group in train.groups] == [
        [(0, 1)],
        [(0, 2)],
        [(0, 1), (0, 2), (1, 2)],
    ]
    assert (train.mixed, train.source) == (True, "a mixture of a, graded, c")
    assert train.place("graded/train-0").endswith("b.jsonl:1")
    assert train.parts[2].entry.tags == ("code",)
    assert [*train.origin["entries"]] == ["a", "graded", "c"]
    assert train.origin["entries"]["a"]["read_as"]["columns"]["chosen"] == "good"


def test_a_mixture_of_one_differs_from_its_source_by_the_name_alone(load: Any, tmp_path: Path) -> None:
    rows = [*pairs(0, 9), *pairs(0, 2), *flipped(pairs(3, 4))]
    mixed = load({"a": rows}, limit={"train": 4}).splits["train"]
    source = {"train": str(tmp_path / "a.jsonl")}
    alone = load_data(DataSection(source=source, limit={"train": 4}), 0).splits["train"]
    renamed = [group._replace(id=group.id.removeprefix("a/"), source="") for group in mixed.groups]
    assert renamed == alone.groups
    assert mixed.report.rows == alone.report.rows
    assert "entries" not in alone.origin


def test_what_is_repeated_across_entries_is_booked_by_the_later_one(load: Any) -> None:
    data = load({"a": [*pairs(0, 4), *pairs(0, 1)], "b": [*pairs(2, 6), *pairs(5, 6)]})
    assert dropped(data) == {"a": {"duplicate": 1}, "b": {"duplicate of another entry": 2, "duplicate": 1}}
    assert data.splits["train"].report.rows == Ledger(10, 6, {"duplicate": 2, "duplicate of another entry": 2})
    other_answers = load({"a": pairs(0, 4), "b": pairs(2, 6, "w7")})
    assert not any(dropped(other_answers).values())
    assert "train: prompts in both a and b: 2, kept" in other_answers.notes


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("drop", {"a": 2, "b": 1, "c": 1}), ("first", {"a": 4, "b": 2, "c": 1}), ("keep", {"a": 4, "b": 4, "c": 3})],
)
def test_pairs_that_entries_label_both_ways_follow_the_rule(load: Any, rule: str, expected: dict[str, int]) -> None:
    rows, others = pairs(0, 4), pairs(10, 13)
    b = [*flipped(rows[:2]), others[0], others[1]]
    c = [flipped(rows)[0], flipped(others)[0], others[2]]
    data = load({"a": rows, "b": b, "c": c}, contradictions=rule, duplicates="keep")
    assert {name: len(ids) for name, ids in kept(data).items()} == expected
    causes = {cause for own in dropped(data).values() for cause in own}
    assert causes == (set() if rule == "keep" else {"contradiction of another entry"})


def test_an_entry_that_contradicts_itself_says_nothing_against_another(load: Any) -> None:
    both = [*pairs(0, 1), *flipped(pairs(0, 1)), *pairs(5, 6)]
    data = load({"a": both, "b": flipped(pairs(0, 1))}, contradictions="first", duplicates="keep")
    assert dropped(data) == {"a": {"contradiction": 2}, "b": {}}


def test_leaks_and_holdouts_reach_over_all_entries(load: Any, tmp_path: Path) -> None:
    test = [{"source": str(tmp_path / "a.jsonl"), "name": "again", "limit": 3}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(1, 3)))
    data = load({"a": pairs(0, 4), "b": pairs(2, 6, "w7")}, source={"test": str(tmp_path / "t.jsonl")})
    assert dropped(data) == {"a": {"leak": 2}, "b": {"leak": 1}}
    assert [(leak.first, leak.second, leak.prompts, leak.rows) for leak in data.leaks] == [("train", "test", 2, 3)]
    held = load(
        {"a": pairs(0, 10), "b": pairs(20, 30)}, holdout={"validation": 0.3}, source={"test": test}, leaks="keep"
    )
    assert len(held.splits["validation"].groups) == 6
    assert sum(map(len, kept(held, "validation").values())) == 6
    assert {*kept(held)} == {"a", "b"}
    assert len(kept(held, "test")["again"]) == 3
    shared = {group.prompt for group in held.splits["validation"].groups}
    assert not shared & {group.prompt for group in held.splits["train"].groups}
    with pytest.raises(DataError, match=r"= 0\.01 holds out no row"):
        load({"a": pairs(0, 10), "b": pairs(20, 30)}, holdout={"validation": 0.01})


def test_weights_are_shares_of_the_groups(load: Any) -> None:
    entries = {"a": (pairs(0, 12), {"weight": 1}), "b": (pairs(20, 28), {"weight": 3})}
    found = load(entries)
    assert {name: len(ids) for name, ids in kept(found).items()} == {"a": 3, "b": 8}  # 8 is all of b; 2.67 of a
    assert dropped(found) == {"a": {"beyond the weight": 9}, "b": {}}
    assert kept(found) == kept(load(entries)) != kept(load(entries, seed=1))
    alone = load({"a": (pairs(0, 12), {"weight": 1}), "c": (pairs(30, 38, "w5"), {"weight": 3})})
    assert kept(alone)["a"] == kept(found)["a"]  # a draw depends on the entry, not on the others
    assert {name: len(ids) for name, ids in kept(load(entries, limit={"train": 4})).items()} == {"a": 1, "b": 3}


def test_repeated_entries_are_taken_more_often_and_stored_once(load: Any) -> None:
    entries = {"a": (pairs(0, 12), {"weight": 1}), "b": (pairs(20, 24), {"weight": 3})}
    ready = tokenized(load(entries, repeat=True))
    assert len(ready.tokens) == 4 + 4  # all 16 groups: 4 of a, and the 4 of b three times
    taken = Counter(ready.tokens.group(row).id.partition("/")[0] for row in ready.one_pass(0))
    assert taken == {"a": 4, "b": 12}
    assert ready.one_pass(0) == ready.one_pass(0)
    figures = entry_figures(ready)
    assert (figures["b"].groups, figures["b"].share_of_groups, figures["b"].rows.kept) == (12, 0.75, 4)
    assert figures["a"].share_of_tokens + figures["b"].share_of_tokens == pytest.approx(1)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 500)), min_size=1, max_size=6),
    st.none() | st.integers(1, 400),
    st.booleans(),
)
def test_quotas_keep_to_the_weights_the_sizes_and_the_limit(
    entries: list[tuple[float, int]], limit: int | None, repeat: bool
) -> None:
    weights, sizes = zip(*entries, strict=True)
    takes = weighted(weights, sizes, limit, repeat)
    assert all(take >= 1 for take in takes)
    if not repeat:
        assert all(take <= size for take, size in zip(takes, sizes, strict=True))
    total = (limit or sum(sizes)) if repeat else min(s / w for w, s in entries) * sum(weights)
    total = total if limit is None else min(total, limit)
    for weight, take in zip(weights, takes, strict=True):
        assert abs(take - max(1, total * weight / sum(weights))) <= 0.5 + 1e-6


@given(
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 40)), min_size=1, max_size=5), st.integers(0, 3)
)
def test_a_pass_takes_each_row_equally_often_or_once_more(entries: list[tuple[int, int | None]], seed: int) -> None:
    sizes, repeated = zip(*entries, strict=True)
    rows, start = Counter(one_pass(sizes, repeated, seed)), 0
    for size, most in entries:
        times = [rows[row] for row in range(start, start + size)]
        assert sum(times) == (max(size, most or 0) if size else 0)
        assert not times or max(times) - min(times) <= 1
        start += size
    assert sum(rows.values()) == sum(max(size, most or 0) for size, most in entries if size)


def tokenized(data: CuratedData, split: str = "train") -> Any:
    renderer = Renderer.for_tokenizer(make_tokenizer())
    return tokenize_splits(data, Tokenization(renderer, 30, "drop"), Silent())[split]


def test_the_figures_of_entries_add_up_to_those_of_the_split(load: Any) -> None:
    long = [{"prompt": "w1", "chosen": "w2 " * 40, "rejected": "w3"}]
    groups = [{"prompt": f"w{i}", "completions": ["w1", "w2 w3", "w4 w5 w6"], "scores": [3, 2, 1]} for i in range(4)]
    ready = tokenized(load({"a": [*pairs(0, 6), *long, *pairs(0, 1)], "b": groups}))
    figures = entry_figures(ready)
    assert [each.rows for each in figures.values()] == [
        Ledger(8, 6, {"duplicate": 1, "over length": 1}),
        Ledger(4, 4, {}),
    ]
    assert ready.ledger("rows") == Ledger(12, 10, {"duplicate": 1, "over length": 1})
    assert [each.length_baseline for each in figures.values()] == [1.0, 0.0]
    assert [each.completions_per_group for each in figures.values()] == [2.0, 3.0]
    assert [each.share_of_groups for each in figures.values()] == [0.6, 0.4]
    whole = [ready.tokens.group(row) for row in range(len(ready.tokens))]
    own = [part.tokens.group(row) for part in ready.parts for row in range(len(part.tokens))]
    assert [group.id for group in whole] == [group.id for group in own]
    assert sum(each.tokens for each in figures.values()) == sum(
        len(group.prefix) + sum(map(len, group.suffixes)) for group in whole
    )


def test_an_entry_that_loses_every_row_is_named(load: Any) -> None:
    with pytest.raises(
        DataError, match=r"b: .*b\.jsonl: no row of the train split is left \(duplicate of another entry 2"
    ):
        load({"a": pairs(0, 4), "b": pairs(0, 2)})
