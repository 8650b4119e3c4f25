"""Source rows → rows read by their layout, with those that can't be read set aside by cause."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rmtrain.data.curate import unique_ids
from rmtrain.data.detect import find_layout, unread
from rmtrain.data.layout import NEGATIVE_MARGIN, Layout
from rmtrain.data.rows import ParsedRow, RowFault, empty_cause
from rmtrain.data.sources import SourceRows
from rmtrain.errors import DataError
from rmtrain.recipe.schema import DataSection

MOST_MALFORMED = 0.2  # share of a split's rows above which the layout or the source must be wrong


class Unreadable(NamedTuple):
    """A row that can't be read, or is left out before it is looked at."""

    row: int  # index in the source
    cause: str  # what the ledger books it under
    detail: str = ""  # the cause with the column, what it holds and what was expected


class LayoutError(DataError):
    """Columns that no layout has, or that a stated one lacks."""


class ParsedSplit(NamedTuple):
    """A source's rows of one split, read by their layout."""

    source: SourceRows
    schema: str  # the layout's name
    rows: list[tuple[int, ParsedRow]]  # index in the source, row
    faults: list[Unreadable]
    ids: list[str]  # of the rows
    total: int  # rows and faults together
    notes: tuple[str, ...] = ()


def parse_split(source: SourceRows, data: DataSection, split: str, *, empty_is_fault: bool = True) -> ParsedSplit:
    """Read every row by the layout that the recipe states or the columns tell; `split` names rows without an id.

    Raises:
        LayoutError: no layout fits the columns, a column to be renamed lacks, or a label would go unread beside answers
            that are renamed.
        DataError: more than a fifth of the rows is not readable (or empty, if that is a fault), with the first three
            of them.
    """
    columns = {name for row in source.rows for name in row}
    rows = [_rename(row, data.columns) for row in source.rows] if data.columns else source.rows
    try:
        _check_renames(columns, data)
        columns = (columns - {*data.columns.values()}) | data.columns.keys()
        sample = _sample(rows, columns)
        layout = find_layout(columns, sample, data)
        left = unread(layout, rows, columns, data)
        partly = _check_shards(source, rows, layout)
    except DataError as error:
        raise LayoutError(f"{source.description}: {error.message}", error.hint) from None
    good: list[tuple[int, ParsedRow]] = []
    faults: list[Unreadable] = []
    for index, row in enumerate(rows):
        try:
            good.append((index, layout.read(row)))
        except RowFault as fault:
            if fault.cause == NEGATIVE_MARGIN:
                raise _contradiction(source.where(index), fault) from None
            faults.append(Unreadable(index, fault.cause, fault.detail))
    empty = [Unreadable(index, cause, cause) for index, row in good if empty_is_fault and (cause := empty_cause(row))]
    malformed = sorted(faults + empty)
    if len(malformed) > MOST_MALFORMED * len(rows):
        shown = "; ".join(f"{source.where(fault.row)}: {fault.detail}" for fault in malformed[:3])
        raise DataError(
            f"{source.description}: {len(malformed)} of {len(rows)} rows are no use as {layout.name} rows: {shown}",
            "data.row_schema states another schema, data.columns renames columns",
        )
    notes = [f"columns that are not read: {', '.join(left)}"] if left else []
    if not layout.prompt and isinstance(sample.get("chosen"), str):
        notes.append("no column holds a prompt: what chosen and rejected begin with alike is the prompt, as TRL has it")
    notes += [f"columns that only some of the files have: {', '.join(partly)}"] if partly else []
    if "margin" in columns & layout.columns:
        notes.append("the column margin is each pair's score gap; loss.margin times it is taken off the reward gap")
    ids = unique_ids([f"{split}-{index}" if row.id is None else row.id for index, row in good])
    return ParsedSplit(source, layout.name, good, faults, ids, len(rows), tuple(notes))


def _check_shards(source: SourceRows, rows: Sequence[dict[str, Any]], layout: Layout) -> list[str]:
    """The columns that are read and that only some of a source's files have; what the layout needs, each must have."""
    seen: list[set[str]] = []
    start = 0
    for shard in source.shards:
        seen.append({name for row in rows[start : start + shard.rows] for name in row})
        start += shard.rows
    for shard, columns in zip(source.shards, seen, strict=True):
        if lacking := [need for need in layout.needs if need.partition(".")[0] not in columns]:
            raise DataError(
                f"{shard.name} lacks the column {lacking[0]}, which other files of the source have",
                f"its columns are: {', '.join(sorted(columns))}",
            )
    partly = {name for columns in seen for name in columns if not all(name in others for others in seen)}
    return sorted(partly & layout.columns)


def _sample(rows: Sequence[dict[str, Any]], columns: set[str]) -> dict[str, Any]:
    """The first value of each column."""
    sample: dict[str, Any] = {}
    for row in rows:
        sample |= {name: value for name, value in row.items() if value is not None and name not in sample}
        if len(sample) == len(columns):
            break
    return sample


def _contradiction(place: str, fault: RowFault) -> DataError:
    return DataError(
        f"{place}: {fault.detail}",
        "if its sign says which answer is better: data.answers: [chosen, rejected], data.label: margin, and "
        "data.better with the answer, 0 or 1, that `positive` and `negative` mean",
    )


def _rename(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    renamed = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {name: value for name, value in row.items() if name not in columns.values()} | renamed


def _check_renames(columns: set[str], data: DataSection) -> None:
    for ours, theirs in data.columns.items():
        if theirs not in columns:
            raise DataError(
                f"there is no column {theirs!r} to be read as {ours!r}",
                f"mend data.columns; the columns are: {', '.join(sorted(columns))}",
            )
