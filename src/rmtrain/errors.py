"""All errors that a user can cause.

Every error has a message (what is wrong, and where), a hint (how to fix it) and the exit code of the command.
"""

import re
import shlex
import unicodedata
from pathlib import Path

_LOGIN = re.compile(r"(?<=:/)(/?)[^\s/?#]*@")  # before the host of an address; paths normalise its // to /


def masked(text: str) -> str:
    """The text with the user and password of every address hidden."""
    return _LOGIN.sub(r"\1***@", text)


def printable(text: str) -> str:
    """Text for a terminal: passwords hidden, and control characters shown as escapes."""
    return "".join(map(_shown, masked(text)))


def _shown(character: str) -> str:
    kept = character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs"
    return character if kept else ascii(character)[1:-1]


def command_line(*words: object) -> str:
    """A command of rmtrain as a shell takes it, with quotes where they are needed."""
    return shlex.join(["rmtrain", *map(str, words)])


def first_line(error: BaseException) -> str:
    """First line of an error's text; the name of its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RmtrainError(Exception):
    """Base of all errors shown to the user without a traceback.

    Args:
        message: what is wrong, and where.
        hint: how to fix it; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = masked(message), masked(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InputError(RmtrainError):
    """The user's input is wrong; nothing was started (exit code 2)."""

    exit_code = 2


class RecipeError(InputError):
    """An invalid recipe; the message lists all faults."""


class DataError(InputError):
    """A source, row or split that can't be used."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or not a reward model."""


class RunFailedError(RmtrainError):
    """The run started and failed (exit code 1)."""


class WriteError(RunFailedError):
    """A file could not be written; an older file of that name is unchanged."""


class NonFiniteError(RunFailedError):
    """The loss or gradient norm is not finite; training stopped before the optimiser step."""


class LostProcessError(RunFailedError):
    """Another process of the run ended first; its run folder helps to find which."""

    def __init__(self, message: str, run: Path) -> None:
        super().__init__(message, "read the error of the process that ended first")
        self.run = run


class Interrupted(RmtrainError):  # noqa: N818 (it is no error: the user asked for it)
    """A signal stopped the run, which wrote a checkpoint first (exit code 130)."""

    exit_code = 130
