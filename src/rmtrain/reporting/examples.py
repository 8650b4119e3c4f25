"""Examples of dropped rows for the terminal, each beside what it repeats, contradicts or overlaps with."""

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rmtrain.data.examples import Example
from rmtrain.reporting.table import safe_text, spaced
from rmtrain.reporting.text import block, shortened

_SHOWN = 1200  # characters of a text


def to_terminal(examples: Iterable[Example]) -> Group:
    """One example below another; its two sides share the width."""
    return spaced([_example(each) for each in examples])


def _example(example: Example) -> Group:
    sides = [example.row, *([example.other] if example.other else [])]
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for side in sides:
        table.add_column(safe_text(side.place), overflow="fold", ratio=1)
    table.add_row(*(Text(block(shortened(side.text, _SHOWN))) for side in sides))
    why = f": {example.why}" if example.why else ""
    return Group(safe_text(f"{example.split}, {example.cause}{why}", "bold"), table)
