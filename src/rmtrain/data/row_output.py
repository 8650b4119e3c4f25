"""Writing rows: a part for each chunk, joined in order into a file or a folder of shards."""

import gzip
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from rmtrain.data.chunks import ChunkRows, RowStream
from rmtrain.data.files import stem_of, suffix_of
from rmtrain.data.types import Row
from rmtrain.errors import InputError, first_line
from rmtrain.files import replaced, staged_folder, writing

Kind = Literal["lines", "parquet"]
REFUSED = "refused"  # the column with the reason why a row has no rewards


def output_kind(output: Path, stream: RowStream) -> Kind:
    """The output format of a source's rows: JSON lines, or Parquet if the source is Parquet too.

    Raises:
        InputError: Parquet output from another kind of source, or a folder instead of a file or the reverse.
    """
    if output.exists() and output.is_dir() != is_folder(output, stream):
        kind, wanted = (
            ("a folder", "one file") if output.is_dir() else ("a file", "a folder with a file for each input")
        )
        raise InputError(f"{output} is {kind}, and the output is {wanted}", "choose another --output")
    from_parquet, to_parquet = (suffix_of(name) == ".parquet" for name in (stream.names[0], output.name))
    if to_parquet and not from_parquet:
        raise InputError(f"--output {output}: Parquet output needs a Parquet source", "choose a name ending in .jsonl")
    return "parquet" if to_parquet or (from_parquet and is_folder(output, stream)) else "lines"


def is_folder(output: Path, stream: RowStream) -> bool:
    """Whether the output is a folder of shards: for several input files, unless its name is that of a data file."""
    return len(stream.names) > 1 and suffix_of(output.name) is None


def encode_rows(chunk: ChunkRows, columns: Mapping[str, Sequence[Any]], kind: Kind) -> bytes:
    """The rows of a chunk as the bytes of a part, with further columns that have a value for each row.

    Values are JSON for lines, lists of numbers for Parquet, or the texts of `REFUSED`.
    """
    if kind == "parquet":
        return _encode_table(chunk.table, columns)
    names = list(columns)
    return b"".join(
        json_line({**row, **dict(zip(names, values, strict=True))})
        for row, *values in zip(chunk.rows.rows, *columns.values(), strict=True)
    )


def json_line(row: Row) -> bytes:
    """A row as a line of JSON; values that JSON lacks become texts, and NaN and infinity null."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, default=str)
    return f"{text}\n".encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encode_table(table: Any, columns: Mapping[str, Sequence[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, values in columns.items():
        array = pa.array(values, pa.string() if name == REFUSED else pa.list_(pa.float64()))
        place = table.schema.get_field_index(name)
        table = table.append_column(name, array) if place < 0 else table.set_column(place, name, array)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return cast(bytes, sink.getvalue().to_pybytes())


def join_parts(output: Path, stream: RowStream, parts: Sequence[Path], kind: Kind) -> None:
    """Write the output atomically from the parts of all chunks.

    Raises:
        WriteError: the disk is full, or the folder can't be written; an older output is untouched.
    """
    if not is_folder(output, stream):
        with replaced(output) as file:
            _join(file, parts, kind, suffix_of(output.name) == ".jsonl.gz")
        return
    with staged_folder(output, replace=True) as folder:
        for number, name in enumerate(stream.names):
            of_file = [part for chunk, part in zip(stream.chunks, parts, strict=True) if chunk.shard == number]
            own = Path(name).name
            path = folder / (f"{stem_of(own)}.jsonl" if suffix_of(own) in (".csv", ".json") else own)
            with writing(output), open(path, "xb") as file:
                _join(file, of_file, kind, suffix_of(name) == ".jsonl.gz")


def _join(file: BinaryIO, parts: Sequence[Path], kind: Kind, zipped: bool) -> None:
    if kind == "parquet":
        _join_tables(file, parts)
        return
    target = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if zipped else file
    for part in parts:
        with open(part, "rb") as content:
            shutil.copyfileobj(content, cast(BinaryIO, target), 1 << 20)
    if target is not file:
        target.close()


def _join_tables(file: BinaryIO, parts: Sequence[Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pa.unify_schemas([pq.read_schema(part) for part in parts])
    except pa.ArrowException as error:
        message = f"the files' columns do not fit into one Parquet file: {first_line(error)}"
        raise InputError(message, "name a folder as --output, or a .jsonl file") from None
    with pq.ParquetWriter(file, schema) as writer:
        for part in parts:  # a column that a file lacks is null
            writer.write_table(pa.concat_tables([schema.empty_table(), pq.read_table(part)], promote_options="default"))


def part_lines(part: Path) -> Iterator[Any]:
    """The rows of a part of lines."""
    with open(part, "rb") as content:
        yield from map(json.loads, content)
