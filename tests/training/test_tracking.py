"""wandb is asked for nothing unless the recipe says so, and told no more than the run's figures."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from training_cases import run

from rmtrain.errors import InputError, Interrupted, RunFailedError
from rmtrain.training import train  # TRL looks for the real wandb when it is imported, before a stand-in is there
from rmtrain.training.tracking import check_login
from rmtrain.training.trainer import GroupRewardTrainer


class FakeWandb(ModuleType):
    """Stands in for wandb and keeps what it is told."""

    class Error(Exception):
        """wandb's own."""

    def __init__(self, login: bool | Exception = True) -> None:
        super().__init__("wandb")
        self.answer = login
        self.asked: list[dict[str, Any]] = []
        self.started: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.finished: list[int] = []

    def login(self, **options: Any) -> bool:
        self.asked.append(options)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def init(self, **options: Any) -> "FakeWandb":
        self.started.append(options)
        return self

    def Settings(self, **options: Any) -> dict[str, Any]:  # noqa: N802 (wandb's name)
        return options

    def log(self, line: dict[str, Any], step: int) -> None:
        self.lines.append((step, line))

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize("mode", ["off", "offline"])
def test_no_key_is_asked_for_unless_online(wandb: FakeWandb, mode: str) -> None:
    check_login(mode)
    assert not wandb.asked


def test_online_never_prompts_and_says_what_is_missing(wandb: FakeWandb) -> None:
    check_login("online")
    assert wandb.asked == [{"prompt": False}]
    wandb.answer = False
    with pytest.raises(InputError, match="no wandb key is set") as caught:
        check_login("online")
    assert "wandb login" in caught.value.hint
    wandb.answer = wandb.Error("Failed to authenticate\nwith the server")
    with pytest.raises(InputError, match=r"wandb can't log in: Failed to authenticate\n  hint"):
        check_login("online")


def test_a_missing_key_starts_nothing(wandb: FakeWandb, base: Path, tmp_path: Path) -> None:
    wandb.answer = False
    with pytest.raises(InputError, match="no wandb key is set"):
        run(base, tmp_path, tracking__wandb="online")
    assert not list(tmp_path.glob("try-*"))


def test_a_run_logs_its_figures_under_its_own_name(wandb: FakeWandb, base: Path, tmp_path: Path) -> None:
    folder = run(base, tmp_path, tracking__wandb="offline", optim__max_steps=3).run
    (started,) = wandb.started
    assert (started["id"], started["name"], started["mode"], started["resume"]) == (
        folder.name,
        folder.name,
        "offline",
        "allow",
    )
    assert started["config"]["optim"]["max_steps"] == 3
    settings = started["settings"]
    assert settings["disable_git"]
    assert settings["x_disable_machine_info"]
    assert not settings["save_code"]
    assert settings["console"] == "off"
    losses = [step for step, line in wandb.lines if "loss" in line]
    assert losses == [1, 2, 3]
    assert any("eval_accuracy" in line for _, line in wandb.lines)
    assert wandb.finished == [0]


@pytest.mark.parametrize(
    ("name", "fault", "code"),
    [
        ("evaluate", RunFailedError("lost"), 1),
        ("evaluate", ValueError("lost"), 1),
        ("save_final", OSError("lost"), 1),
        ("evaluate", Interrupted("by a signal"), 130),
    ],
)
def test_a_run_that_fails_is_no_finished_run_of_wandb(
    wandb: FakeWandb, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Any, code: int
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    monkeypatch.setattr(train if name == "save_final" else GroupRewardTrainer, name, fail)
    with pytest.raises((RunFailedError, Interrupted)):
        run(base, tmp_path, tracking__wandb="offline", optim__max_steps=1)
    assert wandb.finished == [code]


def test_a_resumed_run_is_the_same_run_of_wandb(wandb: FakeWandb, base: Path, tmp_path: Path) -> None:
    first = run(base, tmp_path, tracking__wandb="offline", optim__max_steps=3)
    run(base, tmp_path, tracking__wandb="offline", optim__max_steps=3, resume=first.run)
    assert [started["id"] for started in wandb.started] == [first.run.name] * 2
    assert {started["resume"] for started in wandb.started} == {"allow"}


def test_off_imports_no_wandb(monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    assert run(base, tmp_path, optim__max_steps=1).steps == 1
