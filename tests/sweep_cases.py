"""The commands of a sweep, run within the process that tests it: what starting them one by one costs is saved."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from conftest import leave_out_reports

from rmtrain.cli.app import run
from rmtrain.training import sweep


class Here:
    """An executor without threads: signals can be handled in the main thread alone."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def submit(self, act: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(act(*arguments))
        return done

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        pass


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Have the commands run here, and no reports drawn; returns the list to which their arguments are added."""
    commands: list[list[str]] = []

    def command(self: sweep.Workers, arguments: Sequence[str], device: str, name: str) -> int:
        commands.append([*arguments])
        return run([*arguments])

    leave_out_reports(monkeypatch)
    monkeypatch.setattr(sweep, "ThreadPoolExecutor", Here)
    monkeypatch.setattr(sweep.Workers, "_command", command)
    return commands
