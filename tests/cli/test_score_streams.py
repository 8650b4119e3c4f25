"""`rmtrain score` in parts: whatever the parts, the formats and the interruptions, every row has its own rewards."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm

from rmtrain.cli.app import run as rmtrain
from rmtrain.data import chunk_files
from rmtrain.data.chunks import open_stream
from rmtrain.display import Silent
from rmtrain.errors import DataError, WriteError
from rmtrain.scoring.parts import Parts, Tally

pytestmark = pytest.mark.usefixtures("inside")
ROWS = [{"id": i, "prompt": f"w{i} w{i % 3}", "completions": [f"w{i} w2", f"w3 w{i} w{i}"]} for i in range(11)]


def write(path: str, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(gzip.compress(text) if path.endswith(".gz") else text)
    return path


def read(path: str | Path) -> list[dict[str, Any]]:
    data = Path(path).read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if str(path).endswith(".gz") else data).splitlines()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_files, "ROWS", 3)


Score = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def score(models: Path) -> Score:
    def run(source: str, output: str = "out.jsonl", code: int = 0) -> list[dict[str, Any]]:
        command = ["score", source, "--ckpt", str(models / "rm"), "--output", output, "--overwrite"]
        assert rmtrain(command) == code
        return read(output) if code == 0 and Path(output).is_file() and "jsonl" in output else []

    return run


@pytest.fixture
def truth(score: Score, small: None) -> list[dict[str, Any]]:
    return score(write("in.jsonl", ROWS), "truth.jsonl")


def test_parts_change_no_row(truth: Any, score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other batches, rewards differ by rounding alone."""
    monkeypatch.setattr(chunk_files, "ROWS", 11)
    whole = score("in.jsonl")
    assert [row["id"] for row in truth] == list(range(11))
    for one, other in zip(whole, truth, strict=True):
        assert other["rewards"] == pytest.approx(one["rewards"], abs=1e-6)


def test_parts_of_gzip_are_those_of_text(truth: Any, score: Score, small: None) -> None:
    assert score("in.jsonl") == truth
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl", "truth.jsonl"]
    assert score(write("in.jsonl.gz", ROWS), "out.jsonl.gz") == truth


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_folder_of_shards_becomes_one(truth: Any, score: Score, small: None, ending: str) -> None:
    names = [write(f"shards/{name}{ending}", ROWS[a:b]) for name, a, b in (("a", 0, 3), ("b", 3, 6), ("c", 6, 11))]
    score("shards", "scored")
    assert sorted(os.listdir("scored")) == [Path(name).name for name in names]
    assert [row for name in names for row in read(Path("scored") / Path(name).name)] == truth
    assert score("shards", "one.jsonl") == truth


def test_parquet_keeps_the_types_of_its_columns(truth: Any, score: Score, small: None) -> None:
    table = pa.Table.from_pylist(ROWS).append_column("weight", pa.array([0.5] * len(ROWS), pa.float32()))
    Path("shards").mkdir()
    pq.write_table(table.slice(0, 9), "shards/train-00000-of-00002.parquet", row_group_size=6)
    pq.write_table(table.slice(9), "shards/train-00001-of-00002.parquet")
    score("shards", "scored")
    for name in os.listdir("shards"):
        before, after = (pq.read_table(f"{folder}/{name}") for folder in ("shards", "scored"))
        assert after.schema.names == [*before.schema.names, "rewards"]
        assert after.drop(["rewards"]).equals(before)
    found = pq.read_table([f"scored/{name}" for name in sorted(os.listdir("scored"))])
    assert found["rewards"].to_pylist() == [row["rewards"] for row in truth]
    score("shards", "one.parquet")
    assert pq.read_table("one.parquet").equals(found)
    assert [row["rewards"] for row in score("shards", "out.jsonl")] == [row["rewards"] for row in truth]
    score("in.jsonl", "no.parquet", code=2)


def test_parquet_files_of_several_schemas(models: Path, score: Score, capsys: Any) -> None:
    Path("some").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), "some/a.parquet")
    pq.write_table(pa.Table.from_pylist([{**row, "note": "x"} for row in ROWS[2:4]]), "some/b.parquet")
    score("some", "one.parquet")
    assert pq.read_table("one.parquet")["note"].to_pylist() == [None, None, "x", "x"]
    pq.write_table(pa.Table.from_pylist([{**row, "id": "x"} for row in ROWS[2:4]]), "some/b.parquet")
    score("some", "two.parquet", code=2)
    assert "the files' columns do not fit into one Parquet file" in capsys.readouterr().err
    score("some", "two")
    assert pq.read_table("two/b.parquet")["id"].to_pylist() == ["x", "x"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Groups of each forward pass; an entry of -1 in the list interrupts the pass that would come next."""
    import rmtrain.scoring.batches as scoring

    whole, run = scoring._score_batch, list[int]()

    def once(model: Any, groups: Any, *rest: Any) -> Any:
        if run and run[-1] == -1:
            run.pop()
            raise KeyboardInterrupt
        run.append(len(groups))
        return whole(model, groups, *rest)

    monkeypatch.setattr(scoring, "_score_batch", once)
    return run


def stop_after_two(patch: pytest.MonkeyPatch) -> None:
    whole = Parts.finish

    def finish(self: Any, *arguments: Any) -> None:
        whole(self, *arguments)
        if len(self.finished()) == 2:
            raise KeyboardInterrupt

    patch.setattr(Parts, "finish", finish)


def test_parts_of_another_prompt_are_not_taken(models: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write("in.jsonl", ROWS)
    model = str(models / "rm")

    def score(prompt: str, output: str, code: int = 0) -> list[dict[str, Any]]:
        Path("own.jinja").write_text(prompt)
        command = ["score", "in.jsonl", "--ckpt", model, "--prompt", "own.jinja", "--output", output, "--overwrite"]
        assert rmtrain(command) == code
        return read(output) if code == 0 else []

    first, second = (
        "{% for m in messages %}{{ m['content'] + '" + mark + "' }}{% endfor %}" for mark in (" w1", " w2")
    )
    with monkeypatch.context() as patch:
        stop_after_two(patch)
        score(first, "out.jsonl", code=130)
    continued = score(second, "out.jsonl")
    assert continued == score(second, "whole.jsonl") != score(first, "whole.jsonl")


def test_only_what_is_not_finished_is_scored_again(
    truth: Any, score: Score, small: None, counted: list[int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        stop_after_two(patch)
        score("in.jsonl", code=130)
    assert "finished parts are kept in .out.jsonl.parts; run the same command to continue" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
    counted.clear()
    assert score("in.jsonl") == truth
    assert sum(counted) == len(ROWS) - 6
    # a row that is mended costs its own part
    broken = [*ROWS[:10], {"prompt": [{"role": "tool", "content": "w1"}], "completions": ["w1"]}]
    counted.clear()
    score(write("mended.jsonl", broken), code=2)
    assert "mended.jsonl:11: the chat template refuses" in capsys.readouterr().err
    assert sum(counted) == 9
    counted.clear()
    assert score(write("mended.jsonl", ROWS)) == truth
    assert sum(counted) == 2


def test_a_row_that_can_t_be_read_is_found_before_anything_is_scored(
    score: Score, small: None, counted: list[int], capsys: Any
) -> None:
    score(write("bad.jsonl", [*ROWS[:10], {"prompt": "w1", "completions": "w2"}]), code=2)
    assert "bad.jsonl:11: wrong type: column completions holds the text 'w2'" in capsys.readouterr().err
    Path("bad.jsonl").write_text(json.dumps(ROWS[0]) + "\n" * 9 + "{")
    score("bad.jsonl", code=2)
    assert "bad.jsonl:10: not valid JSON" in capsys.readouterr().err
    assert (counted, os.listdir()) == ([], ["bad.jsonl"])


def test_a_late_column_tells_the_schema_as_an_early_one_does(small: None) -> None:
    rows = [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}] * 7
    with pytest.raises(DataError, match="the file is empty"):
        open_stream(write("empty.jsonl", []))
    late = open_stream(write("late.jsonl", [*rows, {**rows[0], "note": 1}]))
    assert {name for row in late.source.rows for name in row} == {"prompt", "chosen", "rejected", "note"}
    assert [chunk.rows for chunk in late.chunks] == [3, 3, 2]
    late.close()


def test_rows_that_change_are_not_scored_as_others(
    truth: Any, score: Score, small: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import rmtrain.cli.score as module

    whole = module.load

    def load(*args: Any, **kwargs: Any) -> Any:
        write("in.jsonl", [*ROWS[:4], {**ROWS[4], "prompt": "w9"}, *ROWS[5:]])
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, "load", load)
    score("in.jsonl", code=1)
    assert "in.jsonl has changed since it was read" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_the_part_of_a_process_that_was_killed_is_taken_over(truth: Any, score: Score, small: None) -> None:
    Path(".out.jsonl.parts").mkdir()
    claim = (
        "import fcntl, os, time\nfile = os.open('.out.jsonl.parts/claims', os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)\nprint('claimed', flush=True)\ntime.sleep(2)\nos.kill(os.getpid(), 9)"
    )
    with subprocess.Popen([sys.executable, "-c", claim], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        assert score("in.jsonl") == truth
        assert other.wait() == -9


def test_a_process_that_comes_late_puts_nothing_into_a_folder_that_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, whole, late = Parts(Path("out.jsonl"), Silent()), shutil.rmtree, list[str]()

    def rmtree(path: Path, *, ignore_errors: bool) -> None:
        whole(path, ignore_errors=ignore_errors)
        for attempt in (lambda: parts.claims().__enter__(), lambda: parts.finish("a", b"", Tally()), parts.finished):
            with pytest.raises((WriteError, FileNotFoundError)):
                attempt()
            late.append(str(path))

    monkeypatch.setattr("rmtrain.scoring.parts.shutil.rmtree", rmtree)
    with parts.opened():
        parts.finish("b", b"", Tally())
        parts.remove()
    assert (len(late), os.listdir()) == (3, [])


@pytest.mark.slow
def test_two_machines_of_two_processes_over_loopback(truth: Any, models: Path, tmp_path: Path) -> None:
    """Two launchers, each of which could stand on a machine of its own; one loses a process, and nothing is lost."""
    write("in.jsonl", ROWS)
    code = (
        "import os, sys\nimport rmtrain.data.chunk_files as chunk_files\nchunk_files.ROWS = 3\n"
        "from rmtrain.cli.app import run\nsys.exit(run(sys.argv[1:]))"
    )
    Path("start.py").write_text(code)
    port = 20_000 + os.getpid() % 10_000
    files = ["score", "in.jsonl", "--ckpt", str(models / "rm"), "--output", "out.jsonl"]
    torchrun = [sys.executable, str(Path(sys.executable).parent / "torchrun"), "--nnodes", "2", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "one"]
    machines = [
        warm.Popen([*torchrun, "start.py", *files], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [machine.communicate(timeout=200) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert sum(err.count("11 rows scored") for _, err in told) == 1
    assert read("out.jsonl") == truth
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl", "start.py", "truth.jsonl"]


def test_rows_are_written_under_names_of_their_format(score: Score, capsys: Any) -> None:
    Path("tables").mkdir()
    for name, word in (("a", "w2"), ("b", "w3")):
        Path(f"tables/{name}.csv").write_text(f"prompt,chosen,rejected\nw1,{word},w4\n")
    score("tables", "scored")
    assert sorted(os.listdir("scored")) == ["a.jsonl", "b.jsonl"]
    assert [read(f"scored/{name}.jsonl")[0]["chosen"] for name in "ab"] == ["w2", "w3"]
    for command, output in (("score", "out.csv"), ("select", "out.jsonl.gz"), ("select", "out.parquet")):
        assert rmtrain([command, "tables/a.csv", "--output", output]) == 2
        assert "files are not written" in capsys.readouterr().err
