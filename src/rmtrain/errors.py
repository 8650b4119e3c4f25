"""The one tree of errors that a user can cause.

Every error carries a message (what is wrong and where), a hint (how to mend it) and the exit code of the command.
"""

import re
import unicodedata
from pathlib import Path

_LOGIN = re.compile(r"(?<=:/)(/?)[^\s/?#]*@")  # before the host of an address, which a path has with one slash


def masked(text: str) -> str:
    """Text in which the user and password of an address are hidden."""
    return _LOGIN.sub(r"\1***@", text)


def printable(text: str) -> str:
    """Text for a screen: passwords hidden, and what would steer a terminal or fail to encode shown as an escape."""
    return "".join(map(_shown, masked(text)))


def _shown(character: str) -> str:
    kept = character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs"
    return character if kept else ascii(character)[1:-1]


def first_line(error: BaseException) -> str:
    """First line of an error's text; the name of its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RmtrainError(Exception):
    """Base of all errors shown to the user without a traceback.

    Args:
        message: what is wrong, and where.
        hint: how to mend it; empty if there is nothing to add.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = masked(message), masked(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InputError(RmtrainError):
    """The user's input was wrong and nothing was started (exit code 2)."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that does not validate: all its faults in one message."""


class DataError(InputError):
    """A source, row or split that can't be used."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or not a reward model."""


class RunFailedError(RmtrainError):
    """The run started and failed (exit code 1)."""


class WriteError(RunFailedError):
    """A file that the system does not let us write; an older one of that name is untouched."""


class NonFiniteError(RunFailedError):
    """A loss or gradient norm that is not finite; training stopped before the optimiser stepped."""


class LostProcessError(RunFailedError):
    """Another process of the run ended first.

    Args:
        message: what is wrong, and where.
        run: the run folder, whose manifest can't say which.
    """

    def __init__(self, message: str, run: Path) -> None:
        super().__init__(message, "look at what the process that ended first has said")
        self.run = run


class Interrupted(RmtrainError):  # noqa: N818 (it is no error: the user asked for it)
    """The run was stopped by a signal after writing a checkpoint (exit code 130)."""

    exit_code = 130
