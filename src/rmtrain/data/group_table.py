"""Where groups are kept: as rows of an Arrow file, written part by part and read on demand; or in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.types import Conversation, Message, Preference, PreferenceGroup

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
            return GroupTable(self.table.select(chosen), f"{self.name} {chosen}")
        return _groups_in(self._arrow(chosen, chosen + 1))[0]

    def __iter__(self) -> Iterator[PreferenceGroup]:
        for start in range(0, len(self), ROWS):
            yield from _groups_in(self._arrow(start, start + ROWS))

    def take(self, places: NDArray[np.int64]) -> Iterator[PreferenceGroup]:
        """The groups at ascending places."""
        borders = np.searchsorted(places, range(0, len(self) + ROWS, ROWS))
        for part, (begin, end) in enumerate(pairwise(borders.tolist())):
            if begin < end:  # gathering rows from a part is much faster than from the whole table
                own = places[begin:end] - part * ROWS
                yield from _groups_in(self._arrow(part * ROWS, part * ROWS + int(own[-1]) + 1).take(own))

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
        """Take in groups one by one, under a name of their own.

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

    left, empty = iter(groups), _columns_of([])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, empty.schema) as stream:
        stream.write(empty)  # datasets can't open a table without any part
        while part := list(islice(left, ROWS)):
            stream.write(_columns_of(part))


def _columns_of(placed: Sequence[PlacedGroup]) -> Any:
    import pyarrow as pa

    groups = [group for _, group in placed]
    preferences = [preference for group in groups for preference in group.preferences]
    columns = {
        "id": pa.array([group.id for group in groups], pa.string()),
        "row": pa.array([row for row, _ in placed], pa.int64()),
        "source": pa.array([group.source for group in groups], pa.string()),
        "prompt": _conversations([group.prompt for group in groups]),
        "completions": _lists(
            [len(group.completions) for group in groups],
            _conversations([completion for group in groups for completion in group.completions]),
        ),
        "preferences": _lists(
            [len(group.preferences) for group in groups],
            _structs(Preference._fields, [pa.int32()] * 2 + [pa.float64()] * 3, preferences),
        ),
        "scores": pa.array([group.scores for group in groups], pa.list_(pa.float64())),
        "arguments": pa.array([group.arguments for group in groups], pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _conversations(conversations: Sequence[Conversation]) -> Any:
    import pyarrow as pa

    messages = list(chain.from_iterable(conversations))
    return _lists(list(map(len, conversations)), _structs(Message._fields, [pa.string()] * 3, messages))


def _structs(names: Sequence[str], types: Sequence[Any], values: Sequence[tuple[Any, ...]]) -> Any:
    import pyarrow as pa

    columns = zip(*values, strict=True) if values else [()] * len(names)
    return pa.StructArray.from_arrays([pa.array(c, kind) for c, kind in zip(columns, types, strict=True)], [*names])


def _lists(lengths: Sequence[int], values: Any) -> Any:
    import pyarrow as pa

    return pa.ListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int32), values)


def _groups_in(table: Any) -> list[PreferenceGroup]:
    column = {name: table[name].combine_chunks() for name in table.column_names}
    completions, preferences = column["completions"], column["preferences"]
    scores = ((None if own is None else tuple(own)) for own in column["scores"].to_pylist())
    return [
        PreferenceGroup(*values)
        for values in zip(
            column["id"].to_pylist(),
            _conversations_in(column["prompt"]),
            _cut(_conversations_in(completions.flatten()), completions),
            _cut(_values_in(Preference, preferences.flatten()), preferences),
            column["source"].to_pylist(),
            scores,
            column["arguments"].to_pylist(),
            strict=True,
        )
    ]


def _conversations_in(lists: Any) -> list[Conversation]:
    return _cut(_values_in(Message, lists.flatten()), lists)


def _values_in(kind: type[Value], structs: Any) -> Iterable[Value]:
    return map(kind, *(column.to_pylist() for column in structs.flatten()))


def _cut(values: Iterable[Value], lists: Any) -> list[tuple[Value, ...]]:
    """The values of all lists, list by list."""
    left = iter(values)
    return [tuple(islice(left, length)) for length in lists.value_lengths().to_pylist()]
