"""Names that are too long, empty, or no text; consoles that can't show them: input errors, and answers all the same."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmtrain.cli.app import run
from rmtrain.cli.options import check_output
from rmtrain.errors import InputError

pytestmark = pytest.mark.usefixtures("inside")
LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", LONG],
        ["train", "--resume", LONG],
        ["data", f"{LONG}.yaml"],
        ["eval", "--ckpt", LONG, "--data", "x.jsonl"],
        ["eval", "--ckpt", "m", "--data", f"{LONG}.jsonl"],
        ["score", f"{LONG}.jsonl", "--output", "o.jsonl", "--ckpt", "m"],
        ["score", "x.jsonl", "--output", "o" * 236, "--ckpt", "m"],
        ["score", "x.jsonl", "--output", LONG, "--ckpt", "m"],
        ["rewardbench", "--results", LONG],
        ["rewardbench", "--ckpt", "m", "--output", "o" * 236],
        ["compare", LONG, LONG],
        ["leaderboard", LONG],
        ["export", "--ckpt", LONG, "--output", "o"],
        ["runs", "show", LONG],
        ["data", "r.yaml", f"data.source={LONG}.jsonl"],
        ["data", "r.yaml", "data.source=~nouser/x.jsonl"],
        ["data", "r.yaml", "data.source={test: demo}"],
        ["train", "r.yaml", "data.source={test: demo}", "--dry-run"],
        ["data", "r.yaml", f"model.name={LONG}"],
        ["score", "", "--output", "o.jsonl", "--ckpt", "m"],
        ["score", "x.jsonl", "--output", "o.jsonl", "--ckpt", "m", "--num-processes", "1000000"],
        ["train", "r.yaml", "--dry-run", "--num-processes", "1000000"],
        ["data", "r.yaml", "data.source=fifo.jsonl"],
        ["data", "/dev/zero"],
        ["compare", "/dev/zero", "/dev/full"],
        ["rewardbench", "--results", "/dev/zero"],
    ],
    ids=lambda arguments: " ".join(arguments)[:50],
)
def test_it_is_an_input_error(arguments: list[str], base: Path, models: Path, capsys: Any) -> None:
    Path("m").symlink_to(models / "rm")
    Path("x.jsonl").write_text('{"prompt": "w1", "chosen": "w2", "rejected": "w3"}\n')
    Path("r.yaml").write_text(f"model: {{name: {base}}}\ndata: {{source: {{train: x.jsonl}}}}\n")
    os.mkfifo("fifo.jsonl")
    before = sorted(os.listdir())
    code = run(arguments)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert "fault in rmtrain" not in err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_console_that_lacks_letters_shows_escapes(encoding: str, monkeypatch: Any) -> None:
    name = os.fsdecode(b"r-\xff-\xe9")
    Path("runs", name).mkdir(parents=True)
    Path("runs", name, "manifest.json").write_text(json.dumps({"state": "finished", "note": "é😀"}))
    for arguments in (["runs", "list", "--json"], ["runs", "show", name, "--json"], ["runs", "list"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(arguments) == 0
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        if "--json" in arguments:
            assert name in json.dumps(json.loads(text), ensure_ascii=False)
    assert run(["train", "--resume", f"runs/{name}"]) == 2


def test_parquet_of_values_that_json_lacks(models: Path, capsys: Any) -> None:
    texts = {"prompt": ["w1"], "chosen": ["w2"], "rejected": ["w3"]}
    pq.write_table(pa.table({**texts, "took": pa.array([5], pa.duration("ns"))}), "few.parquet")
    pq.write_table(pa.table({**texts, "took": pa.array([2**62], pa.duration("s"))}), "many.parquet")
    score = ["score", "--ckpt", str(models / "rm"), "--output"]
    assert run([*score, "o.jsonl", "few.parquet"]) == 0
    assert json.loads(Path("o.jsonl").read_text())["took"].startswith("0 days")
    assert run([*score, "p.jsonl", "many.parquet"]) == 2
    assert "many.parquet: not a readable parquet file" in capsys.readouterr().err


def test_an_output_that_is_there_is_replaced_only_by_a_command_that_can(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("")
    for overwrite, hint in ((None, "choose another --output"), (False, "choose another --output, or replace it with")):
        with pytest.raises(InputError, match=r"out\.jsonl exists") as error:
            check_output(tmp_path / "out.jsonl", overwrite)
        assert error.value.hint.startswith(hint)
        assert ("--overwrite" in error.value.hint) == (overwrite is not None)
    check_output(tmp_path / "out.jsonl", overwrite=True)
