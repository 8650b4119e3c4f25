"""The interface by which long work reports its progress; rmtrain.cli implements it."""

from collections.abc import Mapping
from typing import Any, Protocol

ENTRY_ACCURACY = "eval_accuracy/"  # in the metrics of a validation, before the name of a mixture's entry


class Display(Protocol):
    """Receives the progress of a command."""

    def note(self, line: str) -> None:
        """Show one line."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Show how much of a task is done."""

    def metrics(self, figures: Mapping[str, Any]) -> None:
        """Show the metrics of a training step or a validation."""


class Silent:
    """Shows nothing: for processes other than the main one, and for library use."""

    def note(self, line: str) -> None:
        """Ignore it."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Ignore it."""

    def metrics(self, figures: Mapping[str, Any]) -> None:
        """Ignore it."""
