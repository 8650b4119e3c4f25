"""Training on a CPU starts with allocator settings under which freed tensors can be reused."""

import os
import subprocess
import sys
from typing import Any

import pytest

from rmtrain import cli


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `main` would start in place of this process; the command itself does nothing."""
    calls: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr("rmtrain.cli.app.run", lambda arguments: 0)
    monkeypatch.setattr(cli, "_GPUS", ())
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # put back afterwards
    monkeypatch.delenv("GLIBC_TUNABLES")
    return calls


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["rmtrain", *arguments])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "-m", "rmtrain", *arguments])
    with pytest.raises(SystemExit):
        cli.main()


def test_train_starts_again_with_the_same_arguments(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "train", "a.yaml", "run.seed=1")
    assert started == [(sys.executable, [sys.executable, "-P", "-m", "rmtrain", "train", "a.yaml", "run.seed=1"])]
    assert "tcache_count=0" in os.environ["GLIBC_TUNABLES"]
    command(monkeypatch, "train", "a.yaml")  # in the process that was started
    assert len(started) == 1


def test_other_commands_and_machines_with_a_gpu_start_once(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "score", "--help")
    monkeypatch.setattr(cli, "_GPUS", ("/dev/null",))
    command(monkeypatch, "train", "a.yaml")
    assert started == []


def test_the_users_own_settings_are_kept(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    command(monkeypatch, "train", "a.yaml")
    assert started == []


def test_the_command_answers_as_before() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-m", "rmtrain", "train", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "--resume" in done.stdout
    assert done.stderr == ""
