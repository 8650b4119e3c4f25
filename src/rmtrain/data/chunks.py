"""The rows of a SOURCE in chunks, for files larger than memory: one file or several shards."""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from rmtrain.data.chunk_files import ChunkFile, Content, HeldRows, LineFile, ParquetFile, Place
from rmtrain.data.files import FileState, file_state, suffix_of
from rmtrain.data.local_files import Shard, SplitRows, find_files
from rmtrain.data.rows import Sample
from rmtrain.data.sources import OpenSource, SourceRows, has_changed, parse_source, read_rows
from rmtrain.errors import DataError, RunFailedError

FOR_SEVERAL_MODELS = 32  # factor for larger chunks, if a model is loaded for each chunk
_STREAMED = (".jsonl", ".jsonl.gz", ".parquet")


class Chunk(NamedTuple):
    """The place of a chunk's rows."""

    shard: int  # the number of its file
    place: Place
    rows: int
    digest: str


class ChunkRows(NamedTuple):
    """The rows of a chunk, and their Arrow table if they come from a Parquet file."""

    rows: SourceRows
    table: Any = None


@dataclass
class RowStream:
    """A SOURCE whose rows are read in chunks; of .jsonl, .jsonl.gz and Parquet files, one chunk is in memory at a time.

    Attributes:
        source: a sample of its rows with every column, which suffices to find the schema.
        names: of its files, in their order.
        chunks: all of its rows.
    """

    source: SourceRows
    names: Sequence[str]
    chunks: Sequence[Chunk]
    _files: Sequence[ChunkFile]
    _states: Sequence[FileState]  # of the files, when they were first read
    _whole: SourceRows | None = None  # the rows, if they are in memory
    _last: tuple[Chunk, ChunkRows] | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(chunk.rows for chunk in self.chunks)

    def read(self, chunk: Chunk) -> ChunkRows:
        """The rows of a chunk.

        Raises:
            RunFailedError: the file has changed since the chunks were found.
        """
        if self._last is not None and self._last[0] == chunk:
            return self._last[1]
        if self._last is not None and self._last[0].shard != chunk.shard:
            self.close()
        if (content := self._read_again(chunk)) is None:
            raise RunFailedError(
                f"{self.names[chunk.shard]} has changed since it was read",
                "run the command again: it continues with finished parts that have not changed",
            )
        self._last = chunk, self._rows_of(chunk, content)
        return self._last[1]

    def _read_again(self, chunk: Chunk) -> Content | None:
        """The content of a chunk; None if it differs from what was read before, or can't be read any more."""
        try:
            content, _ = self._files[chunk.shard].read(chunk.place)
        except (DataError, OSError, EOFError, zlib.error):
            return None
        return content if content.digest == chunk.digest else None

    def _rows_of(self, chunk: Chunk, content: Content) -> ChunkRows:
        name = self.names[chunk.shard]
        shard = Shard(name, chunk.rows, content.lines, chunk.place.row)
        about = self.source.description if len(self.names) == 1 else name
        rows = self.source._replace(rows=content.rows, fingerprint=chunk.digest, shards=[shard], description=about)
        return ChunkRows(rows, content.table)

    def close(self) -> None:
        """Close the files; they can be read again."""
        for file in self._files:
            file.close()

    def has_changed(self) -> bool:
        """Whether a file is missing or its rows differ from those of the chunks."""
        if self._whole is not None:
            return has_changed(self._whole)
        try:
            if [file_state(name) for name in self.names] == self._states:
                return False
            self.close()  # the handle of a replaced file would still show the old content
            return [chunk for chunk, _ in _find_chunks(self._files)] != self.chunks
        except (OSError, DataError):
            return True


def open_stream(text: str, scale: int = 1) -> RowStream:
    """Find the chunks of a SOURCE, `scale` times as large as usual, reading all of its rows once.

    Raises:
        DataError: it can't be read, has several splits, or holds no rows; names the first invalid line.
    """
    source = parse_source(text)
    splits = find_files(source.files) if source.kind == "file" else {}
    files = [path for paths in splits.values() for path in paths]
    kinds = {suffix_of(path.name) for path in files}
    if len(splits) != 1 or len(kinds) != 1 or not kinds <= {*_STREAMED}:
        return _stream_of(read_rows(source), scale)
    (split,) = splits
    opened = [
        ParquetFile(path, scale) if suffix_of(path.name) == ".parquet" else LineFile(path, scale) for path in files
    ]
    empty = OpenSource(source, {split or "train": lambda: SplitRows([], "", files=files)}, named=bool(split))
    return _scan(empty.read(), opened, [file_state(path) for path in files])


def _stream_of(rows: SourceRows, scale: int) -> RowStream:
    """Rows in memory as a stream, split at the boundaries of their files."""
    shards = rows.shards or [Shard(rows.description, len(rows.rows), None)]
    starts = [sum(shard.rows for shard in shards[:number]) for number in range(len(shards))]
    parts = [(rows.rows[start : start + shard.rows], shard) for start, shard in zip(starts, shards, strict=True)]
    stream = _scan(rows, [HeldRows(of_shard, shard, scale) for of_shard, shard in parts], [])
    stream._whole = rows
    return stream


def _scan(about: SourceRows, files: Sequence[ChunkFile], states: Sequence[FileState]) -> RowStream:
    chunks: list[Chunk] = []
    sample, last = Sample(len(files)), None
    for chunk, content in _find_chunks(files):
        chunks.append(chunk)
        last = content
        for row in content.rows:
            sample.add(chunk.shard, row)
    for number, file in enumerate(files):
        if not sample.rows[number]:
            raise DataError(f"{file.name}: the file holds no rows", "was the download or the export interrupted?")
    shards = [Shard(file.name, len(rows), None) for file, rows in zip(files, sample.rows, strict=True)]
    source = about._replace(rows=[*chain.from_iterable(sample.rows)], shards=shards)
    stream = RowStream(source, [file.name for file in files], chunks, files, states)
    if len(chunks) == 1 and last is not None:
        stream._last = chunks[0], stream._rows_of(chunks[0], last)
    return stream


def _find_chunks(files: Sequence[ChunkFile]) -> Iterator[tuple[Chunk, Content]]:
    for number, file in enumerate(files):
        with contextlib.closing(file):
            behind = Place()
            content, place = file.read(behind)
            while content.rows:
                yield Chunk(number, behind, len(content.rows), content.digest), content
                behind, (content, place) = place, file.read(place)
