"""`rmtrain score` in this process: rows keep their own rewards, whatever happens to their file meanwhile."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_config, make_tokenizer, read_lines, save_reward_model, write_lines
from transformers import AutoModelForSequenceClassification

import rmtrain.cli.score as module
from rmtrain.cli.app import run as rmtrain
from rmtrain.data.render import Renderer
from rmtrain.files import held

pytestmark = pytest.mark.usefixtures("inside")
ROWS = [{"id": i, "prompt": f"w{i}", "completions": [f"w{i} w2", f"w3 w{i} w{i}"]} for i in range(8)]


def write_rows(rows: list[dict[str, Any]]) -> None:
    write_lines("in.jsonl", rows)


@pytest.fixture
def command(models: Path) -> list[str]:
    write_rows(ROWS)
    return ["score", "in.jsonl", "--ckpt", str(models / "rm"), "--output", "out.jsonl"]


def test_a_max_length_beyond_the_model_s_positions_is_cut_to_them_and_said(tmp_path: Path, capsys: Any) -> None:
    """In `score` and in `eval`: GPT-2 learns a vector for each position, and has none for later ones."""
    config = make_config("gpt2", max_position_embeddings=32, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    sidecar = {"recipe": {"data": {"max_length": 128}}}
    save_reward_model(model, Renderer.for_tokenizer(make_tokenizer()), tmp_path / "rm", sidecar)
    write_rows([{"prompt": "w1 " * 20, "completions": ["w2 " * 40, "w3 " * 5], "preferences": [[0, 1]]}])
    for command in (["score", "in.jsonl", "--output", "out.jsonl"], ["eval", "--data", "in.jsonl"]):
        assert rmtrain([*command, "--ckpt", str(tmp_path / "rm")]) == 0
        told = capsys.readouterr()
        assert "sequences are truncated to the model's 32 positions, not to the 128 tokens" in " ".join(
            told.err.split()
        )
    assert all(map(math.isfinite, read_lines("out.jsonl")[0]["rewards"]))


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is called after the rows were read and before they are scored."""
    calls: list[Any] = []
    whole = module.load

    def load(*args: Any, **kwargs: Any) -> Any:
        for call in calls:
            call()
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, "load", load)
    return calls


@pytest.mark.parametrize("rows", [ROWS[::-1], ROWS[:3], [], None])
def test_an_input_that_changes_while_it_is_scored_gives_no_row_the_rewards_of_another(
    command: list[str], meanwhile: list[Any], capsys: Any, rows: list[dict[str, Any]] | None
) -> None:
    assert rmtrain(command) == 0
    truth = read_lines("out.jsonl")
    assert [{**row, "rewards": None} for row in truth] == [{**row, "rewards": None} for row in ROWS]
    meanwhile.append(lambda: Path("in.jsonl").unlink() if rows is None else write_rows(rows))
    assert rmtrain([*command, "--overwrite"]) == 1
    assert "in.jsonl changed while it was scored: out.jsonl holds the earlier rows" in capsys.readouterr().err
    assert read_lines("out.jsonl") == truth
    assert {path.name for path in Path().iterdir()} <= {"in.jsonl", "out.jsonl"}


def test_an_interrupted_scoring_goes_on_with_its_own_rows_alone(
    command: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rmtrain.scoring.batches as scoring

    whole = scoring._score_batch
    run: list[int] = []

    def once(model: Any, groups: Any, *rest: Any) -> Any:
        run.append(len(groups))
        if len(run) == 3:
            raise KeyboardInterrupt
        return whole(model, groups, *rest)

    assert rmtrain([*command, "--tokens-per-batch", "20"]) == 0
    truth = read_lines("out.jsonl")
    monkeypatch.setattr(scoring, "_score_batch", once)
    options = ["--overwrite", "--tokens-per-batch", "20"]
    assert rmtrain([*command, *options]) == 130
    (partial,) = Path(".out.jsonl.parts").glob("*.batches-*")
    assert f"finished parts are kept in {partial.parent}; run the same command to continue" in capsys.readouterr().err
    kept = partial.read_bytes()
    run[:] = [0] * 3
    write_rows(ROWS[::-1])  # other rows: what was scored of the first is not theirs
    assert rmtrain([*command, *options]) == 0
    assert read_lines("out.jsonl") == truth[::-1]
    assert sum(run) == len(ROWS)
    write_rows(ROWS)
    partial.parent.mkdir()
    partial.write_bytes(kept)
    run[:] = [0] * 3
    assert rmtrain([*command, *options]) == 0
    assert read_lines("out.jsonl") == truth
    assert 0 < sum(run) < len(ROWS)
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl"]


def test_two_commands_do_not_write_one_output(command: list[str], capsys: Any) -> None:
    holder = (
        "import sys; from pathlib import Path; from rmtrain.files import held\n"
        "with held(Path('.out.jsonl.lock'), Path('out.jsonl'), remove=True): print('held', flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert rmtrain(command) == 2
        assert f"out.jsonl is in use by process {process.pid} on " in capsys.readouterr().err
        process.communicate("\n")
    assert rmtrain(command) == 0
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl"]


def test_a_lock_that_its_holder_takes_away_is_made_anew() -> None:
    lock = Path(".x.lock")
    with held(lock, Path("x"), remove=True):
        inode = lock.stat().st_ino
    assert not lock.exists()
    with held(lock, Path("x"), remove=True):
        assert lock.stat().st_ino
    assert inode
    assert os.listdir() == []


@pytest.mark.parametrize("output", ["/dev/null", "folder"])
def test_an_output_that_is_no_regular_file_is_refused(command: list[str], capsys: Any, output: str) -> None:
    Path("folder").mkdir()
    assert rmtrain([*command[:-1], output, "--overwrite"]) == 2
    told = "is a folder" if output == "folder" else "is not a regular file"
    assert f"{output} {told}" in capsys.readouterr().err
    assert Path("/dev/null").is_char_device()
