"""Curated data from the cache: equal to what is curated directly, made once, and made again when anything changed."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer
from test_decontaminate import LONG, pair, write

from rmtrain.data import curated_store
from rmtrain.data.curated_store import known_splits, open_stored, stored_data
from rmtrain.data.group_table import GroupTable, PlacedGroup, write_groups
from rmtrain.data.load import CuratedData, load_data
from rmtrain.data.render import Renderer
from rmtrain.data.token_cache import tokenize_split
from rmtrain.data.tokenize import Tokenization
from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "look"}}]}
SPOKEN = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Ünï\u2028 東京"}]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def pairs(count: int, **more: Any) -> list[dict[str, Any]]:
    rows = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(count)]
    again = {**rows[3], "chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}
    return [*rows, rows[1], again, {**rows[5], "prompt": 7}, {**rows[6], "chosen": " "}, {**rows[7], "prompt": "leak"}]


def scored(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"task {i}",
            "completions": ["a", f"b {i}", "c"],
            "scores": [i % 3, None, 0.1 + i],
            "subset": f"s{i % 2}",
        }
        for i in range(count)
    ]


def sections(folder: Path) -> dict[str, dict[str, Any]]:
    """Data sections by what is special about them."""
    lines = folder / "blank.jsonl"
    lines.write_text("\n\n".join(map(json.dumps, pairs(40))) + "\n")
    calls = [
        {"prompt": SPOKEN, "chosen": [CALL], "rejected": [{"role": "assistant", "content": f"no {i}"}], "tools": TOOLS}
        for i in range(9)
    ]
    leaks = {"test": write(folder / "leaks.jsonl", [pair(" LEAK")])}
    bench = write(folder / "bench.jsonl", [pair(LONG, subset="hep-go", id=3)])
    mixed = [
        {
            "source": write(folder / "a.jsonl", [*pairs(30), pair(f"Well: {LONG}")]),
            "name": "a",
            "weight": 2,
            "tags": ["t"],
        },
        {"source": write(folder / "b.jsonl", scored(30)), "name": "b", "weight": 1, "min_gap": 0.5},
    ]
    votes = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "votes": i / 8} for i in range(9)]
    ids = [{"chosen_ids": [1, 5 + i, 2], "rejected_ids": [1, 7, 2], "prompt_ids": [1]} for i in range(8)]
    return {
        "lines": {"source": {"train": str(lines), **leaks}},
        "held out": {
            "source": {"train": write(folder / "h.jsonl", pairs(40))},
            "holdout": {"validation": 5, "test": 0.1},
        },
        "parquet": {"source": {"train": write_parquet(folder / "x.parquet", scored(40))}, "limit": {"train": 7}},
        "tools": {"source": {"train": write(folder / "c.jsonl", calls)}},
        "votes": {"source": {"train": write(folder / "v.jsonl", votes)}, "votes": "votes", "tied": "half"},
        "ids": {"source": {"train": write(folder / "i.jsonl", ids)}},
        "mixture": {
            "source": {"train": mixed, **leaks},
            "decontaminate": [f"rewardbench-1={bench}"],
            "augment": {"other_prompts": 0.3},
            "repeat": True,
        },
        "held-out mixture": {"source": {"train": mixed}, "holdout": {"test": 9}},
        "entry without groups": {
            "source": {"train": [{"source": entry["source"], "name": entry["name"]} for entry in mixed]},
            "limit": {"train": 1},
        },
        "demo": {"source": "demo", "demo_groups": {"train": 20, "validation": 10, "test": 10}},
    }


NAMES = ("lines", "held out", "parquet", "tools", "votes", "ids", "mixture", "held-out mixture", "demo")
NAMES += ("entry without groups",)


def plain(data: CuratedData) -> Any:
    """All of it, in values that are compared and printed alike wherever they were read from."""
    splits = {
        name: (repr(list(split.groups)), [replace(part, rows=list(part.rows), places=None) for part in split.parts])  # type: ignore[arg-type]
        for name, split in data.splits.items()
    }
    places = [
        [split.place(group.id) for group in split.groups] + [split.report] + [list(split.rows)]
        for split in data.splits.values()
    ]
    return splits, places, data.leaks, data.notes


@pytest.mark.parametrize("name", NAMES)
def test_stored_data_are_those_curated_directly(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = DataSection(**sections(tmp_path)[name])
    direct, told = load_data(section, 3), list[str]()
    first = stored_data(section, 3, tmp_path / "cache", told.append)
    monkeypatch.setattr(curated_store, "load_data", lambda *_: pytest.fail("the source was read again"))
    second = stored_data(section, 3, tmp_path / "cache", told.append)
    assert first.folder is not None
    process = open_stored(first.folder, section)
    assert process is not None
    assert plain(first) == plain(second) == plain(process) == plain(direct)
    assert told == []
    renderer = Renderer.for_tokenizer(make_tokenizer())
    for own, split in direct.splits.items():
        expected = tokenize_split(split.groups, Tokenization(renderer, 64, "truncate_prompt"), tmp_path / "direct")
        for _ in range(2):
            made = tokenize_split(
                first.splits[own].groups, Tokenization(renderer, 64, "truncate_prompt"), tmp_path / "tokens"
            )
            assert made.fingerprint == expected.fingerprint
            assert tuple(made)[2:] == tuple(expected)[2:]
            assert made.table.to_list() == expected.table.to_list()


@pytest.mark.parametrize("name", ["lines", "held out", "held-out mixture"])
def test_splits_are_taken_from_the_cache_if_it_has_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = DataSection(**sections(tmp_path)[name])
    alone = known_splits(section, 3, ["test"], tmp_path / "cache")["test"]
    assert not (tmp_path / "cache").exists()
    stored_data(section, 3, tmp_path / "cache", print)
    monkeypatch.setattr(curated_store, "load_data", lambda *_: pytest.fail("the source was read again"))
    found = known_splits(section, 3, ["test"], tmp_path / "cache")["test"]
    assert (found.groups, found.rows, found.report, found.origin) == (
        alone.groups,
        alone.rows,
        alone.report,
        alone.origin,
    )


def test_what_the_groups_depend_on_makes_another_entry(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "x.jsonl", pairs(20)))

    def made(seed: int = 0, **keys: Any) -> str:
        section = DataSection(source=str(path), splits={"train": "train"}, **keys)
        folder = stored_data(section, seed, tmp_path / "cache", print).folder
        assert folder is not None
        return folder.name

    first = made()
    assert first == made(max_length=77, over_length="drop")
    names = [first, made(1), made(duplicates="keep"), made(limit={"train": 3})]
    path.write_text(path.read_text().replace("good 4", "best 4"))
    names.append(made())
    path.rename(path := tmp_path / "y.jsonl")  # reports name the file
    names.append(made())
    assert len({*names}) == len(names)


def test_the_code_that_curates_is_a_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = DataSection(source=write(tmp_path / "x.jsonl", pairs(20)), splits={"train": "train"})
    before = stored_data(section, 0, tmp_path / "cache", print).folder
    monkeypatch.setattr(curated_store, "_code", lambda: "other code")
    assert stored_data(section, 0, tmp_path / "cache", print).folder != before


@pytest.mark.parametrize("file", ["0.arrow", "record.json", "0-0-lines.npy", "checksums"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, file: str) -> None:
    section, told = DataSection(source=write(tmp_path / "x.jsonl", pairs(20)), splits={"train": "train"}), list[str]()
    first = stored_data(section, 0, tmp_path / "cache", told.append)
    assert first.folder is not None
    content = bytearray((first.folder / file).read_bytes())
    content[len(content) // 2] ^= 16
    (first.folder / file).unlink()  # whoever has it open reads on
    (first.folder / file).write_bytes(content)
    assert open_stored(first.folder, section) is None
    again = stored_data(section, 0, tmp_path / "cache", told.append)
    assert told == [f"the curated rows in {first.folder} are damaged, so they are made again"]
    assert plain(again) == plain(first) == plain(load_data(section, 0))


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(tmp_path / "x.jsonl", pairs(20)))
    section, original = DataSection(source=str(path), splits={"train": "train"}), load_data

    def load(*given: Any, **kept: Any) -> CuratedData:
        made = original(*given, **kept)
        path.write_text(path.read_text().replace("good 4", "best 4"))
        return made

    monkeypatch.setattr(curated_store, "load_data", load)
    with pytest.raises(DataError, match="changed while it was read"):
        stored_data(section, 0, tmp_path / "cache", print)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_text_that_arrow_cannot_store_is_kept_in_memory(tmp_path: Path) -> None:
    kwargs = '{"name": "\\ud800"}'  # JSON within JSON, which no reader checks
    path = write(tmp_path / "x.jsonl", [{**row, "chat_template_kwargs": kwargs} for row in pairs(20)])
    section = DataSection(source=path, splits={"train": "train"})
    made = stored_data(section, 0, tmp_path / "cache", print)
    assert made.folder is None
    assert plain(made) == plain(load_data(section, 0))


def test_an_error_is_that_of_reading_directly(tmp_path: Path) -> None:
    section = DataSection(source=str(tmp_path / "nix.jsonl"))
    with pytest.raises(DataError) as direct:
        load_data(section, 0)
    with pytest.raises(DataError) as stored:
        stored_data(section, 0, tmp_path / "cache", print)
    assert (stored.value.message, stored.value.hint) == (direct.value.message, direct.value.hint)


def test_a_table_is_read_by_place_and_by_slice(tmp_path: Path) -> None:
    message = Message("assistant", "", '{"tool_calls": [{"name": "look"}]}')
    groups = [
        PreferenceGroup(
            f"g{i}", (Message("user", f"p{i}"),) * (i % 3), ((message,), (message,) * (i % 4)), (), "", None, "{}"
        )
        for i in range(1, 2300)
    ]
    groups[7] = groups[7]._replace(preferences=(Preference(0, 1, 0.1, 0.3), Preference(1, 0)), scores=(1.0, 1 / 3))
    write_groups(tmp_path / "x.arrow", (PlacedGroup(2 * i, group) for i, group in enumerate(groups)))
    table = GroupTable.open(tmp_path / "x.arrow", "x")
    assert list(table) == groups
    assert (table[7], table[-1], list(table[5:1203:2])) == (groups[7], groups[-1], groups[5:1203:2])
    assert (list(table[9:9]), list(table[len(groups) :]), list(table[1000:][1:3])) == ([], [], groups[1001:1003])
    assert len({table.name, table[5:].name, table[6:].name, table[5:][1:2].name, table[5:][1:3].name}) == 5
    assert table.column("row").to_pylist() == list(range(0, 2 * len(groups), 2))
    with pytest.raises(IndexError):
        table[len(groups)]
    write_groups(tmp_path / "empty.arrow", [])
    empty = GroupTable.open(tmp_path / "empty.arrow", "")
    assert (list(empty), empty.column("id").to_pylist()) == ([], [])


def _store(source: str, cache: str, started: Any) -> None:
    """In another process: store a source once all are ready, and leave a mark if it was really read."""

    def load(*given: Any, **kept: Any) -> CuratedData:
        Path(f"{cache}-read-by-{os.getpid()}").touch()
        return load_data(*given, **kept)

    curated_store.load_data = load
    started.wait()
    section = DataSection(source=source, splits={"train": "train"})
    os._exit(0 if len(stored_data(section, 0, Path(cache), print).splits["train"].groups) == 20 else 1)


@pytest.mark.slow
def test_of_two_processes_at_once_one_reads_for_both(tmp_path: Path) -> None:
    context, source = multiprocessing.get_context("spawn"), write(tmp_path / "x.jsonl", pairs(20))
    barrier = context.Barrier(2)
    workers = [context.Process(target=_store, args=(source, str(tmp_path / "cache"), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list(tmp_path.glob("cache-read-by-*"))) == 1


def _die_while_writing(source: str, cache: str) -> None:
    """In another process: be killed when the tables are written and not yet in place."""
    Path.rename = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    stored_data(DataSection(source=source, splits={"train": "train"}), 0, Path(cache), print)


@pytest.mark.slow
def test_what_a_killed_process_left_is_not_read(tmp_path: Path) -> None:
    source, told = write(tmp_path / "x.jsonl", pairs(20)), list[str]()
    given = (source, str(tmp_path / "cache"))
    worker = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=given)
    worker.start()
    worker.join(300)
    assert worker.exitcode == -signal.SIGKILL
    section = DataSection(source=source, splits={"train": "train"})
    made = stored_data(section, 0, tmp_path / "cache", told.append)
    assert plain(made) == plain(load_data(section, 0))
    assert told == []
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [made.folder]
