"""What commands print to standard output: one JSON document, or tables and lines."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rmtrain.reporting.table import Table

Result = TypeVar("Result")


def show(result: Result, as_json: bool, tables: "Callable[[Result], Sequence[Table]]", *lines: str) -> None:
    """Print a result as JSON, or as its tables with lines below them."""
    if as_json:
        print_json(result)
    else:
        print_tables(tables(result), *lines)


def print_json(value: object, ascii_only: bool = True) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=ascii_only))


def print_tables(tables: "Sequence[Table]", *lines: str) -> None:
    """Print tables, and lines below them, which are not wrapped."""
    from rmtrain.reporting.table import to_terminal

    print_parts([to_terminal(*tables)], *lines)


def print_parts(parts: "Iterable[RenderableType]", *lines: str) -> None:
    """Print parts with a blank line between them, and lines below them, which are not wrapped."""
    from rmtrain.reporting.table import safe_text, spaced

    console = Console(highlight=False)
    console.print(spaced(parts))
    for line in lines:
        console.print(safe_text(line), soft_wrap=True)
