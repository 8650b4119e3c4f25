"""Several files as one source: lists, globs, folders, and what `datasets` saved."""

import contextlib
import gzip
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from rmtrain.cli.app import run
from rmtrain.data import chunk_files
from rmtrain.data.chunks import open_stream
from rmtrain.data.load import load_data
from rmtrain.data.sources import MissingSplitError, has_changed, open_source, parse_source, read_rows
from rmtrain.errors import DataError, RunFailedError
from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.schema import Recipe

pytestmark = pytest.mark.usefixtures("inside")
ROWS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(7)]


def jsonl(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row) + "\n" for row in rows)  # an empty line between
    Path(path).write_bytes(gzip.compress(text.encode()) if path.endswith(".gz") else text.encode())
    return path


def parquet(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)
    return path


def saved(folder: str, **splits: list[dict[str, Any]]) -> str:
    tables = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    (tables["only"] if "only" in splits else DatasetDict(tables)).save_to_disk(folder)
    return folder


MADE: dict[str, Callable[[], Any]] = {
    "list": lambda: [jsonl("b.jsonl", ROWS[:3]), jsonl("a.jsonl", ROWS[3:])],
    "list of globs": lambda: [jsonl("x1.jsonl", ROWS[:3])[:1] + "*.jsonl", jsonl("y.jsonl", ROWS[3:])],
    "glob": lambda: (jsonl("d/s-1.jsonl.gz", ROWS[:3]), jsonl("d/s-2.jsonl.gz", ROWS[3:]), "d/s-?.jsonl.gz")[2],
    "deep glob": lambda: (parquet("d/1/x.parquet", ROWS[:3]), parquet("d/2/x.parquet", ROWS[3:]), "d/**/*.parquet")[2],
    "folder": lambda: (jsonl("d/1.jsonl", ROWS[:3]), jsonl("d/2.jsonl", ROWS[3:]), jsonl("d/.3.jsonl", ROWS), "d")[3],
    "saved": lambda: saved("d", only=ROWS),
}


@pytest.mark.parametrize("form", MADE)
def test_all_rows_are_read_in_order_with_their_places(form: str) -> None:
    source = MADE[form]()
    read = read_rows(source)
    assert [*read.rows] == ROWS
    assert [*open_source(parse_source(source)).splits] == ["train"]
    assert [*read_rows(source, "test", any_split=True).rows] == ROWS
    if form != "saved":
        (first, last), lines = read.paths, form in ("list", "list of globs", "glob", "folder")
        assert [read.where(2), read.where(3)] == (
            [f"{first}:5", f"{last}:1"] if lines else [f"{first} row 3", f"{last} row 1"]
        )
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, last)]
        assert read.fingerprint == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    assert not has_changed(read)
    with read.paths[-1].open("ab") as stream:
        stream.write(b"\n")
    assert has_changed(read)


@pytest.mark.parametrize("form", ["plain", "hub", "data", "saved"])
def test_a_folder_names_its_splits_as_the_hub_does(form: str) -> None:
    if form == "saved":
        saved("d", train=ROWS[:5], test=ROWS[5:])
    else:
        place = {"plain": "d/{}.jsonl", "hub": "d/{}-00000-of-00001.parquet", "data": "d/data/{}.csv.parquet"}[form]
        write = jsonl if form == "plain" else parquet
        place = place.replace(".csv.", "-00000-of-00001-0123456789abcdef.")
        write(place.format("test"), ROWS[5:])
        write(place.format("train"), ROWS[:5])
        Path("d/README.md").write_text("of no account")
        Path("d/dataset_infos.json").write_text("{}")
    assert [[*read_rows("d", name).rows] for name in ("train", "test")] == [ROWS[:5], ROWS[5:]]
    assert read_rows("d", "test").description == "d (test)"
    with pytest.raises(MissingSplitError, match="d: no split 'validation'"):
        read_rows("d", "validation")
    with pytest.raises(MissingSplitError, match="several splits"):
        read_rows("d")
    recipe = Recipe.model_validate(
        {"model": {"name": "m"}, "data": {"source": "d", "splits": {"train": "train", "test": "test"}}}
    )
    assert [len(split.groups) for split in load_data(recipe.data, 0).splits.values()] == [5, 2]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("my_train", "my_test"),
        ("Training", "TEST"),
        ("prefs.train.v2", "prefs.test.v2"),
        ("train 1", "eval 1"),
        ("en-train-00000-of-00001", "en-evaluation-00000-of-00001"),
    ],
)
def test_a_split_is_known_by_any_word_that_datasets_knows(train: str, test: str) -> None:
    jsonl(f"d/{train}.jsonl", ROWS[:3])
    jsonl(f"d/{test}.jsonl", ROWS[3:5])
    jsonl("d/dev.jsonl", ROWS[5:])
    splits = open_source(parse_source("d")).splits
    assert {name: [*read().rows] for name, read in splits.items()} == {
        "train": ROWS[:3],
        "test": ROWS[3:5],
        "validation": ROWS[5:],
    }
    with pytest.raises(DataError, match=r"are of several splits by their names: d/") as caught:
        load_data(DataSection(source={"train": "d/*.jsonl"}), 0)
    for file in (f"d/{train}.jsonl (train)", f"d/{test}.jsonl (test)", "d/dev.jsonl (validation)"):
        assert file in str(caught.value)
    files = [f"d/{name}.jsonl" for name in (train, test)]
    assert len(load_data(DataSection(source={"train": files}), 0).splits["train"].groups) == 5  # read as it is
    assert len(read_rows("d/*.jsonl").rows) == len(ROWS)  # to be scored, rows of any split are alike


def test_a_folder_above_a_pattern_is_not_of_its_files_names() -> None:
    jsonl("test/train/a.jsonl", ROWS[:4])
    jsonl("test/train/devils.jsonl", ROWS[4:])
    assert len(load_data(DataSection(source={"train": "test/train/*.jsonl"}), 0).splits["train"].groups) == len(ROWS)
    jsonl("test/dev/a.jsonl", ROWS)
    with pytest.raises(DataError, match=r"of several splits by their names: test/train/a\.jsonl"):
        load_data(DataSection(source={"train": "test/*/a.jsonl"}), 0)


LEFT_OUT: dict[str, tuple[str, Callable[[], Any], str]] = {
    "a link to nothing": ("d", lambda: Path("d/b.jsonl").symlink_to("../gone.jsonl"), "d/b.jsonl is a link to ../gone"),
    "a link to itself": ("d/*.jsonl", lambda: Path("d/b.jsonl").symlink_to("b.jsonl"), "d/b.jsonl is a link to b.js"),
    "zstd": ("d", lambda: Path("d/b.jsonl.zst").write_text("x"), "b.jsonl.zst is of a kind that can't be read"),
    "xz": ("d", lambda: Path("d/b.json.XZ").write_text("x"), "b.json.XZ is of a kind that can't be read"),
    "ndjson": ("d", lambda: Path("d/b.ndjson").write_text("x"), "b.ndjson is of a kind that can't be read"),
    "tsv": ("d", lambda: Path("d/b.tsv").write_text("x"), "b.tsv is of a kind that can't be read"),
    "csv.gz": ("d", lambda: Path("d/b.csv.gz").write_text("x"), "b.csv.gz is of a kind that can't be read"),
    "a download": ("d", lambda: Path("d/b.parquet.incomplete").write_text("x"), "b.parquet.incomplete is of a kind"),
    "a folder below": ("d", lambda: jsonl("d/more/b.jsonl", ROWS), "d/more/b.jsonl is in a folder below"),
    "two names": ("d", lambda: jsonl("d/train_test.jsonl", ROWS), "its name has words of several splits: train, test"),
    "a packed file": ("d/a.jsonl.bz2", lambda: Path("d/a.jsonl.bz2").write_text("x"), "unknown kind of file"),
    "another kind": ("a.txt", lambda: Path("a.txt").write_text("x"), "a.txt: unknown kind of file"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_no_rows_are_left_out_silently(what: str) -> None:
    source, add, told = LEFT_OUT[what]
    jsonl("d/a.jsonl", ROWS)
    for beside in ("README.md", "LICENSE", "dataset_infos.json", ".b.jsonl.zst", "notes.txt"):
        Path("d", beside).write_text("of no account")
    Path("d/empty").mkdir()
    jsonl("d/.cache/x.jsonl", ROWS)
    assert [*read_rows("d").rows] == ROWS
    add()
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert told in str(caught.value)


@pytest.mark.parametrize("source", ["d", "d/*.jsonl", ["d/a.jsonl", "d/b.jsonl"], "d/**/*.jsonl"])
def test_no_file_is_read_twice(source: Any) -> None:
    jsonl("d/a.jsonl", ROWS)
    if "**" in source:
        Path("d/itself").symlink_to(".")
    else:
        Path("d/b.jsonl").symlink_to("a.jsonl")
    with pytest.raises(DataError, match=r"d/a\.jsonl and d/.*\.jsonl are the same file"):
        read_rows(source)
    elsewhere = Path("e.jsonl")
    elsewhere.symlink_to("d/a.jsonl")  # a link itself is a file like any other
    assert [*read_rows("e.jsonl").rows] == ROWS


def test_one_file_of_a_glob_or_list_is_that_file() -> None:
    jsonl("d/a.jsonl", ROWS)
    for source in ("d/*.jsonl", ["d/a.jsonl"], "d"):
        assert read_rows(source).fingerprint == read_rows("d/a.jsonl").fingerprint
        assert read_rows(source).where(1) == "d/a.jsonl:3"
    jsonl("a[1].jsonl", ROWS[:2])  # a name, not a pattern
    assert [*read_rows("a[1].jsonl").rows] == ROWS[:2]


@pytest.mark.parametrize(
    ("made", "source", "told"),
    [
        ({}, "d/*.jsonl", "d/*.jsonl: no file matches this pattern (in "),
        ({}, ["a.jsonl", "b*.jsonl"], "b*.jsonl: no file matches this pattern"),
        ({}, ["gone.jsonl"], "gone.jsonl: no such file"),
        ({}, ["org/name"], "'org/name' in a list of files is not a file"),
        ({}, ["demo"], "'demo' in a list of files is not a file"),
        ({"d/x.txt": ROWS}, "d", "d: no data files in this folder"),
        ({"a.jsonl": ROWS, "b.jsonl.gz": ROWS}, ["a.jsonl", "b.jsonl.gz"], "several kinds: a.jsonl, b.jsonl.gz"),
        ({"d/a.jsonl": ROWS, "d/b.parquet": ROWS}, "d", "d: files of several kinds: a.jsonl, b.parquet"),
        ({"d/a.jsonl": ROWS, "d/train.jsonl": ROWS}, "d", "d: a.jsonl names no split, but other files do"),
        ({"d/train-00000-of-00002.jsonl": ROWS}, "d", "d: only 1 of 2 shards of train are in the folder"),
        ({"a.jsonl": ROWS}, ["a.jsonl", "*.jsonl"], "a.jsonl is named twice"),
        ({"a.jsonl": ROWS}, "", "'' is not a source"),
    ],
)  # fmt: skip
def test_what_is_no_source_of_files_is_told(made: dict[str, Any], source: Any, told: str) -> None:
    for path, rows in made.items():
        (parquet if path.endswith("parquet") else jsonl)(path, rows)
    if made == {}:
        jsonl("a.jsonl", ROWS)
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert told in str(caught.value)


def test_a_fault_names_its_shard_and_line() -> None:
    jsonl("d/1.jsonl", ROWS[:5])
    jsonl("d/2.jsonl", [*ROWS[5:], {**ROWS[0], "chosen": None}])
    report = load_data(DataSection(source={"train": "d"}), 0).splits["train"].report
    assert report.rows.dropped == {"missing value": 1}
    assert "d/2.jsonl:5" in str(report)
    with open("d/2.jsonl", "a") as stream:
        stream.write('{"prompt": ')
    with pytest.raises(DataError, match=r"d/2\.jsonl:6: not valid JSON"):
        read_rows("d")


def test_files_with_other_columns() -> None:
    jsonl("d/1.jsonl", ROWS[:3])
    jsonl("d/2.jsonl", [{**row, "margin": 2, "note": "x"} for row in ROWS[3:]])
    notes = load_data(DataSection(source={"train": ["d/1.jsonl", "d/2.jsonl"]}), 0).notes
    assert "train: columns that only some of the files have: margin" in notes
    jsonl("d/3.jsonl", [{"prompt": "p", "best": "c", "rejected": "r"}])
    with pytest.raises(DataError, match=r"d/3\.jsonl lacks the column chosen, which other files"):
        load_data(DataSection(source={"train": "d"}), 0)


def test_recipes_take_lists_on_the_command_line_too(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl("a.jsonl", [{"prompt": "w1", "chosen": f"w{i}", "rejected": "w3 w4"} for i in range(5, 9)])
    Path("r.yaml").write_text(f"model: {{name: {base}}}\ndata: {{source: x, min_gap: 0.0}}\n")
    for source in ("{train: [a.jsonl]}", "{train: a*.jsonl, test: ['*.jsonl']}"):
        assert run(["data", "r.yaml", f"data.source={source}", "data.leaks=keep", "--json"]) == 0
        books = json.loads(capsys.readouterr().out)
        assert books["splits"]["train"]["rows"]["total"] == 4
    assert run(["data", "r.yaml", "data.source={train: []}"]) == 2
    assert "data.source" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("change", ["cut", "deleted", "other"])
def test_a_chunk_of_a_file_that_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, change: str
) -> None:
    monkeypatch.setattr(chunk_files, "ROWS", 50)
    rows = [{"prompt": f"{random.Random(i).random()}", "chosen": "a", "rejected": "b"} for i in range(200)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
        else:
            path.write_bytes(gzip.compress(lines) if suffix == "jsonl.gz" else lines)
    with contextlib.closing(open_stream(str(tmp_path))) as stream:
        assert len(stream.chunks) == 8
        assert [row for chunk in stream.chunks for row in stream.read(chunk).rows.rows] == rows * 2
        content = path.read_bytes()
        if change == "deleted":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2] if change == "cut" else b"{}\n" + content)
        stream.read(stream.chunks[0])
        with pytest.raises(RunFailedError, match=f"b.{suffix} has changed since it was read"):
            stream.read(stream.chunks[7])
        assert stream.has_changed()
