"""Callbacks between steps: validation and checkpoints at fixed steps, a stop that all processes agree on, the log."""

import json
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import distributed_c10d
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmtrain.errors import CheckpointError
from rmtrain.files import read_text, write_atomic, writing
from rmtrain.json_values import JsonObject
from rmtrain.model.devices import any_process


class Schedule(TrainerCallback):  # type: ignore[misc]
    """Validates and saves at fixed steps and at the end; every validation is followed by a checkpoint.

    Every checkpoint has a log line of its step, so that its totals leave no step out. With 0 steps between them,
    validations are never made, and checkpoints only at the end.
    """

    def __init__(self, evaluate_every: int, save_every: int) -> None:
        self.evaluate_every, self.save_every = evaluate_every, save_every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the flags of this step."""
        step, last = state.global_step, state.global_step >= state.max_steps
        control.should_evaluate = self.evaluate_every > 0 and (last or step % self.evaluate_every == 0)
        control.should_save = bool(control.should_evaluate or last or (self.save_every and step % self.save_every == 0))
        control.should_log = control.should_log or control.should_save


class GracefulStop(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP: a checkpoint at the end of the step, agreed between processes, then the end.

    `rmtrain.signals.on_signal` calls `request`.
    """

    def __init__(self) -> None:
        self.requested = False
        self.stopped = False

    def request(self) -> None:
        """Ask for the stop."""
        self.requested = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop all processes at this step if one of them was asked to."""
        if self._agreed(state):
            control.should_log = True
            control.should_save = True
            control.should_evaluate = False  # it could outlast a grace period: the resumed run validates first
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop also if the request came during validation or saving; this step's checkpoint is written by now."""
        control.should_training_stop = self._agreed(state) or control.should_training_stop

    def _agreed(self, state: TrainerState) -> bool:
        self.stopped = any_process(self.requested) and state.global_step < state.max_steps
        return self.stopped


class GroupTimeouts(TrainerCallback):  # type: ignore[misc]
    """Holds every process group to the run's time-out: DeepSpeed makes groups of its own with torch's default."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Set the time-out once DeepSpeed has made its groups; torch has no public call for this."""
        if args.world_size > 1:
            for group in distributed_c10d._world.pg_map:
                distributed_c10d._set_pg_timeout(timedelta(seconds=args.ddp_timeout), group)


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Writes each log line to metrics.jsonl and hands it to the display.

    Epochs are counted by their steps, since the Trainer itself counts the whole run as one epoch.
    """

    def __init__(self, path: Path, steps_per_epoch: int, emit: Callable[[JsonObject], None]) -> None:
        self.path, self.steps_per_epoch, self.emit = path, steps_per_epoch, emit

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Remove the lines of steps that a resumed run will repeat."""
        if state.is_world_process_zero and self.path.exists():
            lines = read_text(self.path, limit=1 << 32, error=CheckpointError).splitlines(keepends=True)
            write_atomic(self.path, "".join(line for line in lines if _is_done(line, state.global_step)))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, *_: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """One line a log step; the Trainer's closing summary is left to the result file."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        figures = {name: value if math.isfinite(value) else None for name, value in logs.items() if name != "epoch"}
        epoch = round(state.global_step / self.steps_per_epoch, 6)
        line = {"step": state.global_step, "steps": state.max_steps, "epoch": epoch, **figures}
        with writing(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.emit(line)


def _is_done(line: str, step: int) -> bool:
    """Whether a log line is complete and belongs to a step already taken."""
    try:
        return line.endswith("\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
