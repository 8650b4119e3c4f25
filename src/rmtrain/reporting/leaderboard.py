"""The leaderboard as tables, and as a plot."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rmtrain.data.benchmarks.rewardbench1 import SECTIONS
from rmtrain.errors import InputError
from rmtrain.evaluation.leaderboard import sort_figure
from rmtrain.files import write_atomic
from rmtrain.reporting.table import SOFT_HYPHEN, Table
from rmtrain.reporting.text import MISSING, dash, is_figure, plain, points

_SECTIONS = [name.replace("Reasoning", f"Rea{SOFT_HYPHEN}soning") for name in SECTIONS]
_HEADINGS = ("#", "model", *_SECTIONS, "prior sets", "mean of\N{NO-BREAK SPACE}4", "with prior", "95 % interval")
_NAMED = 3  # subsets in a note
_PUBLISHED, _OWN = "#4c72b0", "#c44e52"  # colours of the plot


def leaderboard_tables(board: Mapping[str, Any], digits: int | None = None) -> list[Table]:
    """The title, the models with what belongs to each below it, and the notes.

    Args:
        board: of `evaluation.leaderboard`.
        digits: decimals of a figure; without it, figures have up to four digits.
    """

    def shown(value: Any) -> str:
        if digits is not None:
            return points(value, digits)
        return f"{100 * value:.4g}" if is_figure(value) else MISSING

    lines = list(_lines(board, shown))
    title = f"RewardBench 1, scored by the era {board['era']}, sorted by {board['sort']}; in per cent"
    models = Table(
        _HEADINGS,
        [cells for _, cells in lines],
        texts=2,
        dim=[index for index, (beside, _) in enumerate(lines) if beside],
    )
    notes = [f"{mark} {plain(note)}".strip() for mark, note in _notes(board)]
    return [Table((), (), title=title), models, Table((), (), notes=notes)]


def _lines(board: Mapping[str, Any], shown: Callable[[Any], str]) -> Iterator[tuple[bool, list[str]]]:
    """Cells of each row; and, told by True, of what was published of its model and what "the longer wins" gets."""
    marks, sort = _marks(board), board["sort"]

    def cells(rank: str, name: str, row: Mapping[str, Any]) -> list[str]:
        return [rank, name + (" (partial)" if row["partial"] else ""), *_figures(row["scored"], sort, shown)]

    def baseline(row: Mapping[str, Any]) -> Iterator[tuple[bool, list[str]]]:
        if row["length_baseline"]:
            yield True, ["", "  longer wins", *_figures(row["length_baseline"], sort, shown)[:-1], ""]

    for row in board["rows"]:
        mark = "".join(marks[note] for note in row["notes"])
        yield False, cells("-" if row["rank"] is None else str(row["rank"]), f"{row['model']} {mark}".strip(), row)
        yield from baseline(row)
        if row["published"]:
            yield True, ["", "  as published", *_figures(row["published"], sort, shown)[:-1], ""]
        for own in row["rescored"]:
            name = "  scored here" if own["scored"]["interval"] == "clustered" else "  as given"
            yield False, cells("", name + own["model"].removeprefix(str(own["ckpt"])), own)
            yield from baseline(own)


def _figures(figures: Mapping[str, Any], sort: str, shown: Callable[[Any], str]) -> list[str]:
    values = [*figures["sections"].values(), *(figures[key] for key in ("prior_sets", "mean_of_sections"))]
    low, high = (figures.get(f"with_prior_{end}" if sort == "with-prior" else end) for end in ("low", "high"))
    return [*map(shown, [*values, figures["with_prior_sets"]]), dash(low, high, 1)]


def _marks(board: Mapping[str, Any]) -> dict[str, str]:
    """A superscript number for each note that a row has, in the order in which they are met."""
    used = dict.fromkeys(note for row in board["rows"] for note in row["notes"])
    return dict(zip(used, "¹²³⁴⁵⁶⁷⁸⁹", strict=False))


def _notes(board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for note, mark in _marks(board).items():
        yield mark, board["notes"][note]
    scored = [scored for row in board["rows"] for scored in (row, *row["rescored"])]
    for row in scored:
        parts = [f"it lacks {_some(row['missing_subsets'])}"] if row["missing_subsets"] else []
        sizes = [f"{name} {n['n']} of {n['expected']}" for name, n in row["incomplete_subsets"].items()]
        if parts := [*parts, *([f"other than all rows: {_some(sizes)}"] if sizes else [])]:
            ranked = " is partial and has no rank" if row["partial"] else ""
            yield "", f"{row['model']}{ranked}: {'; '.join(parts)}."
    if any(row["rescored"] for row in board["rows"]):
        yield "", "Scored here, as given: results of one's own, or of a file given, of the published model above them."
    if any(row["length_baseline"] for row in scored):
        yield "", "Longer wins: what preferring the longer answer gets on the same rows."
    kinds = {row["scored"]["interval"] for row in scored}
    if kinds - {None}:
        what = "score with prior sets" if board["sort"] == "with-prior" else "mean of four sections"
        ways = {
            "clustered": "of results with scored rows, clustered by prompt",
            "binomial": "of results known by subset only, binomial from the subsets' accuracies and sizes",
            "sections": "of those known by section only, the same, as if all subsets of a section were alike",
        }
        found = "; ".join(way for kind, way in ways.items() if kind in kinds)
        yield "", f"Intervals are of the {what}: {found}. {MISSING}: not to be had from what is known."
    yield "", "Published means of 4 are of the published sections. Rows of math-prm and mt-bench seem to differ since."


def _some(names: Sequence[str]) -> str:
    """Names, of which there may be many."""
    return ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def save_plot(board: Mapping[str, Any], path: Path) -> None:
    """A dot a model for today's figure with its interval, and a ring for what was published of it, on one scale.

    Raises:
        InputError: the file's suffix names no format that can be drawn, or there is no such folder.
        WriteError: it can't be written.
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in ("png", "svg", "pdf") or path.is_dir():
        raise InputError(f"--plot {path}: its ending names no format", "name a .png, .svg or .pdf file")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: no such folder", "name a file in an existing folder")
    from matplotlib.figure import Figure

    sort = board["sort"]
    prefix = "with_prior_" if sort == "with-prior" else ""
    rows = [row for row in board["rows"] if row["rank"] is not None][::-1]
    figure = Figure(figsize=(8, 1.6 + 0.38 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        colour, label = (_PUBLISHED, "scored by this era") if row["published"] else (_OWN, "your own")
        now, then = sort_figure(row, sort), sort_figure(row, sort, "published")
        low, high = (row["scored"][f"{prefix}{end}"] for end in ("low", "high"))
        again = [100 * value for own in row["rescored"] if (value := sort_figure(own, sort)) is not None]
        if then is not None and now is not None:
            axes.plot([100 * then, 100 * now], [y, y], color="0.8", linewidth=1, zorder=1)
            (ring,) = axes.plot(100 * then, y, "o", color=colour, zorder=2, label="as published then")
            ring.set(markersize=10, markerfacecolor="white")
        if sort in ("mean", "with-prior") and low is not None:
            axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2.5, alpha=0.5, zorder=3)
        if now is not None:
            axes.plot(100 * now, y, "o", color=colour, zorder=4, label=label)
        if again:
            axes.plot(again, [y] * len(again), "D", color=_OWN, zorder=5, label="scored here")
    axes.set_yticks(range(len(rows)), [fill(plain(row["model"]), 30) for row in rows], parse_math=False)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    what = {"mean": "mean of four sections", "with-prior": "score with prior sets", "published": "published average"}
    axes.set_xlabel(f"RewardBench 1, {what.get(sort, sort)}, era {board['era']}, %", loc="right")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(list(once.values()), list(once), loc="outside upper right", ncols=4, frameon=False, fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=form)
    write_atomic(path, picture.getvalue())
