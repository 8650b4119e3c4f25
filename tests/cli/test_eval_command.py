"""`rmtrain eval` in this process: what its results are called, and that nothing else is written over."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import read_lines, write_lines, write_pairs

from rmtrain.cli.app import run as rmtrain
from rmtrain.evaluation.sources import data_name, split_name
from rmtrain.files import write_json

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Path:
    """A finished run with a result of its own test split."""
    folder = tmp_path / "runs" / "r"
    shutil.copytree(models / "rm", folder / "final")
    write_json(folder / "manifest.json", {"state": "finished"})
    (folder / "eval").mkdir()
    write_json(folder / "eval" / "test.json", {"accuracy": 0.75})
    return folder


def evaluate(capsys: Any, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert rmtrain(["eval", "--ckpt", "runs/r", "--json", *arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_other_data_never_takes_the_place_of_a_split(run: Path, capsys: Any) -> None:
    Path("other").mkdir()
    rows = []
    for seed, path in enumerate(["test.jsonl", "other/test.jsonl", "test@x.jsonl"]):
        write_pairs(Path(path), 4, seed)
        result = evaluate(capsys, "--data", path)
        rows.append(result["rows"])
        assert result["split"].startswith("test@")
        assert result["ckpt"] == "runs/r/final"
        assert evaluate(capsys, "--data", path) == result
    assert len(set(rows)) == 3
    assert json.loads((run / "eval" / "test.json").read_text()) == {"accuracy": 0.75}


def test_a_run_that_can_not_be_written_is_evaluated_elsewhere(
    run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a colleague's, or on a disk that is only read. What its owner has scored is still found there."""
    write_pairs(Path("own.jsonl"), 6)
    write_pairs(Path("rows.jsonl"), 4)
    own = evaluate(capsys, "--data", "own.jsonl")
    before = set(run.rglob("*"))
    access = os.access

    def denied(path: str | Path, mode: int) -> bool:
        return not Path(path).resolve().is_relative_to(run) and access(path, mode)

    monkeypatch.setattr(os, "access", denied)
    result = evaluate(capsys, "--data", "rows.jsonl")
    assert Path(result["rows"]).parent == Path("results/r/eval")
    shutil.copytree(run, "other")  # with the same rows of own.jsonl
    for data, found in (("own.jsonl", own), ("rows.jsonl", result)):
        assert rmtrain(["compare", "runs/r", "other", "--data", data, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["n"], told["rows"][0]) == (found["n"], found["rows"])
    assert rmtrain(["calibrate", "runs/r", "--data", "rows.jsonl"]) == 2
    assert "can't be written, and the calibration is kept there" in capsys.readouterr().err
    assert set(run.rglob("*")) == before


@pytest.mark.parametrize("split", ["../../../x", "/x", ".", "test", "a/b", "x" * 300, "\u65e5" * 90])
def test_a_results_name_is_no_path(run: Path, tmp_path: Path, capsys: Any, split: str) -> None:
    write_pairs(tmp_path / "rows.jsonl", 3)
    rows = read_lines(tmp_path / "rows.jsonl")
    (tmp_path / "rows.json").write_text(json.dumps({split: rows, "else": rows}))
    before = {path for path in tmp_path.rglob("*") if path.parent != run / "eval"}
    result = evaluate(capsys, "--data", "rows.json", "--split", split)
    assert Path(result["rows"]).parent == run / "eval" or Path(result["rows"]).resolve().parent == run / "eval"
    assert {path for path in tmp_path.rglob("*") if path.parent != run / "eval"} == before
    assert json.loads((run / "eval" / "test.json").read_text()) == {"accuracy": 0.75}
    for name in (split_name(split), data_name(split, split)):
        assert name == Path(name).name
        assert len(name.encode()) < 110
    assert (split_name(split) == split) is (split == "test")


def test_dropped_rows_are_named(run: Path, capsys: Any) -> None:
    rows = [{"prompt": f"w{i}", "chosen": "w3", "rejected": "w4"} for i in range(3)]
    rows += [{"prompt": "w1", "chosen": "w2", "rejected": "w2"}, {"prompt": "w1 w4", "chosen": "", "rejected": "w2"}]
    write_lines("rows.jsonl", rows)
    assert rmtrain(["eval", "--ckpt", "runs/r", "--data", "rows.jsonl"]) == 0
    causes = "1 identical completions (first: rows.jsonl:4), 1 empty completion (first: rows.jsonl:5)"
    assert f"rows.jsonl: 2 of 5 rows dropped: {causes}\n" in capsys.readouterr().err
    assert rmtrain(["compare", "runs/r", "runs/r", "--dtype", "bfloat16", "--data", "rows.jsonl"]) == 0
    assert f"rows.jsonl: 2 of 5 rows dropped: {causes}\n" in capsys.readouterr().err
