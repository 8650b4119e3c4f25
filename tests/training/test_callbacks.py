"""When a run validates, saves and logs."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl

from rmtrain.training.callbacks import GracefulStop, Schedule


def events(schedule: Schedule, steps: int) -> list[tuple[int, str]]:
    """(step, what is done at its end), as letters: e validates, s saves, l logs."""
    found = []
    for step in range(1, steps + 1):
        state: Any = SimpleNamespace(global_step=step, max_steps=steps)
        control = TrainerControl()
        schedule.on_step_end(SimpleNamespace(), state, control)  # type: ignore[arg-type]
        flags = zip("esl", (control.should_evaluate, control.should_save, control.should_log), strict=True)
        if done := "".join(letter for letter, flag in flags if flag):
            found.append((step, done))
    return found


@pytest.mark.parametrize(
    ("evaluate", "save", "expected"),
    [
        (3, 0, [(3, "esl"), (6, "esl"), (7, "esl")]),
        (3, 2, [(2, "sl"), (3, "esl"), (4, "sl"), (6, "esl"), (7, "esl")]),
        (0, 2, [(2, "sl"), (4, "sl"), (6, "sl"), (7, "sl")]),
        (0, 0, [(7, "sl")]),
        (100, 0, [(7, "esl")]),
    ],
)
def test_what_is_done_at_which_step(evaluate: int, save: int, expected: list[tuple[int, str]]) -> None:
    assert events(Schedule(evaluate, save), 7) == expected


@pytest.mark.parametrize("step", [1, 6])
def test_a_stop_that_was_asked_for_saves_and_ends_the_training(step: int) -> None:
    stop, state = GracefulStop(), SimpleNamespace(global_step=step, max_steps=7)
    arguments: Any = SimpleNamespace(world_size=1)
    control = TrainerControl()
    stop.on_step_end(arguments, state, control)  # type: ignore[arg-type]
    assert not control.should_training_stop
    stop.request()
    stop.on_step_end(arguments, state, control)  # type: ignore[arg-type]
    assert (control.should_training_stop, control.should_save, control.should_log) == (True, True, True)
    assert stop.stopped


def test_after_the_last_step_there_is_nothing_to_stop() -> None:
    stop, state = GracefulStop(), SimpleNamespace(global_step=7, max_steps=7)
    stop.requested = True
    stop.on_step_end(SimpleNamespace(world_size=1), state, TrainerControl())  # type: ignore[arg-type]
    assert not stop.stopped
