"""The rows of a stream as groups to score, chunk by chunk, all of them read by one schema."""

from dataclasses import dataclass

from rmtrain.data.chunks import Chunk, ChunkRows, RowStream
from rmtrain.data.load import Reading, read_all
from rmtrain.data.parse import MAX_MALFORMED
from rmtrain.data.split_data import SplitData
from rmtrain.display import Display


@dataclass(frozen=True)
class SourceReader:
    """The rows of a source, chunk by chunk, and how they are read."""

    stream: RowStream
    reading: Reading

    def read(self, chunk: Chunk) -> tuple[ChunkRows, SplitData]:
        """The rows of a chunk, each a group.

        Raises:
            DataError: a row can't be read.
        """
        rows = self.stream.read(chunk)
        most = MAX_MALFORMED if len(self.stream.chunks) == 1 else 1.0  # of a part, the share says nothing
        return rows, read_all(rows.rows, self.reading, most)

    def check(self, rank: int, processes: int, display: Display) -> None:
        """Read a process's share of the rows, before anything is done with them; raises as `read`."""
        for number in range(rank, len(self.stream.chunks), processes):
            self.read(self.stream.chunks[number])
            display.progress("check rows", number + 1, len(self.stream.chunks))
