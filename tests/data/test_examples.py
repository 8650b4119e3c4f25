"""What `rmtrain data --show CAUSE` shows: dropped rows, beside what they repeat, contradict or overlap with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import write_base
from test_decontaminate import LONG, pair, write

from rmtrain.cli.data import data as data_command
from rmtrain.data.curate import CuratedRows
from rmtrain.data.examples import Example, causes_of, examples_of
from rmtrain.data.load import load_data
from rmtrain.errors import InputError
from rmtrain.recipe.data_schema import DataSection

ROWS = [
    pair("first question"),
    pair("first question"),
    {"prompt": "second", "chosen": "b", "rejected": "a"},
    {"prompt": "second", "chosen": "a", "rejected": "b"},
    pair("in the test"),
    pair(f"Well: {LONG}"),
    {"prompt": "tied", "completions": ["x", "y", "z"], "scores": [1.0, 1.0, 2.0]},
    *({"prompt": f"q{i}", "completions": ["x", "y"], "scores": [1.0, 2.0]} for i in range(9)),
    {"prompt": 7, "completions": ["x", "y"], "scores": [1.0, 2.0]},
]
SCORED = [
    {"prompt": r["prompt"], "completions": [r["chosen"], r["rejected"]], "scores": [2.0, 1.0]} if "chosen" in r else r
    for r in ROWS
]


def recipe_data(folder: Path) -> dict[str, Any]:
    bench = write(folder / "bench.jsonl", [pair(LONG, subset="hep-go", id=3)])
    source = {
        "train": write(folder / "train.jsonl", SCORED),
        "test": write(folder / "test.jsonl", [pair("In the  TEST")]),
    }
    return {"source": source, "decontaminate": [f"rewardbench-1={bench}"]}


@pytest.fixture
def kept(tmp_path: Path) -> Sequence[CuratedRows]:
    return load_data(DataSection(**recipe_data(tmp_path)), 0).rows


def example(kept: Sequence[CuratedRows], cause: str) -> Example:
    found = examples_of(kept, cause, 3)
    assert {each.cause for each in found} == {cause}
    return found[0]


def lines(shown: Example) -> tuple[str, str]:
    assert shown.other is not None
    return shown.row.place.rpartition(":")[2], shown.other.place.rpartition(":")[2]


def test_every_cause_of_the_ledgers_has_examples(kept: Sequence[CuratedRows]) -> None:
    causes = {"duplicate", "contradiction", "leak", "overlap with rewardbench-1", "tie", "wrong type"}
    assert set(causes_of(kept)) == causes
    assert all(examples_of(kept, cause, 1) for cause in causes)


def test_each_is_beside_what_it_repeats_contradicts_or_overlaps_with(kept: Sequence[CuratedRows]) -> None:
    again, against = example(kept, "duplicate"), example(kept, "contradiction")
    assert [lines(again), lines(against)] == [("2", "1"), ("3", "4")]
    assert against.row.text == "[prompt] second\n[completion 0, score 2] b\n[completion 1, score 1] a"
    leaked = example(kept, "leak")
    assert leaked.other is not None
    assert leaked.other.place.startswith("test: ")
    assert "In the  TEST" in leaked.other.text
    overlap = example(kept, "overlap with rewardbench-1")
    assert overlap.row.text == f"[prompt] Well: {LONG}"
    assert overlap.other == ("rewardbench-1 hep-go/3", f"[prompt] {LONG}")
    assert overlap.why.startswith("100% of the words of the benchmark's prompt, first 'write a function")
    unreadable = example(kept, "wrong type")
    assert unreadable.why.startswith("wrong type: column prompt holds the number 7, expected text")
    assert unreadable.other is None
    assert "completion 2, score 2] z" in example(kept, "tie").row.text


def test_the_command_shows_causes_by_a_part_of_their_name_and_names_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_base(tmp_path / "base")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": {"name": str(tmp_path / "base")}, "data": recipe_data(tmp_path)}))
    data_command(recipe, [], show="overlap", json=True, examples=3)
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["split"], shown["cause"]) == ("train", "overlap with rewardbench-1")
    data_command(recipe, [], show="leak", json=False, examples=3)
    assert "In the  TEST" in capsys.readouterr().out
    data_command(recipe, [], show="identical after rendering", json=True, examples=3)
    assert "[prompt]" in json.loads(capsys.readouterr().out)[0]["row"]["text"]
    with pytest.raises(InputError, match="nothing was dropped for such a cause") as caught:
        data_command(recipe, [], show="nix", json=False, examples=3)
    assert "overlap with rewardbench-1" in caught.value.hint
