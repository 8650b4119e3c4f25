"""Rows that are read and curated in parts: the same result for parts of any size, and memory that does not grow."""

import datetime
import hashlib
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_curated_store import NAMES, plain, sections

from rmtrain.data import decontaminate, group_table, parquet, rows
from rmtrain.data.curated_store import stored_data
from rmtrain.data.curation import Candidate, Curation
from rmtrain.data.digests import digests, unique_ids
from rmtrain.data.files import strict_json
from rmtrain.data.load import load_data
from rmtrain.data.mixture import drop_contradictions, drop_duplicates
from rmtrain.data.row_output import json_line
from rmtrain.data.rows import StoredRows, take
from rmtrain.data.sources import read_rows
from rmtrain.data.splits import hold_out, leak_key
from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_any_size_give_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = DataSection(**sections(tmp_path)[name])
    whole = plain(load_data(section, 3))
    for module, size, value in (
        (group_table, "ROWS", 3),
        (parquet, "_BATCH", 2),
        (rows, "_FIRST", 1),
        (decontaminate, "_CHUNK", 2),
    ):
        monkeypatch.setattr(module, size, value)
    assert plain(load_data(section, 3)) == plain(stored_data(section, 3, tmp_path / "cache", print)) == whole


def group(prompt: str, texts: str, preferences: Sequence[tuple[int, int, float]]) -> PreferenceGroup:
    said = tuple((Message("assistant", text),) for text in texts)
    pairs = tuple(Preference(better, worse, None, probability) for better, worse, probability in preferences)
    return PreferenceGroup("", (Message("user", prompt),), said, pairs)


PAIRS = [(0, 1, 1.0), (1, 0, 1.0), (0, 2, 1.0), (2, 0, 1.0), (1, 2, 1.0), (2, 1, 1.0), (0, 1, 0.5), (2, 1, 0.5)]
GROUP = st.builds(
    group,
    st.sampled_from("pq"),
    st.sampled_from(["abc", "bac", "abd"]),
    st.lists(st.sampled_from(PAIRS), min_size=1, max_size=3),
)


def stated(each: PreferenceGroup) -> list[tuple[Any, ...]]:
    """The texts that each preference states; none for a tie."""
    return [
        (each.prompt, each.completions[p.better], each.completions[p.worse]) if p.probability != 0.5 else ()
        for p in each.preferences
    ]


def expected(entries: list[list[PreferenceGroup]], first_wins: bool) -> list[list[tuple[Any, ...]]]:
    """By the texts: what of each row is left after duplicates and contradictions, and its causes."""
    seen: list[tuple[int, Any]] = []
    fates: list[list[list[Any]]] = []
    for place, entry in enumerate(entries):
        fates.append([])
        for each in entry:
            content = {(each.prompt, each.completions[p.better], each.completions[p.worse]) for p in each.preferences}
            first = next((number for number, other in seen if other == content), None)
            cause = None if first is None else "duplicate" if first == place else "duplicate of another entry"
            seen += [(place, content)]
            fates[-1].append([cause, each.preferences, ()])
    by: dict[tuple[Any, ...], set[int]] = {}
    for place, (entry, own) in enumerate(zip(entries, fates, strict=True)):
        for each, (cause, _, _) in zip(entry, own, strict=True):
            for pair in stated(each) if cause is None else ():
                by.setdefault(pair, set()).add(place)
    for place, (entry, own) in enumerate(zip(entries, fates, strict=True)):
        for each, fate in zip(entry, own, strict=True):
            left, lost = [], []
            for preference, pair in zip(each.preferences, stated(each), strict=True) if fate[0] is None else ():
                against = by.get((pair[0], pair[2], pair[1]), set()) if pair else set()
                if place in against:
                    lost.append("contradiction")
                elif {e for e in against if not first_wins or (e < place and e not in by[pair])}:
                    lost.append("contradiction of another entry")
                else:
                    left.append(preference)
            if lost:
                cause = None if left else lost[0] if len({*lost}) == 1 else "no preference left"
                fate[:] = [cause, tuple(left), tuple(lost)]
    return [[tuple(fate) for fate in own] for own in fates]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(GROUP, max_size=5), min_size=1, max_size=3), st.booleans())
def test_duplicates_and_contradictions_are_those_of_the_texts(
    entries: list[list[PreferenceGroup]], first_wins: bool
) -> None:
    curations = [
        Curation.of(
            (Candidate(row, each) for row, each in enumerate(entry)), digests(leak_key(each.prompt) for each in entry)
        )
        for entry in entries
    ]
    drop_duplicates(curations)
    drop_contradictions(curations, first_wins)
    for curation, fates in zip(curations, expected(entries, first_wins), strict=True):
        every = curation.read(np.arange(len(fates)))
        found = zip(curation.outcomes.causes, every, curation.outcomes.lost_preferences, strict=True)
        assert [(cause, each.preferences, lost) for cause, each, lost in found] == fates


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "a#2#2", "b", "b#2"]), max_size=14))
def test_ids_are_those_that_a_set_of_all_names_gives(wanted: list[str]) -> None:
    given_before, last, result = set[str](), Counter[str](), []
    for name in wanted:
        unique = name
        while unique in given_before or (unique != name and unique in wanted):
            last[name] += 1
            unique = f"{name}#{last[name] + 1}"
        given_before.add(unique)
        result.append(unique)
    assert unique_ids(wanted) == result


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=40), st.integers(1, 3), st.integers(0, 99))
def test_hold_outs_are_taken_in_the_order_of_sha_256(prompts: list[int], share: int, seed: int) -> None:
    keys = [leak_key((Message("user", str(prompt)),)) for prompt in prompts]
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    held: list[int] = []
    for key in sorted(places, key=lambda key: hashlib.sha256(b"%d:%b" % (seed, key)).digest()):
        held += places[key] if len(held) < share else []
    if len(held) == len(keys):
        with pytest.raises(DataError, match="leaves no training rows"):
            hold_out(digests(keys), {"test": share}, seed)
    else:
        found = hold_out(digests(keys), {"test": share}, seed)
        assert [place for place, split in enumerate(found) if split] == sorted(held)


def write(path: Path, texts: Sequence[str]) -> Path:
    rows = ({"prompt": text, "chosen": f"{text} a", "rejected": f"{text} b"} for text in texts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_stored_rows_are_a_sequence_of_rows() -> None:
    listed: list[dict[str, Any]] = [{"n": n} for n in range(7)]
    stored = StoredRows.joined([StoredRows(lambda: iter(listed[:3]), 3), listed[3:]])
    assert (len(stored), list(stored), list(stored)) == (7, listed, listed)
    assert (stored[0], stored[-1], stored[1:6:2]) == (listed[0], listed[6], listed[1:6:2])
    assert list(take(stored, [1, 2, 6])) == [listed[1], listed[2], listed[6]]
    with pytest.raises(IndexError):
        stored[7]


def test_a_file_that_changes_between_two_readings_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ["a", "b"])
    read = read_rows(str(path))
    assert len(list(read.rows)) == 2
    write(path, ["a", "b", "c"])
    with pytest.raises(DataError, match="changed while it was read"):
        list(read.rows)


def test_a_column_of_a_late_row_is_found(tmp_path: Path) -> None:
    early = [{"prompt": str(n), "chosen": "a", "rejected": "b", "info": {}} for n in range(1200)]
    late = {"chosen": "a", "rejected": "b", "info": {"question": "late"}}
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*early, late]))
    section = DataSection(source={"train": str(path)}, columns={"prompt": "info.question"})
    train = load_data(section, 0).splits["train"]
    assert (len(train.groups), train.groups[-1].prompt) == (1201, (Message("user", "late"),))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_table, "ROWS", 50)
    monkeypatch.setattr(rows, "_FIRST", 50)
    draw, peaks = random.Random(0), list[int]()
    for count in (100, 100, 900):  # the first time, modules are loaded
        path = write(tmp_path / f"{count}.jsonl", [f"{draw.random()} {'word ' * 400}" for _ in range(count)])
        section = DataSection(source={"train": str(path)}, holdout={"validation": 20})
        if peaks:
            tracemalloc.start()
        data = stored_data(section, len(peaks), tmp_path / "cache", print)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(data.splits["train"].groups) == count - 20
    assert peaks[2] - peaks[1] < 800 * 2_000  # bytes; a row has 6,000 bytes of text, of which several copies are made


def test_a_line_of_json_holds_no_number_that_json_lacks() -> None:
    row = {"note": "ä", "size": nan, "cells": [{"a": inf, "b": 1.5}, (-inf, None)], "at": datetime.date(2024, 7, 26)}
    line = json_line(row)
    assert json.loads(line) == {
        "note": "ä",
        "size": None,
        "cells": [{"a": None, "b": 1.5}, [None, None]],
        "at": "2024-07-26",
    }
    assert strict_json(line.decode()) == json.loads(line)
    assert json_line({"note": "ä", "n": 0.1}) == '{"note": "ä", "n": 0.1}\n'.encode()
