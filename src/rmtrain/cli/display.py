"""Progress on standard error: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from rmtrain.cli.processes import is_child, is_main_process
from rmtrain.display import ENTRY_ACCURACY
from rmtrain.errors import printable

_PLAIN_SECONDS = 10.0  # between progress lines without a terminal
_WAITING = 0.02  # show the share of a step spent waiting for data if it is larger


class TerminalDisplay:
    """Shows notes, progress and metrics, in the main process only.

    On exit from its context it removes its bars.
    """

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=not is_main_process())
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}

    def note(self, line: str) -> None:
        """Show one line."""
        self.console.print(Text(printable(line)))

    def note_once(self, line: str) -> None:
        """Show a line unless the launching process has shown it."""
        if not is_child():
            self.note(line)

    def progress(self, task: str, done: int, total: int, status: str = "") -> None:
        """Show a bar until the task is done, or a line every ten seconds."""
        if not self.console.is_terminal:
            now = time.monotonic()
            if now - self._last_line.setdefault(task, now) >= _PLAIN_SECONDS:
                self._last_line[task] = now
                self.note(f"{task}: {done} of {total}")
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, status="")
        self._bars.update(self._tasks[task], completed=done, total=total, status=status)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(task))
            if not self._tasks:
                self.__exit__()

    def metrics(self, figures: Mapping[str, Any]) -> None:
        """Move the bar, or print a line, for a training step; print a line for a validation."""
        step, steps = figures["step"], figures["steps"]
        if "eval_accuracy" in figures:
            self.note(
                f"step {step}/{steps}  validation accuracy {figures['eval_accuracy']:.4f}"
                f"  loss {figures['eval_loss']:.4f}"
            )
            entries = {key.partition("/")[2]: value for key, value in figures.items() if key.startswith(ENTRY_ACCURACY)}
            if entries:
                each = ", ".join(f"{name} {value:.4f}" for name, value in entries.items())
                self.note(f"step {step}/{steps}  mean over entries {figures['eval_mean_accuracy']:.4f}: {each}")
            return
        status = (
            f"loss {figures['loss']:.4f}  accuracy {figures['accuracy']:.3f}"
            f"  {figures['tokens_per_second']:,.0f} tokens/s"
        )
        if "matrix_rate_used" in figures:
            status += f"  {figures['matrix_rate_used']:.0%} of the matrix rate"
        if figures["waiting_for_data"] >= _WAITING:
            status += f"  {figures['waiting_for_data']:.0%} waiting for data"
        if self.console.is_terminal:
            self.progress("train", step, steps, status)
        else:
            self.note(f"step {step}/{steps}  {status}")

    def __enter__(self) -> "TerminalDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._tasks = None, {}
