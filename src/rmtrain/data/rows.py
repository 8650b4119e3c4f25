"""Rows of a source that are read anew whenever they are asked for, and the few of them that show their columns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, overload

from rmtrain.data.types import Row

_FIRST = 1000  # rows kept as examples for messages, beside those that show the columns


@dataclass(frozen=True, eq=False)
class StoredRows(Sequence[Row]):
    """Rows outside of memory. To read them in order is fast, to read one by its place is not."""

    read: Callable[[], Iterator[Row]]
    length: int

    @classmethod
    def joined(cls, parts: Sequence[Sequence[Row]]) -> "StoredRows":
        """The rows of several files."""
        return cls(lambda: chain.from_iterable(parts), sum(map(len, parts)))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Row]:
        return self.read()

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        chosen = range(self.length)[place]
        if isinstance(chosen, int):
            return next(islice(self, chosen, None))
        return list(islice(self, chosen.start, chosen.stop, chosen.step))


def take(rows: Iterable[Row], places: Iterable[int]) -> Iterator[Row]:
    """The rows at ascending places, read once in order."""
    left, before = iter(rows), 0
    for place in places:
        yield next(islice(left, place - before, None))
        before = place + 1


class Sample:
    """The first rows of a source, and later rows that show something new, which suffice to find the schema.

    New is that a file has a column, or that a column may be null, may be empty, or may have content.
    """

    def __init__(self, files: int) -> None:
        self.rows: list[list[Row]] = [[] for _ in range(files)]
        self._count, self._seen = 0, set[tuple[Any, ...]]()

    def add(self, file: int, row: Row) -> None:
        """Take in the next row, which is that of a file."""
        values = {(name, value is not None, bool(value)) for name, value in row.items()}
        columns = {(file, name) for name in row}
        if self._count < _FIRST or not values <= self._seen:
            self.rows[file].append(row)
        elif not columns <= self._seen:
            self.rows[file].append(dict.fromkeys(row))  # the file has these columns
        self._seen |= values | columns
        self._count += 1
