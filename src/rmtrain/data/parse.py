"""Source rows → rows read by their schema, with those that can't be read set aside by cause."""

from typing import Any, NamedTuple

from rmtrain.data.curate import unique_ids
from rmtrain.data.rows import ParsedRow, RowFault, empty_cause
from rmtrain.data.schemas import check_columns, detect_schema, row_parser
from rmtrain.data.sources import SourceRows
from rmtrain.errors import DataError
from rmtrain.recipe.schema import DataSection

_MOST_MALFORMED = 0.2  # share of a split's rows above which the schema or the source must be wrong


class ParsedSplit(NamedTuple):
    """A source's rows of one split, read by their schema."""

    source: SourceRows
    schema: str
    rows: list[tuple[int, ParsedRow]]  # index in the source, row
    faults: list[tuple[int, str]]  # index in the source, cause
    ids: list[str]  # of the rows
    total: int  # rows and faults together


def parse_split(source: SourceRows, data: DataSection, split: str, *, empty_is_fault: bool = True) -> ParsedSplit:
    """Read every row by the schema that the recipe states or the columns tell; `split` names rows without an id.

    Raises:
        DataError: no schema fits the columns, a column to be renamed lacks, or more than a fifth of the rows is not
            readable (or empty, if that is a fault), with the first three of them.
    """
    columns = {name for row in source.rows for name in row}
    rows = [_rename(row, data.columns) for row in source.rows] if data.columns else source.rows
    try:
        _check_renames(columns, data)
        columns |= data.columns.keys()
        if data.row_schema == "auto":
            schema = detect_schema(columns, next((row for row in rows if row.get("chosen") is not None), rows[0]))
        else:
            schema = data.row_schema
            check_columns(schema, columns)
    except DataError as error:
        raise DataError(f"{source.description}: {error.message}", error.hint) from None
    parse = row_parser(schema, data.score)
    good: list[tuple[int, ParsedRow]] = []
    faults: list[tuple[int, str]] = []
    for index, row in enumerate(rows):
        try:
            good.append((index, parse(row)))
        except RowFault as fault:
            faults.append((index, fault.cause))
    empty = [(index, cause) for index, row in good if empty_is_fault and (cause := empty_cause(row))]
    malformed = sorted(faults + empty)
    if len(malformed) > _MOST_MALFORMED * len(rows):
        shown = "; ".join(f"{source.where(index)}: {cause}" for index, cause in malformed[:3])
        raise DataError(
            f"{source.description}: {len(malformed)} of {len(rows)} rows are no use as {schema} rows: {shown}",
            "data.row_schema states another schema, data.columns renames columns",
        )
    ids = unique_ids([f"{split}-{index}" if row.id is None else row.id for index, row in good])
    return ParsedSplit(source, schema, good, faults, ids, len(rows))


def _rename(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _check_renames(columns: set[str], data: DataSection) -> None:
    for ours, theirs in data.columns.items():
        if theirs not in columns:
            raise DataError(
                f"data.columns renames the column {theirs!r} to {ours!r}, but there is none of that name",
                f"the columns are: {', '.join(sorted(columns))}",
            )
