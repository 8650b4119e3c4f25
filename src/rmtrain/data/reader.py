"""The rows of a stream as groups to score, chunk by chunk, all with the same schema."""

from dataclasses import dataclass

from rmtrain.data.chunks import Chunk, ChunkRows, RowStream
from rmtrain.data.load import Reading, read_all
from rmtrain.data.parse import MAX_MALFORMED
from rmtrain.data.split_data import SplitData
from rmtrain.display import Display


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
