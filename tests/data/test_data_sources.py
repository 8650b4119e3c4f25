"""SOURCE: its forms, and what reading one tells."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.sources import MissingSplitError, Source, open_source, parse_source, read_rows
from rmtrain.errors import DataError

DEMO = Source("demo", "demo")
ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("demo", Source("demo", "demo")),
        ("org/name", Source("hub", "org/name")),
        ("org/name@abc123", Source("hub", "org/name", None, "abc123")),
        ("org/na.me-2:fil_tered", Source("hub", "org/na.me-2", "fil_tered")),
        ("org/name:config@refs/pr/1", Source("hub", "org/name", "config", "refs/pr/1")),
        ("org/name@v1:config", Source("hub", "org/name", "config", "v1")),
        ("x.jsonl", Source("file", "x.jsonl", files=("x.jsonl",))),
        ("../a b/x.JSONL.gz", Source("file", "../a b/x.JSONL.gz", files=("../a b/x.JSONL.gz",))),
        ("org/x.parquet", Source("file", "org/x.parquet", files=("org/x.parquet",))),
    ],
)
def test_forms(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text", ["", "dmeo", "x.txt", "./x", "/abs/path", "a/b/c", "org/name@", "org/name@a@b", "org/name:a:b", "org/na me"]
)
def test_anything_else_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_source(text)
    assert repr(text) in caught.value.message
    assert "org/name:config@revision" in caught.value.hint
    assert ".jsonl.gz" in caught.value.hint


def test_a_folder_comes_before_a_hub_dataset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_source("org/name").kind == "file"
    assert parse_source("org/name@main").kind == "hub"
    with pytest.raises(DataError, match="org/name: no data files in this folder"):
        read_rows("org/name")


NAME = st.text("abcXYZ019_-.", min_size=1, max_size=8)


@settings(deadline=None)
@given(st.from_regex(r"[a-z0-9]+/[a-z0-9_-]+", fullmatch=True), st.none() | NAME, st.none() | NAME)
def test_a_source_prints_as_it_is_written(name: str, config: str | None, revision: str | None) -> None:
    source = Source("hub", name, config, revision)
    if not str(source).endswith((".jsonl", ".json", ".csv", ".parquet")):
        assert parse_source(str(source)) == source


def test_a_file_has_the_one_split_train(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    read = read_rows(str(path), "train")
    assert ([*read.rows], read.split, read.revision) == (ROWS, "train", None)
    assert [*open_source(parse_source(str(path))).splits] == ["train"]
    assert read.where(1) == f"{path}:2"
    assert read_rows(str(path)).split == "pairs"
    assert [*read_rows(str(path), "test", any_split=True).rows] == ROWS
    with pytest.raises(MissingSplitError) as caught:
        read_rows(str(path), "test")
    assert str(caught.value) == f"{path}: no split 'test'\n  hint: it has: train"


def test_splits_of_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[1:]}))
    read = read_rows(str(path), "test")
    assert [*read.rows] == ROWS[1:]
    assert read.where(0) == f"{path} (test) row 1"
    with pytest.raises(MissingSplitError, match="it has several splits, so one must be named"):
        read_rows(str(path))
    with pytest.raises(MissingSplitError, match="no split 'validation'"):
        read_rows(str(path), "validation", any_split=True)


def test_demo_rows_are_asked_for_by_split_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def demo_rows(split: str, count: int) -> list[dict[str, Any]]:
        calls.append((split, count))
        return [{"instruction": f"{split} {i}", "completions": []} for i in range(count)]

    monkeypatch.setattr("rmtrain.data.demo.demo_rows", demo_rows)
    read = open_source(DEMO, {"test": 3}).read("test")
    assert (len(read.rows), read.description) == (3, "demo (test)")
    assert [*open_source(DEMO).splits] == ["train", "validation", "test"]
    assert open_source(DEMO, {"train": 1}).read("test").fingerprint != read.fingerprint
    assert open_source(DEMO, {"test": 3}).read("test").fingerprint == read.fingerprint
    assert calls == [("test", 3), ("test", 200), ("test", 3)]
    with pytest.raises(MissingSplitError, match="several splits"):
        read_rows("demo")
