"""The leaderboard as tables, and as a plot."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rmtrain.data.benchmarks.rewardbench1 import SECTIONS
from rmtrain.errors import InputError
from rmtrain.evaluation.leaderboard import Board, Entry, Figures
from rmtrain.files import write_atomic
from rmtrain.reporting.table import SOFT_HYPHEN, Table
from rmtrain.reporting.text import MISSING, dash, is_figure, plain, points

_SECTIONS = [name.replace("Reasoning", f"Rea{SOFT_HYPHEN}soning") for name in SECTIONS]
_HEADINGS = ("#", "model", *_SECTIONS, "prior sets", "mean of\N{NO-BREAK SPACE}4", "with prior", "95 % interval")
_NAMED = 3  # subsets in a note
_PUBLISHED, _OWN = "#4c72b0", "#c44e52"  # colours of the plot


def leaderboard_tables(board: Board, digits: int | None = None) -> list[Table]:
    """The title, the models, each followed by its further rows, and the notes; figures have so many decimals, or up to
    four digits."""

    def shown(value: float | None) -> str:
        if digits is not None:
            return points(value, digits)
        return f"{100 * value:.4g}" if is_figure(value) else MISSING

    lines = list(_lines(board, shown))
    title = f"RewardBench 1, scored by the era {board.era}, sorted by {board.sort}; in per cent"
    dim = [index for index, (belongs_above, _) in enumerate(lines) if belongs_above]
    models = Table(_HEADINGS, [cells for _, cells in lines], texts=2, dim=dim)
    notes = [f"{mark} {plain(note)}".strip() for mark, note in _notes(board)]
    return [Table((), (), title=title), models, Table((), (), notes=notes)]


def _lines(board: Board, shown: Callable[[float | None], str]) -> Iterator[tuple[bool, list[str]]]:
    """Cells of each line of the table; True marks lines that belong to the model above."""
    marks = _marks(board)

    def cells(rank: str, name: str, figures: Figures) -> list[str]:
        values = [*figures.sections.values(), figures.prior_sets, figures.mean_of_sections, figures.with_prior_sets]
        ends = (figures.with_prior_low, figures.with_prior_high)
        low, high = ends if board.sort == "with-prior" else (figures.low, figures.high)
        return [rank, name, *map(shown, values), dash(low, high, 1)]

    def beside(name: str, figures: Figures | None) -> Iterator[tuple[bool, list[str]]]:
        if figures:
            yield True, [*cells("", f"  {name}", figures)[:-1], ""]

    for row in board.rows:
        name = f"{row.model} {''.join(marks[note] for note in row.notes)}".strip()
        yield False, cells("-" if row.rank is None else str(row.rank), name + _partial(row), row.scored)
        yield from beside("longer wins", row.length_baseline)
        yield from beside("as published", row.published)
        for own in row.rescored:
            how = "scored here" if own.scored.interval == "clustered" else "as given"
            yield False, cells("", f"  {how}{own.model.removeprefix(str(own.ckpt))}{_partial(own)}", own.scored)
            yield from beside("longer wins", own.length_baseline)


def _partial(row: Entry) -> str:
    return " (partial)" if row.partial else ""


def _marks(board: Board) -> dict[str, str]:
    """A superscript number for each note of a row, in the order of the rows."""
    used = dict.fromkeys(note for row in board.rows for note in row.notes)
    return dict(zip(used, "¹²³⁴⁵⁶⁷⁸⁹", strict=False))


def _notes(board: Board) -> Iterator[tuple[str, str]]:
    """Notes with their marks, which may be empty."""
    for note, mark in _marks(board).items():
        yield mark, board.notes[note]
    scored = [scored for row in board.rows for scored in (row, *row.rescored)]
    for row in scored:
        parts = [f"it lacks {_first_names(row.missing_subsets)}"] if row.missing_subsets else []
        if sizes := [f"{name} {n['n']} of {n['expected']}" for name, n in row.incomplete_subsets.items()]:
            parts.append(f"incomplete rows: {_first_names(sizes)}")
        if parts:
            ranked = " is partial and has no rank" if row.partial else ""
            yield "", f"{row.model}{ranked}: {'; '.join(parts)}."
    if any(row.rescored for row in board.rows):
        yield "", "Scored here: your own results, or those of a given file, for the model above."
    if any(row.length_baseline for row in scored):
        yield "", "Longer wins: the score of always preferring the longer answer, on the same rows."
    ways = {
        "clustered": "from scored rows, clustered by prompt",
        "binomial": "if only subset accuracies are known, binomial from their accuracies and sizes",
        "sections": "if only section scores are known, binomial with equal accuracy in all subsets of a section",
    }
    if kinds := {row.scored.interval for row in scored} - {None}:
        what = "score with prior sets" if board.sort == "with-prior" else "mean of four sections"
        how = "; ".join(way for kind, way in ways.items() if kind in kinds)
        yield "", f"Intervals are those of the {what}: {how}. {MISSING}: unknown."
    yield "", "Published means of 4 are means of the published sections."
    yield "", "The benchmark's math-prm and mt-bench rows seem to have changed since these figures were published."


def _first_names(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    return ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def save_plot(board: Board, path: Path) -> None:
    """Plot a dot with its interval for each model's current figure, and a ring for the published one.

    Raises:
        InputError: the file's suffix is not an image format, or its folder does not exist.
        WriteError: it can't be written.
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in ("png", "svg", "pdf") or path.is_dir():
        raise InputError(f"--plot {path}: the suffix is not an image format", "name a .png, .svg or .pdf file")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: no such folder", "name a file in an existing folder")
    from matplotlib.figure import Figure

    rows = [row for row in board.rows if row.rank is not None][::-1]
    figure = Figure(figsize=(8, 1.6 + 0.38 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        _draw_row(axes, y, row, board.sort)
    axes.set_yticks(range(len(rows)), [fill(plain(row.model), 30) for row in rows], parse_math=False)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    what = {"mean": "mean of four sections", "with-prior": "score with prior sets", "published": "published average"}
    axes.set_xlabel(f"RewardBench 1, {what.get(board.sort, board.sort)}, era {board.era}, %", loc="right")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(list(once.values()), list(once), loc="outside upper right", ncols=4, frameon=False, fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=form)
    write_atomic(path, picture.getvalue())


def _draw_row(axes: Any, y: int, row: Entry, sort: str) -> None:
    colour, label = (_PUBLISHED, "scored by this era") if row.published else (_OWN, "your own")
    now, then = row.figure(sort), row.published.by(sort) if row.published else None
    ends = (row.scored.with_prior_low, row.scored.with_prior_high)
    low, high = ends if sort == "with-prior" else (row.scored.low, row.scored.high)
    again = [100 * value for own in row.rescored if (value := own.figure(sort)) is not None]
    if then is not None and now is not None:
        axes.plot([100 * then, 100 * now], [y, y], color="0.8", linewidth=1, zorder=1)
        (ring,) = axes.plot(100 * then, y, "o", color=colour, zorder=2, label="as published then")
        ring.set(markersize=10, markerfacecolor="white")
    if sort in ("mean", "with-prior") and low is not None and high is not None:
        axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2.5, alpha=0.5, zorder=3)
    if now is not None:
        axes.plot(100 * now, y, "o", color=colour, zorder=4, label=label)
    if again:
        axes.plot(again, [y] * len(again), "D", color=_OWN, zorder=5, label="scored here")
