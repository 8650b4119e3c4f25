"""Sources → parsed splits: read the rows, find their schema, parse each row, and draw missing splits from training."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.digests import Digests, digest, digests, renamed, repeated_places
from rmtrain.data.entries import Entry, entries_of
from rmtrain.data.folder_files import require_one_split
from rmtrain.data.rows import take
from rmtrain.data.schemas.detect import SchemaChoice, choose_schema
from rmtrain.data.schemas.rows import OTHER_PROMPT, ParsedRow, RowFault, empty_cause
from rmtrain.data.schemas.schema import NEGATIVE_MARGIN, NOT_COUNTED_FROM_0, UNKNOWN_LABEL
from rmtrain.data.sources import MissingSplitError, OpenSource, SourceRows, open_source, parse_source, pin_source
from rmtrain.data.splits import HELD_OUT, hold_out, leak_key
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

MAX_MALFORMED = 0.2  # a larger share of malformed rows means that the schema or the source is wrong
_FATAL = {  # faults of a row that make all other rows suspect too, and how to mend them
    NEGATIVE_MARGIN: "if its sign says which answer is better, set data.answers: [chosen, rejected], "
    "data.label: margin, and data.better, which names the better answer, 0 or 1, for `positive` and for `negative`",
    NOT_COUNTED_FROM_0: 'if the label counts from 1, say so: data.better: {"1": 0, "2": 1} and so on; data.ties names '
    "the values that mean a tie",
}
_READING = {
    UNKNOWN_LABEL: "data.better says which answer each value means, and data.ties which values are ties",
    OTHER_PROMPT: "if the answers are whole conversations, data.columns: {other: prompt} leaves the column prompt out",
}


class UnusableRow(NamedTuple):
    """A row that does not become a group: it can't be read, or is held out for another split."""

    row: int  # index in the source
    cause: str
    detail: str = ""  # the cause with the column, its value and the expected one


class RowNames(NamedTuple):
    """The ids of a split's rows: their own, or numbers, made unique."""

    split: str
    first: int  # the number of the source's first row
    changed: Mapping[int, str] = {}  # by index in the source

    def of(self, index: int, row: ParsedRow) -> str:
        """The id of a row."""
        name = f"{self.split}-{self.first + index}" if row.id is None else row.id
        return self.changed.get(index, name)


class ParsedRows(NamedTuple):
    """The N readable rows of one entry of a split, read again on demand, so that few are in memory at once."""

    entry: Entry
    source: SourceRows
    choice: SchemaChoice
    names: RowNames
    rows: NDArray[np.int64]  # [N] index in the source
    prompts: Digests  # [N] leak keys
    suspects: NDArray[np.int32]  # [N] as in `ParsedRow`
    unusable: list[UnusableRow]
    total: int  # rows and unusable rows together

    @property
    def schema(self) -> str:
        """The name of their schema."""
        return self.choice.schema.name

    def read(self, rows: NDArray[np.int64] | None = None) -> Iterator[tuple[int, str, ParsedRow]]:
        """The index, the id and the content of rows; by default of all."""
        rows = self.rows if rows is None else rows
        for index, row in zip(rows.tolist(), take(self.source.rows, rows), strict=True):
            parsed = self.choice.read(row)
            yield index, self.names.of(index, parsed), parsed

    def chosen(self, mask: NDArray[np.bool_]) -> "ParsedRows":
        """Some of the rows, without the unusable ones."""
        arrays = {name: getattr(self, name)[mask] for name in ("rows", "prompts", "suspects")}
        return self._replace(**arrays, unusable=[], total=int(mask.sum()))


def parse_splits(data: DataSection, needed: Sequence[str]) -> tuple[dict[str, list[ParsedRows]], list[str]]:
    """The rows of each entry of the needed splits, and notes; splits that the source lacks are drawn from training."""
    sources, shares = _Sources(data), holdout_shares(data)
    parsed: dict[str, list[ParsedRows]] = {}
    notes: list[str] = []
    if "train" in needed or any(name in shares for name in needed):
        drawn = {name: share for name, share in shares.items() if not sources.has(name)}
        notes = [f"data.holdout.{name} is not used: the source has that split" for name in shares if name not in drawn]
        if "train" in needed or any(name in drawn for name in needed):
            train = sources.parse("train")
            prompts = np.concatenate([rows.prompts for rows in train])
            parsed = _assign(train, hold_out(prompts, drawn, data.holdout.seed), ["train", *drawn])
            if drawn and (unused := sources.unused()):
                notes.append(f"data.holdout draws {' and '.join(drawn)} from train; splits that are not used: {unused}")
    return {name: parsed[name] if name in parsed else sources.parse(name) for name in needed}, notes


def parse_by(
    choice: SchemaChoice,
    source: SourceRows,
    split: str,
    entry: Entry,
    *,
    empty_is_fault: bool = True,
    most_malformed: float = MAX_MALFORMED,
) -> ParsedRows:
    """Read every row by a given schema.

    Args:
        split: names the rows without an id.
        empty_is_fault: rows with empty texts count as malformed.
        most_malformed: the largest share of malformed rows that is not an error.

    Raises:
        DataError: a larger share of the rows is malformed; names the first three.
    """
    rows, suspects, prompts, ids = array("q"), array("i"), bytearray(), bytearray()
    unusable, empty = list[UnusableRow](), list[UnusableRow]()
    names = RowNames(split, source.shards[0].first if len(source.shards) == 1 else 0)
    for index, row in enumerate(source.rows):
        try:
            parsed = choice.read(row)
        except RowFault as fault:
            unusable.append(_unusable(source, index, fault))
            continue
        rows.append(index)
        suspects.append(parsed.suspect)
        prompts.extend(leak_key(parsed.prompt))
        ids.extend(digest(names.of(index, parsed)))
        if empty_is_fault and (cause := empty_cause(parsed)):
            empty.append(UnusableRow(index, cause, cause))
    malformed = sorted(unusable + empty)
    if len(malformed) > most_malformed * len(source.rows):
        examples = "; ".join(f"{source.where(fault.row)}: {fault.detail}" for fault in malformed[:3])
        raise DataError(
            f"{source.description}: {len(malformed)} of {len(source.rows)} rows are not valid {choice.schema.name} "
            f"rows: {examples}",
            _READING.get(malformed[0].cause, "data.row_schema names another schema, data.columns renames columns"),
        )
    arrays = np.array(rows), digests(prompts), np.array(suspects)
    readable = ParsedRows(entry, source, choice, names, *arrays, unusable, len(source.rows))
    taken = digests(ids)
    repeated = readable.rows[repeated_places(taken)]
    if not len(repeated):
        return readable
    changed = renamed(((index, name) for index, name, _ in readable.read(repeated)), taken)
    return readable._replace(names=names._replace(changed=changed))


def _unusable(source: SourceRows, index: int, fault: RowFault) -> UnusableRow:
    if fault.cause in _FATAL:
        raise DataError(f"{source.where(index)}: {fault.detail}", _FATAL[fault.cause]) from None
    return UnusableRow(index, fault.cause, fault.detail)


def _assign(
    train: Sequence[ParsedRows], assignment: Sequence[str | None], names: Sequence[str]
) -> dict[str, list[ParsedRows]]:
    """The training rows of each entry by their assigned split; unusable rows stay in `train`."""
    splits: dict[str, list[ParsedRows]] = {name: [] for name in names}
    assigned = iter(assignment)
    for parsed in train:
        of_rows = [split or "train" for split in islice(assigned, len(parsed.rows))]
        for name in names:
            mask = np.fromiter((split == name for split in of_rows), np.bool_, len(of_rows))
            part = parsed.chosen(mask)
            if name == "train":
                away = [UnusableRow(index, HELD_OUT) for index in parsed.rows[~mask].tolist()]
                part = part._replace(unusable=[*parsed.unusable, *away], total=parsed.total)
            if part.total or len(train) == 1:  # an entry may have no row in a held-out split
                splits[name].append(part)
    return splits


class _Sources:
    """The sources of a recipe, each opened once, so that all splits are from one commit."""

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._open: dict[str, OpenSource] = {}

    def has(self, split: str) -> bool:
        """Whether the recipe names a split and its source has it."""
        if isinstance(self._data.source, dict):
            return split in self._data.source
        return split in self._data.splits and all(
            entry.split in self._source(entry).splits for entry in entries_of(self._data, split)
        )

    def unused(self) -> str:
        """The splits of the recipe's only source that it does not name, separated by commas."""
        if isinstance(self._data.source, dict):
            return ""
        splits = {name for opened in self._open.values() for name in opened.splits}
        return ", ".join(sorted(splits - {*self._data.splits.values()}))

    def parse(self, split: str) -> list[ParsedRows]:
        """The rows of each entry of a split of the recipe."""
        if entries := entries_of(self._data, split):
            return [self._parse(entry, split) for entry in entries]
        raise DataError(f"data.source has no entry for the split {split}", f"it has: {', '.join(self._data.source)}")

    def _parse(self, entry: Entry, split: str) -> ParsedRows:
        source = self._source(entry)
        try:
            rows = source.read(entry.split, any_split=not entry.named)
        except MissingSplitError as error:
            drawn = "" if split == "train" else f", or draw rows from train: data.holdout: {{{split}: 0.05}}"
            raise MissingSplitError(
                f"{source.source}: no split {entry.split!r}, which the recipe uses as its {split} split",
                f"{error.hint}; data.splits: {{{split}: NAME}} takes another{drawn}",
            ) from None
        # evaluation counts every preference alike, and its rows need not have weights
        section = entry.section if split == "train" else unweighted(entry.section)
        return parse_by(choose_schema(rows, section), rows, split, entry)

    def _source(self, entry: Entry) -> OpenSource:
        text: Any = entry.section.source
        if str(text) not in self._open:
            self._open[str(text)] = opened = open_recipe_source(text, self._data)
            for pattern in opened.source.files:
                require_one_split(pattern)
        return self._open[str(text)]


def open_recipe_source(source: str | Sequence[str], data: DataSection) -> OpenSource:
    """Open a SOURCE at one commit, with the recipe's number of demo rows."""
    return open_source(pin_source(parse_source(source)), {str(name): n for name, n in data.demo_groups.items()})


def unweighted(data: DataSection) -> DataSection:
    """A data section that reads no weights of preferences."""
    return data.model_copy(update={"preference_weights": None})


def holdout_shares(data: DataSection) -> dict[str, int | float]:
    """The splits that a recipe holds out if the source lacks them: rows (an integer) or share (a fraction)."""
    shares = {"validation": data.holdout.validation, "test": data.holdout.test}
    return {name: share for name, share in shares.items() if share}
