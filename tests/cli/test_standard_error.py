"""A command outlives the readers of its standard error, and stops with a checkpoint when its terminal closes."""

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
from rich.console import Console
from test_processes_launched import command, write_recipe

from rmtrain.cli import processes
from rmtrain.cli.standard_error import outlive_reader
from rmtrain.runs import read_manifest
from rmtrain.signals import on_signal


def lost_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def lost_terminal() -> int:
    ours, its = pty.openpty()
    os.close(ours)
    return its


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("opened", [lost_pipe, lost_terminal, full_disk])
def test_what_can_not_be_said_ends_nothing(monkeypatch: pytest.MonkeyPatch, opened: Callable[[], int]) -> None:
    raw = io.FileIO(opened(), "w", closefd=False)
    plain = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", line_buffering=True)
    with pytest.raises(OSError, match=r"Broken pipe|Input/output|No space"):
        print("a line", file=plain)
    monkeypatch.setattr(sys, "stderr", plain)
    outlive_reader()
    for _ in range(200):  # more than its buffer holds
        Console(file=sys.stderr).print("x" * 100)
        print("x" * 100, file=sys.stderr, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), raw.fileno())  # what the buffer still holds is written at the end


@pytest.mark.parametrize("arguments", [("recipes", "list"), ("recipes", "show", "quickstart"), ("recipes", "schema")])
def test_a_process_reports_its_end_where_nobody_reads_its_results(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Rich raises SystemExit there; a launch took it for a process that had ended without a word."""
    launched = os.environ | {"RMTRAIN_STATUS": str(tmp_path / "status"), "RANK": "0"}
    done = warm.run(command(*arguments), stdout=lost_pipe(), stderr=subprocess.PIPE, env=launched, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert (tmp_path / "status").read_text() == "0 1 \n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_whose_terminal_closes_writes_a_checkpoint(base: Path, tmp_path: Path, number: signal.Signals) -> None:
    recipe = write_recipe(tmp_path, base, epochs=500)
    reader, writer = os.pipe()
    with warm.Popen(command("train", recipe), stderr=writer, start_new_session=True) as process:
        os.close(writer)
        with open(reader, encoding="utf-8") as told:
            next(line for line in told if line.startswith("step 2/"))
        process.send_signal(number)
    assert process.returncode == 130
    (run,) = (tmp_path / "runs").iterdir()
    manifest = read_manifest(run)
    assert manifest["state"] == "interrupted"
    assert "a checkpoint is written" in manifest["error"]
    assert len(list((run / "checkpoints").glob("checkpoint-*"))) == 1


@pytest.mark.parametrize("ignored", [True, False])
def test_a_closing_terminal_ends_no_command_under_nohup(monkeypatch: pytest.MonkeyPatch, ignored: bool) -> None:
    import torch.distributed.run

    told: list[str] = []
    monkeypatch.setattr(torch.distributed.run, "main", told.extend)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        received: list[bool] = []
        with on_signal(lambda: received.append(True)):
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == ([] if ignored else [True])
            with pytest.raises(Exception, match="without reporting an error"):
                processes.launch(2)
    finally:
        signal.signal(signal.SIGHUP, before)
    (option,) = (word for word in told if word.startswith("--signals-to-handle="))
    assert ("SIGHUP" in option) is not ignored
    assert {"SIGTERM", "SIGINT", "SIGUSR1"} <= set(option.partition("=")[2].split(","))


def test_a_launch_waits_for_its_checkpoint_however_many_signals_come(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.api import SignalException

    launched: list[subprocess.Popen[bytes]] = []

    def torchrun(arguments: list[str]) -> None:
        report = "import os, time; time.sleep(0.3); print('0 130 ', file=open(os.environ['RMTRAIN_STATUS'], 'a'))"
        launched.append(subprocess.Popen([sys.executable, "-S", "-c", report, "rmtrain"]))
        raise SignalException("the third signal", signal.SIGTERM)

    monkeypatch.setattr(torch.distributed.run, "main", torchrun)
    assert processes.launch(1) == 130
    launched[0].wait()
