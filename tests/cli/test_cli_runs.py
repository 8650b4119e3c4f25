"""`rmtrain runs`: lists and shows what the run folders hold, and nothing else on standard output."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from reporting.run_cases import STEPS, make_manifest, make_run
from typer.testing import CliRunner

from rmtrain.cli.runs import app
from rmtrain.errors import InputError
from rmtrain.runs import locked


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def test_list_has_state_steps_and_test_accuracy(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    make_run(tmp_path, name="another", manifest=make_manifest(state="failed", started="2025-01-01T00:00:00+00:00"))
    (tmp_path / "no-run").mkdir()
    test = json.loads((folder / "eval" / "test.json").read_text())
    header, *lines = run("list", "--folder", tmp_path).splitlines()
    assert header.split()[:4] == ["run", "state", "started", "steps"]
    assert [line.split()[0] for line in lines] == ["another", folder.name]  # oldest first
    half = 50 * (test["accuracy_high"] - test["accuracy_low"])
    assert lines[1].split(maxsplit=4) == [
        folder.name,
        "finished",
        "2026-01-02",
        f"{STEPS}/{STEPS}",
        f"{100 * test['accuracy']:.1f} ±{half:.1f} %",
    ]
    assert max(map(len, (header, *lines))) <= 80


def test_list_json_is_the_same_in_full(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    test = json.loads((folder / "eval" / "test.json").read_text())
    (found,) = json.loads(run("list", "--folder", tmp_path, "--json"))
    assert found == {
        "run": str(folder),
        "name": folder.name,
        "state": "finished",
        "alive": None,
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T04:04:05+00:00",
        "model": "some-lab/Base-7B",
        "step": STEPS,
        "steps": STEPS,
        **{key: test[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "n")},
    }


def test_no_runs(tmp_path: Path) -> None:
    assert run("list", "--folder", tmp_path / "none") == f"no runs under {tmp_path / 'none'}/\n"
    assert json.loads(run("list", "--folder", tmp_path, "--json")) == []


def test_figures_that_can_not_be_had_are_null(tmp_path: Path) -> None:
    folder = make_run(tmp_path, manifest=make_manifest(state="interrupted", steps=None))
    (folder / "eval" / "test.json").unlink()
    (folder / "metrics.jsonl").unlink()
    (found,) = json.loads(run("list", "--folder", tmp_path, "--json"))
    assert found["accuracy"] is None
    assert found["steps"] is None
    assert found["step"] == 0
    assert run("list", "--folder", tmp_path).splitlines()[1].split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(
    ("holder", "alive", "shown"),
    [
        ("process {dead} on {here}", False, "died"),
        ("process {zombie} on {here}", False, "died"),
        ("process {other} on {here}", False, "died"),  # has the id of a process that is gone
        ("process {self} on {here}", True, "running"),
        ("process {dead} on elsewhere", None, "running"),
        ("", None, "running"),
        ("process 99999999999999999999 on {here}", None, "running"),
    ],
)
def test_a_running_run_whose_process_is_gone_has_died(
    tmp_path: Path, holder: str, alive: bool | None, shown: str
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = make_run(tmp_path, manifest=make_manifest(state="running"))
    waiting = [sys.executable, "-c", "input()"]  # until its input is closed, as the block is left
    with (
        locked(folder),
        subprocess.Popen(["true"]) as zombie,
        subprocess.Popen(waiting, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as other,
    ):
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        ids = {"dead": gone.pid, "zombie": zombie.pid, "other": other.pid, "self": os.getpid()}
        (folder / ".lock").write_text(holder.format(**ids, here=socket.gethostname()))
        (found,) = json.loads(run("list", "--folder", tmp_path, "--json"))
        assert (found["state"], found["alive"]) == ("running", alive)
        assert run("list", "--folder", tmp_path).splitlines()[1].split()[1] == shown


def test_show_finds_a_run_by_path_or_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert run("show", folder) == run("show", folder.name, "--folder", tmp_path)


def test_show_has_setup_and_results(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "report.html").write_text("")
    text = run("show", folder)
    test = json.loads((folder / "eval" / "test.json").read_text())
    for wanted in (
        "LoRA of rank 8",
        "some-lab/Base-7B",
        f"{100 * test['accuracy']:.1f} %",
        "Chat Hard",
        "micro_accuracy",
    ):
        assert wanted in text
    assert f"report: {folder}/report.html" in text
    assert text.count("\nsteps ") == 1


def test_show_json_holds_the_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    found = json.loads(run("show", folder, "--json"))
    assert found["manifest"] == json.loads((folder / "manifest.json").read_text())
    assert found["splits"]["test"] == json.loads((folder / "eval" / "test.json").read_text())
    assert found["rewardbench"]["rewardbench-1"] == json.loads(
        (folder / "rewardbench" / "rewardbench-1.json").read_text()
    )
    assert found["notes"] == []


def test_show_says_why_a_run_failed(tmp_path: Path) -> None:
    folder = make_run(tmp_path, manifest=make_manifest(state="failed", error="[red]no\x1b[31m room"))
    assert "error" in (text := run("show", folder))
    assert "[red]no room" in text
    assert "\x1b" not in text


def test_show_names_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing: no such run here or under .*/") as raised:
        run("show", "nothing", "--folder", tmp_path)
    assert raised.value.hint == "see `rmtrain runs list`"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("manifest.json", "[" * 1000 + "]" * 1000),
        ("manifest.json", '{"state": "finished", "started": 5, "steps": ' + "9" * 400 + "}"),
        ("eval/test.json", '{"accuracy": ' + "9" * 400 + ', "n": "many", "by_source": [1]}'),
        ("rewardbench/rewardbench-1.json", '{"benchmark": "rewardbench-1", "scores": {}, "incomplete_subsets": "999"}'),
        ("metrics.jsonl", '{"step": ' + "9" * 400 + "}\n[" + "[" * 1000),
    ],
)
@pytest.mark.parametrize(
    "command", [["runs", "list"], ["runs", "list", "--json"], ["leaderboard"], ["runs", "show", "b"]]
)
@pytest.mark.usefixtures("inside")
def test_a_damaged_run_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, command: list[str]
) -> None:
    from reporting.run_cases import make_run

    from rmtrain.cli.app import run as rmtrain

    for name in ("a", "b"):
        make_run(tmp_path / "runs", name)
    (tmp_path / "runs" / "a" / file).write_text(text)
    assert rmtrain(command) == 0
    told = capsys.readouterr()
    if command[:2] == ["runs", "list"]:
        assert ("can't be read" in told.out) is (text[0] == "[")
        assert told.out.count("finished") >= 1 + (text[0] != "[")
    if command == ["leaderboard"]:
        assert ("left out: runs/a" in told.err) is file.startswith("rewardbench")
        assert "runs/b" in told.out or "\nb " in told.out or " b " in told.out
