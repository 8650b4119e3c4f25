"""Strict reading of Parquet files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmtrain.data.types import Row
from rmtrain.errors import DataError, first_line

_BATCH = 1000  # rows in memory at a time


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a file, each with 0 in place of a line number."""
    with parquet_faults(path):
        for batch in open_parquet(path).iter_batches(_BATCH):
            for row in batch.to_pylist():
                yield 0, row


@contextlib.contextmanager
def parquet_faults(path: Path) -> Iterator[None]:
    """Turn errors of Arrow, and values that Python can't represent, into a DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a readable parquet file: {first_line(error)}", "download it again") from None


def open_parquet(path: Path) -> Any:
    """A Parquet file with distinct column names, opened without reading ahead."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    names = file.schema_arrow.names
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two columns have the same name: {', '.join(names)}")
    return file
