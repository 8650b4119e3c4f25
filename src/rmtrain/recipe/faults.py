"""Faults of a recipe with their places, and the error message that shows them."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import NamedTuple

from rmtrain.errors import RecipeError

KeyPath = tuple[str | int, ...]  # ("lora", "targets", 1)

_LABEL = "error: "
_SHOWN_COLUMNS = 110  # longer source lines are shortened around the caret


@dataclass(frozen=True)
class Source:
    """A text with faults: a recipe file, or one `KEY=VALUE` of the command line."""

    name: str
    text: str
    argument: int = -1  # number of the `KEY=VALUE`, from 0; -1 for a file

    @property
    def is_override(self) -> bool:
        """Whether the text comes from the command line."""
        return self.argument >= 0

    @cached_property
    def lines(self) -> list[str]:
        """The text's lines, and an empty one for faults at the end."""
        return [*self.text.splitlines(), ""]


class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of a source's line, counted from 0."""

    source: Source
    line: int
    start: int
    end: int

    @property
    def place(self) -> str:
        """`file.yaml:7`, or `command line`."""
        return self.source.name if self.source.is_override else f"{self.source.name}:{self.line + 1}"


class Fault(NamedTuple):
    """A single fault."""

    path: KeyPath  # the key at fault; empty for the file as a whole
    message: str
    where: Span | Source  # the source, if there is no place in the text
    hint: str = ""

    @property
    def key(self) -> str:
        """The dotted key."""
        return dotted(self.path)


def dotted(path: KeyPath) -> str:
    """`("lora", "targets", 1)` as `lora.targets[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def recipe_error(faults: Iterable[Fault]) -> RecipeError:
    """One error with all faults: first those of the file in order, then those of the command line.

    The message starts without `error: `, which the command line adds to every error.
    """
    blocks = [_render(fault) for fault in sorted(faults, key=_order)]
    if len(blocks) > 1:
        blocks.append(f"{len(blocks)} errors in the recipe; nothing was started")
    return RecipeError("\n\n".join(blocks).removeprefix(_LABEL))


def printable(text: str) -> str:
    """The text with each control character replaced by one character, so that carets stay aligned."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _order(fault: Fault) -> tuple[int, float, float]:
    where = fault.where
    return (where.argument, inf, inf) if isinstance(where, Source) else (where.source.argument, where.line, where.start)


def _render(fault: Fault) -> str:
    lines = [f"{_LABEL}{printable(f'{fault.key}: ' if fault.key else '')}{printable(fault.message)}"]
    if isinstance(fault.where, Source):
        lines.append(f" --> {printable(fault.where.name)}")
    else:
        lines += _excerpt(fault.where)
    if fault.hint:
        lines.append(f"help: {printable(fault.hint)}")
    return "\n".join(lines)


def _excerpt(span: Span) -> list[str]:
    """The line of the span, with carets below it."""
    # a tab is shown as a space, since terminals differ in their tab stops
    line = printable(span.source.lines[span.line].replace("\t", " "))
    before, marked = line[: span.start], line[span.start : max(span.start + 1, span.end)][: _SHOWN_COLUMNS // 2]
    after = line[span.start + len(marked) :]
    if len(before) > _SHOWN_COLUMNS // 2:
        before = "…" + before[-_SHOWN_COLUMNS // 2 :]
    room = _SHOWN_COLUMNS - len(before) - len(marked)
    if len(after) > room:
        after = after[:room] + "…"
    carets = " " * _width(before) + "^" * max(1, _width(marked))
    if span.source.is_override:
        arrow = f" --> {span.place}: "
        return [arrow + before + marked + after, " " * len(arrow) + carets]
    number = str(span.line + 1)
    gutter = " " * len(number)
    return [
        f"{gutter}--> {printable(span.place)}:{span.start + 1}",
        f"{gutter} |",
        f"{number} | {before}{marked}{after}".rstrip(),
        f"{gutter} | {carets}",
    ]


def _width(text: str) -> int:
    """The width of the text in terminal columns."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
