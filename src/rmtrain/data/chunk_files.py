"""Reading in chunks: files of lines, Parquet files, and rows in memory."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from rmtrain.data.files import check_file, line_row, open_lines, read_lines
from rmtrain.data.local_files import Shard
from rmtrain.data.parquet import open_parquet, parquet_faults
from rmtrain.data.types import Row

ROWS = 2048  # maximum rows per chunk
BYTES = 1 << 20  # text per chunk, about 250,000 tokens, so that even few rows give work to many processes


class Place(NamedTuple):
    """Where in a file a chunk begins."""

    row: int = 0
    offset: int = 0  # bytes, in a file of lines
    line: int = 1


class Content(NamedTuple):
    """Consecutive rows of a file."""

    rows: list[Row]
    digest: str  # SHA-256 of the rows' part of the file
    lines: list[int] | None = None  # of the first row
    table: Any = None  # the rows in Arrow's types, for a Parquet file


class ChunkFile(Protocol):
    """A file that can be read in chunks from any place."""

    name: str

    def read(self, place: Place) -> tuple[Content, Place]:
        """The next rows (none at the end of the file) and the place after them."""

    def close(self) -> None:
        """Close open handles; the file may be read again."""


class LineFile:
    """A file of lines, such as .jsonl, read from a byte offset."""

    def __init__(self, path: Path, scale: int = 1) -> None:
        check_file(path)
        self.name, self._path, self._scale = str(path), path, scale
        self._file: BinaryIO | None = None

    def read(self, place: Place) -> tuple[Content, Place]:
        """See `ChunkFile`."""
        self._file = self._file or open_lines(self._path)
        if self._file.tell() != place.offset:
            self._file.seek(place.offset)
        digest, size = hashlib.sha256(), 0
        content, line = Content([], "", []), place.line
        for line, raw in read_lines(self._path, self._file, place.line):
            content.rows.append(line_row(self._path, line, raw))
            assert content.lines is not None
            content.lines.append(line)
            digest.update(raw)
            size += len(raw)
            if len(content.rows) == ROWS * self._scale or size >= BYTES * self._scale:
                break
        behind = Place(place.row + len(content.rows), self._file.tell(), line + 1)
        return content._replace(digest=digest.hexdigest()), behind

    def close(self) -> None:
        """See `ChunkFile`."""
        if self._file is not None:
            self._file.close()
            self._file = None


class ParquetFile:
    """A Parquet file, read from a row number."""

    def __init__(self, path: Path, scale: int = 1) -> None:
        check_file(path)
        self.name, self._path, self._scale = str(path), path, scale
        self._next = -1  # the next row of the open batches
        self._batches: Iterator[Any] = iter(())

    def read(self, place: Place) -> tuple[Content, Place]:
        """See `ChunkFile`."""
        import pyarrow as pa

        with parquet_faults(self._path):
            if self._next != place.row:
                self._batches = self._from(place.row)
            batch = next(self._batches, None)
            rows = batch.to_pylist() if batch is not None else []
            table = pa.Table.from_batches([batch]) if batch is not None else None
        self._next = place.row + len(rows)
        return Content(rows, digest_of_rows(rows), table=table), Place(self._next)

    def close(self) -> None:
        """See `ChunkFile`."""
        self._next, self._batches = -1, iter(())

    def _from(self, row: int) -> Iterator[Any]:
        file = open_parquet(self._path)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        size = sum(group.total_byte_size for group in groups) / max(1, file.metadata.num_rows)  # of a row
        most, start = self._scale * max(1, min(ROWS, int(BYTES / max(1, size)))), 0
        for number, group in enumerate(groups):
            if start + group.num_rows > row:
                for batch in file.iter_batches(most, row_groups=[number]):
                    if start >= row:
                        yield batch
                    start += batch.num_rows
            else:
                start += group.num_rows


class HeldRows:
    """Rows in memory."""

    def __init__(self, rows: Sequence[Row], shard: Shard, scale: int) -> None:
        self.name, self._rows, self._lines, self._most = shard.name, rows, shard.lines, scale * ROWS

    def read(self, place: Place) -> tuple[Content, Place]:
        """See `ChunkFile`."""
        part = slice(place.row, place.row + self._most)
        rows = list(self._rows[part])
        lines = list(self._lines[part]) if self._lines is not None else None
        return Content(rows, digest_of_rows(rows), lines), Place(place.row + len(rows))

    def close(self) -> None:
        """Nothing to close."""


def digest_of_rows(rows: Sequence[Row]) -> str:
    """SHA-256 of rows, by their values in Python."""
    return hashlib.sha256(repr(rows).encode("utf-8", "surrogatepass")).hexdigest()
