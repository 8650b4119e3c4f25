"""Any SOURCE → groups to rank or to score: a split as a whole, or the rows of a stream chunk by chunk."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rmtrain.data.chunks import Chunk, ChunkRows, RowStream
from rmtrain.data.curate import Purpose, curate
from rmtrain.data.entries import Entry
from rmtrain.data.parse import MAX_MALFORMED, ParsedRows, open_recipe_source, parse_by, unweighted
from rmtrain.data.schemas.detect import SchemaChoice, SchemaError, choose_schema
from rmtrain.data.sources import SourceRows
from rmtrain.data.split_data import ReadAs, SplitData, mapping_of
from rmtrain.display import Display
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection


def mappings_of(data: DataSection) -> list[ReadAs]:
    """All mappings of a recipe, its own and those of a mixture's entries, each once."""
    splits = data.source if isinstance(data.source, dict) else ()
    sections = [data, *(data.of_entry(entry) for split in splits for entry in data.entries(split))]
    mappings = [mapping_of(section) for section in sections]
    return [mapping for place, mapping in enumerate(mappings) if mapping and mapping not in mappings[:place]]


class Reading(NamedTuple):
    """How the rows of a source are read."""

    choice: SchemaChoice
    data: DataSection

    @property
    def marks(self) -> list[Any]:
        """Everything besides the row on which its groups depend."""
        return [self.choice.schema.name, mapping_of(self.data)]


def read_source(
    source: str | SourceRows,
    split: str | None,
    data: DataSection | None = None,
    *,
    evaluation: bool,
    trained: Sequence[ReadAs] = (),
    notify: Callable[[str], None] = lambda line: None,
) -> SplitData:
    """Read one split of any SOURCE (None: the only one), with the schema, columns and preferences of `data`.

    With `evaluation`, rows that can't be scored as a preference are dropped and counted, as in `load_data`. Without it,
    for scoring, every row becomes a group with all its completions and preferences.

    Args:
        evaluation: rows are to be ranked, not only scored.
        trained: mappings of checkpoints' training (see `mappings_of`). The first that fits the columns is used, and
            `data` if none fits.
        notify: receives a line on the mapping that is used.

    Raises:
        DataError: as in `load_data`; for scoring, also the first row that can't be read.
    """
    data = unweighted(data or DataSection(source=source if isinstance(source, str) else source.description))
    rows = open_recipe_source(source, data).read(split) if isinstance(source, str) else source
    reading = choose_reading(rows, data, trained, notify)
    return _only_part(_parse(rows, reading), "evaluation") if evaluation else read_all(rows, reading)


def read_all(rows: SourceRows, reading: Reading, most_malformed: float = MAX_MALFORMED) -> SplitData:
    """For scoring: every row as a group with all its completions and preferences.

    Raises:
        DataError: rows can't be read; names the first, or three if they are more than `most_malformed` of all.
    """
    parsed = _parse(rows, reading, empty_is_fault=False, most_malformed=most_malformed)
    if parsed.unusable:
        fault = parsed.unusable[0]
        raise DataError(
            f"{rows.where(fault.row)}: {fault.detail}",
            f"for scoring, every row must fit its row schema, {parsed.schema}",
        )
    return _only_part(parsed, "scoring")


def _parse(rows: SourceRows, reading: Reading, **rules: Any) -> ParsedRows:
    """The rows of a source that is not a recipe's; `rules` as in `parse_by`."""
    return parse_by(reading.choice, rows, rows.split, Entry(reading.data, rows.named_split or rows.split), **rules)


def _only_part(parsed: ParsedRows, purpose: Purpose) -> SplitData:
    """A split that is not a mixture."""
    rows = curate(parsed.source.split, parsed, purpose)
    return SplitData(rows.split, [*rows.curation.groups], (rows.part(),))


def choose_reading(
    rows: SourceRows, data: DataSection, trained: Sequence[ReadAs], notify: Callable[[str], None]
) -> Reading:
    """How to read rows; see `read_source`. Raises SchemaError if no mapping fits the columns."""
    mappings = [mapping for mapping in trained if mapping]
    for mapping in mappings:
        with contextlib.suppress(SchemaError):
            section = data.model_copy(update=mapping)
            reading = Reading(choose_schema(rows, section), section)
            notify(f"{rows.description}: read as in training, with {_as_overrides(mapping)}")
            return reading
    reading = Reading(choose_schema(rows, data), data)
    if mappings:
        wanted = " or ".join(map(_as_overrides, mappings))
        name = reading.choice.schema.name
        notify(f"{rows.description}: the columns do not fit {wanted}, as in training; the rows are read as {name} rows")
    return reading


def _as_overrides(mapping: ReadAs) -> str:
    return " ".join(f"data.{name}={json.dumps(value).replace(chr(34), '')}" for name, value in mapping.items())


@dataclass(frozen=True)
class SourceReader:
    """The rows of a source, chunk by chunk, and their schema."""

    stream: RowStream
    reading: Reading

    def read(self, chunk: Chunk) -> tuple[ChunkRows, SplitData]:
        """The rows of a chunk, each a group.

        Raises:
            DataError: a row can't be read.
        """
        rows = self.stream.read(chunk)
        # the share of malformed rows in a single chunk of several is not meaningful
        most = MAX_MALFORMED if len(self.stream.chunks) == 1 else 1.0
        return rows, read_all(rows.rows, self.reading, most)

    def check(self, rank: int, processes: int, display: Display) -> None:
        """Read a process's share of the rows as a check before any work; raises as `read`."""
        for number in range(rank, len(self.stream.chunks), processes):
            self.read(self.stream.chunks[number])
            display.progress("check rows", number + 1, len(self.stream.chunks))
