"""The Table value, and its renderers for the terminal, Markdown and HTML."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from rmtrain.reporting.text import is_figure, markdown, plain

_WIDTH = 80  # columns of a terminal; wider tables get narrow headings
SOFT_HYPHEN = "\N{SOFT HYPHEN}"


class Interval(NamedTuple):
    """A fraction and the ends of its interval; each may be None."""

    low: object
    value: object
    high: object


@dataclass(frozen=True)
class Table:
    """A table whose cells are formatted text, such as `72.3 %`.

    In a wide table, headings wrap at spaces and soft hyphens, but not at no-break spaces.
    A table without columns is only its title and notes.
    """

    columns: Sequence[str]  # headings. The first may serve as the title.
    rows: Sequence[Sequence[object]]  # one cell per column each
    title: str = ""  # a line above the table; empty for none
    texts: int = 1  # number of columns from the left that hold text; the others hold figures
    bold: Collection[int] = ()  # indices of emphasised rows
    dim: Collection[int] = ()  # indices of dimmed rows
    intervals: Sequence[Interval] = ()  # for HTML, drawn beside each row; empty for none
    notes: Sequence[str] = ()  # sentences below the table


def to_terminal(*tables: Table) -> Group:
    """Tables one below another, without boxes, so that they look the same through a pipe."""
    parts = [
        Group(
            *([safe_text(table.title, "bold")] if table.title else []),
            *([_rich_table(table)] if table.columns else []),
            *map(safe_text, table.notes),
        )
        for table in tables
    ]
    return spaced(parts)


def spaced(parts: Iterable[RenderableType]) -> Group:
    """Put a blank line between the parts."""
    return Group(*[piece for part in parts for piece in ("", part)][1:])


def key_values(values: Mapping[str, object]) -> RichTable:
    """Names and values in two columns for the terminal, without values of None."""
    table = RichTable(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            table.add_row(safe_text(name), safe_text(value))
    return table


def safe_text(value: object, style: str = "") -> Text:
    """Text for rich without markup or control sequences."""
    return Text(plain(value), style)


def _rich_table(table: Table) -> RichTable:
    cells = [[plain(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)] or [0] * len(table.columns)
    headings = [plain(heading.replace(SOFT_HYPHEN, "")) for heading in table.columns]
    plain_width = sum(max(width, len(heading)) + 2 for width, heading in zip(widths, headings, strict=True)) - 2
    lines = [[heading] for heading in headings]
    if narrow := plain_width > _WIDTH:
        lines[table.texts :] = map(_words, table.columns[table.texts :])
    height = max(map(len, lines))
    shown = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 1 if narrow else 2, 0, 0))
    folded = max(range(table.texts), key=lambda index: widths[index], default=0)
    for index, heading in enumerate(lines):
        text = index < table.texts
        shown.add_column(
            Text("\n".join([""] * (height - len(heading)) + heading if text else heading)),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=index != folded,
        )
    for index, row in enumerate(cells):
        style = "bold" if index in table.bold else "dim" if index in table.dim else None
        shown.add_row(*map(Text, row), style=style)
    return shown


def _words(heading: str) -> list[str]:
    parts = heading.replace("95 %", "95\N{NO-BREAK SPACE}%").replace(SOFT_HYPHEN, "- ").split(" ")
    return [plain(part) for part in parts]


def to_markdown(table: Table) -> str:
    """The table in Markdown, with its title and notes."""
    parts = [f"**{markdown(table.title)}**"] if table.title else []
    if table.columns:
        headings = [markdown(heading.replace(SOFT_HYPHEN, "")) for heading in table.columns]
        ruler = ["---" if index < table.texts else "---:" for index in range(len(headings))]
        lines = [headings, ruler, *(map(markdown, row) for row in table.rows)]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    if table.notes:
        parts.append("\n".join(f"{markdown(note)}  " for note in table.notes))  # two blanks end a line
    return "\n\n".join(parts)


def to_html(table: Table) -> Markup:
    """The table as HTML elements, styled by the report's style sheet."""
    parts = [Markup("<h3>{}</h3>").format(plain(table.title))] if table.title else []
    if table.columns:
        start = _scale_start(table.intervals)
        heads = [_cell("th", index, table, heading) for index, heading in enumerate(table.columns)]
        if table.intervals:
            heads.append(Markup('<th class="strip">{:.0f} to 100 %</th>').format(100 * start))
        parts += [Markup('<div class="wide"><table>\n<thead><tr>{}</tr></thead>\n<tbody>').format(_join(heads))]
        for number, row in enumerate(table.rows):
            cells = [_cell("td", index, table, cell) for index, cell in enumerate(row)]
            if table.intervals:
                cells.append(Markup('<td class="strip">{}</td>').format(_strip(table.intervals[number], start)))
            style = Markup(' class="total"') if number in table.bold else ""
            parts.append(Markup("<tr{}>{}</tr>").format(style, _join(cells)))
        parts.append(Markup("</tbody>\n</table></div>"))
    parts += [Markup("<p>{}</p>").format(plain(note)) for note in table.notes]
    return Markup("\n").join(parts)


def _join(cells: Sequence[Markup]) -> Markup:
    return Markup("").join(cells)


def _cell(tag: str, index: int, table: Table, content: object) -> Markup:
    if index == 0 and tag == "td":
        return Markup('<th scope="row">{}</th>').format(plain(content))
    style = Markup(' class="number"') if index >= table.texts else ""
    return Markup("<{0}{1}>{2}</{0}>").format(escape(tag), style, plain(content))


def _scale_start(intervals: Sequence[Interval]) -> float:
    """The start of the scale for drawn intervals: 50 %, or lower if an interval reaches lower."""
    lows = [interval.low for interval in intervals if is_figure(interval.low)]
    return int(10 * min([*lows, 0.5])) / 10


def _strip(interval: Interval, start: float) -> Markup:
    """An interval drawn as a bar with a mark at its value; nothing if a number is missing."""
    places = [100 * (min(1.0, part) - start) / (1 - start) for part in interval if is_figure(part)]
    if len(places) < len(interval):
        return Markup("")
    low, value, high = places
    return Markup(
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><path d="M0 5H100" class="axis"/>'
        '<rect x="{:.2f}" y="3" width="{:.2f}" height="4" class="span"/>'
        '<rect x="{:.2f}" y="1" width="1" height="8" class="point"/></svg>'
    ).format(low, high - low, value)
