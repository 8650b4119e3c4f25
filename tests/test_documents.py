import json
from pathlib import Path
from typing import Any

import pytest

from rmtrain.documents import Manifest, Result, checked, sound
from rmtrain.errors import CheckpointError, DataError
from rmtrain.json_values import parse_json, read_json

HUGE = "9" * 400


@pytest.mark.parametrize(
    "text", ["[" * 1000 + "]" * 1000, "[" * 100_000, '{"a":' * 60 + "1" + "}" * 60, "", "{", '{"a": 1} x']
)
def test_what_is_no_json_or_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting|Extra data"):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.json: can't be read as JSON"):
        read_json(tmp_path / "a.json", error=CheckpointError)


def test_numbers_beyond_all_use_are_none() -> None:
    text = f'{{"a": {HUGE}, "b": -{HUGE}, "c": 1e999, "d": NaN, "e": [Infinity, 12, -0.5, {10**17}]}}'
    assert parse_json(text) == {"a": None, "b": None, "c": None, "d": None, "e": [None, 12, -0.5, 10**17]}


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"started": 5}, "started: "),
        ({"started": None}, "started: "),
        ({"steps": True}, "steps: "),
        ({"steps": -1}, "steps: "),
        ({"command": "rm"}, "command: "),
        ({"data": {"train": {"rows": {"dropped": -1}}}}, "data.train.rows.dropped: "),
        ({"data": {"train": {"rows": {"dropped": [1]}}}}, "data.train.rows.dropped: "),
        ({"data": {"train": {"rows": {"dropped": {"tie": "text"}}}}}, "data.train.rows.dropped.tie: "),
        ({"totals": {"tokens": float("nan")}}, "totals.tokens: "),
    ],
)
def test_an_entry_of_another_type_is_left_out_and_named(entry: dict[str, Any], fault: str) -> None:
    whole = {"state": "finished", "seed": 3, "further": [1]}
    found, faults = sound({**whole, **entry}, Manifest)
    assert found == whole
    assert [each.startswith(fault) for each in faults] == [True]


def test_what_a_document_needs_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="state"):
        sound({"started": "2026"}, Manifest)
    subsets = {"hep-go": {"n": 3, "accuracy": 0.5}}
    assert checked({"subsets": subsets}, Result, tmp_path) == {"subsets": subsets}
    for value in ({"subsets": {"hep-go": {"n": 3}}}, {"incomplete_subsets": "999"}, [], {"accuracy": "0.5"}):
        with pytest.raises(DataError, match=str(tmp_path)):
            checked(value, Result, tmp_path)


def test_results_as_they_are_written_are_whole(tmp_path: Path) -> None:
    from reporting.run_cases import make_manifest, make_rows, make_run, write_split

    run = make_run(tmp_path)
    assert sound(make_manifest(), Manifest) == (make_manifest(), [])
    write_split(run, "test", make_rows(9))
    for path in [*run.glob("eval/*.json"), run / "rewardbench" / "rewardbench-1.json"]:
        value = json.loads(path.read_text())
        assert sound(value, Result) == (value, [])
