"""Where groups are kept: as rows of an Arrow file, written part by part and read on demand; or in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.types import Message, Preference, PreferenceGroup

Value = TypeVar("Value")

ROWS = 1000  # rows in memory at a time when a table is written or read


class PlacedGroup(NamedTuple):
    """A group, and the number of its source row."""

    row: int
    group: PreferenceGroup


class HeldGroups(list[PreferenceGroup]):
    """Groups in memory."""

    @classmethod
    def of(cls, groups: Iterable[PlacedGroup]) -> "HeldGroups":
        """Hold groups without the numbers of their rows."""
        return cls(group for _, group in groups)

    def take(self, places: NDArray[np.int64]) -> Iterator[PreferenceGroup]:
        """The groups at ascending places."""
        return map(self.__getitem__, places.tolist())


@dataclass(frozen=True)
class GroupTable(Sequence[PreferenceGroup]):
    """The groups of a file that `write_groups` wrote, which is mapped into memory."""

    table: Any = field(compare=False, repr=False)  # datasets.Dataset
    name: str  # unique to these groups: a digest of their origin, and the selection

    @classmethod
    def open(cls, path: Path, name: str) -> "GroupTable":
        """All groups of a file."""
        from datasets import Dataset

        return cls(Dataset.from_file(str(path)), name)

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> PreferenceGroup: ...
    @overload
    def __getitem__(self, place: slice) -> "GroupTable": ...
    def __getitem__(self, place: int | slice) -> "PreferenceGroup | GroupTable":
        chosen = range(len(self))[place]
        if isinstance(chosen, range):
            rows = chosen or range(0)  # datasets refuses an empty range at the end
            return GroupTable(self.table.select(rows), f"{self.name} {chosen}")
        return _groups_in(self._arrow(chosen, chosen + 1))[0]

    def __iter__(self) -> Iterator[PreferenceGroup]:
        for start in range(0, len(self), ROWS):
            yield from _groups_in(self._arrow(start, start + ROWS))

    def take(self, places: NDArray[np.int64]) -> Iterator[PreferenceGroup]:
        """The groups at ascending places."""
        borders = np.searchsorted(places, range(0, len(self) + ROWS, ROWS))
        for part, (begin, end) in enumerate(pairwise(borders.tolist())):
            if begin < end:  # gathering rows from a part is much faster than from the whole table
                within = places[begin:end] - part * ROWS
                yield from _groups_in(self._arrow(part * ROWS, part * ROWS + int(within[-1]) + 1).take(within))

    def column(self, name: str) -> Any:
        """A column as one Arrow array."""
        return self._arrow(0, len(self))[name].combine_chunks()

    def _arrow(self, start: int, end: int) -> Any:
        return self.table.with_format("arrow")[start:end]


Groups = GroupTable | HeldGroups


@dataclass(frozen=True)
class GroupStore:
    """Where groups are kept: a folder of tables, or else memory."""

    folder: Path | None = None

    def keep(self, name: str, groups: Iterable[PlacedGroup]) -> Groups:
        """Store groups one by one, under a name.

        Raises:
            UnicodeEncodeError: as `write_groups`.
        """
        if self.folder is None:
            return HeldGroups.of(groups)
        write_groups(self.folder / f"{name}.arrow", groups)
        return GroupTable.open(self.folder / f"{name}.arrow", name)


IN_MEMORY = GroupStore()


def write_groups(path: Path, groups: Iterable[PlacedGroup]) -> None:
    """Write groups and their rows.

    Raises:
        UnicodeEncodeError: a text holds half of a surrogate pair, which Arrow can't store.
    """
    import pyarrow as pa

    left, schema = iter(groups), _schema()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write(pa.RecordBatch.from_pylist([], schema))  # datasets can't open a table without any part
        while part := list(islice(left, ROWS)):
            rows = [{"row": row, **group._asdict()} for row, group in part]
            stream.write(pa.RecordBatch.from_pylist(rows, schema))


def _schema() -> Any:
    """A column for the number of the row, and one for each field of a group; Arrow takes named tuples as structs."""
    import pyarrow as pa

    conversation = pa.list_(pa.struct([(name, pa.string()) for name in Message._fields]))
    types = dict.fromkeys(("better", "worse"), pa.int32()) | dict.fromkeys(
        ("gap", "probability", "weight"), pa.float64()
    )
    return pa.schema(
        {
            "row": pa.int64(),
            "id": pa.string(),
            "prompt": conversation,
            "completions": pa.list_(conversation),
            "preferences": pa.list_(pa.struct([(name, types[name]) for name in Preference._fields])),
            "source": pa.string(),
            "scores": pa.list_(pa.float64()),
            "arguments": pa.string(),
        }
    )


def _groups_in(table: Any) -> list[PreferenceGroup]:
    column = {name: table[name].combine_chunks() for name in table.column_names}
    scores = (None if scores is None else tuple(scores) for scores in column["scores"].to_pylist())
    return [
        PreferenceGroup(*values)
        for values in zip(
            column["id"].to_pylist(),
            _tuples_of(Message, column["prompt"]),
            _cut(_tuples_of(Message, column["completions"].flatten()), column["completions"]),
            _tuples_of(Preference, column["preferences"]),
            column["source"].to_pylist(),
            scores,
            column["arguments"].to_pylist(),
            strict=True,
        )
    ]


def _tuples_of(kind: type[Value], lists: Any) -> list[tuple[Value, ...]]:
    """The structs of all lists as values of a kind, list by list."""
    return _cut(map(kind, *(column.to_pylist() for column in lists.flatten().flatten())), lists)


def _cut(values: Iterable[Value], lists: Any) -> list[tuple[Value, ...]]:
    """The values of all lists, list by list."""
    left = iter(values)
    return [tuple(islice(left, length)) for length in lists.value_lengths().to_pylist()]
