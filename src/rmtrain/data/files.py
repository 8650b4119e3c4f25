"""Strict readers of local data files: errors name file and line, and nothing is filled in or skipped."""

import contextlib
import csv
import difflib
import gzip
import hashlib
import json
import os
import re
import sys
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from rmtrain.data.parquet import parquet_rows
from rmtrain.data.rows import StoredRows
from rmtrain.data.types import Row
from rmtrain.errors import DataError
from rmtrain.files import open_regular

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
_JSON_CELLS = ("completions", "preferences", "scores")  # CSV columns whose cells hold JSON
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_JSON = "not valid JSON"
_ENCODING = "save the file as UTF-8"
_CELLS = "put cells with a comma, a quotation mark or a line break in quotation marks"
_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_MAGIC = {".parquet": b"PAR1", ".jsonl.gz": b"\x1f\x8b"}


class FileRows(NamedTuple):
    """The rows of one file, split by split."""

    splits: Mapping[str, Sequence[Row]]  # one entry named `train` where the file names no splits
    lines: Sequence[int] | None  # the first line of each row; None for files without lines
    named: bool  # the file itself names its splits
    fingerprint: str  # SHA-256 of the file's bytes, hexadecimal


def suffix_of(name: str) -> str | None:
    """The supported suffix of a file's name, ignoring case; None for any other name."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def stem_of(name: str) -> str:
    """A file's name without its supported suffix."""
    return name[: len(name) - len(suffix_of(name) or "")]


FileState = tuple[int, int, int]  # differs after every change of a file


def file_state(path: str | Path) -> FileState:
    """The present state of a file."""
    state = os.stat(path)
    return state.st_ino, state.st_size, state.st_mtime_ns


def read_file(path: Path) -> FileRows:
    """Read a whole file by the reader that its suffix names. Only the rows of a .json file stay in memory; those of
    other files are read again from the file, one after the other.

    Raises:
        DataError: the file is missing, empty, damaged, or does not match its suffix; names the line, if any.
    """
    suffix = check_file(path)
    before = file_state(path)
    with _reading(path, before), open_regular(path, DataError) as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        if suffix == ".json":
            splits, named = _read_json(path)
            rows = FileRows(splits, None, named, fingerprint)
        else:
            lines = array("q", (line for line, _ in _numbered_rows(path)))
            stored = StoredRows(partial(_rows_again, path, before), len(lines))
            rows = FileRows({"train": stored}, None if suffix == ".parquet" else lines, False, fingerprint)
    for split, of_split in rows.splits.items():
        if not of_split:
            raise DataError(f"{path}: {f'split {split}' if rows.named else 'the file'} holds no rows")
    return rows


def _numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a file, each with its first line, or with 0 where the file has none."""
    suffix = suffix_of(path.name)
    return (parquet_rows if suffix == ".parquet" else _read_csv if suffix == ".csv" else _read_jsonl)(path)


def _rows_again(path: Path, before: FileState) -> Iterator[Row]:
    """The rows of a file in the state in which it was read before."""
    with _reading(path, before):
        for _, row in _numbered_rows(path):
            yield row


@contextlib.contextmanager
def _reading(path: Path, before: FileState) -> Iterator[None]:
    """Refuse a file that can't be read, or that was changed since or meanwhile."""
    try:
        yield
        after = file_state(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    if before != after:
        raise DataError(f"{path}: the file changed while it was read", "run the command again")


def check_file(path: Path) -> str:
    """The suffix of an existing data file whose first bytes match it.

    Raises:
        DataError: it does not.
    """
    suffix = suffix_of(path.name)
    if suffix is None:
        raise DataError(f"{path}: unknown kind of file", f"data files end in {', '.join(SUFFIXES)}")
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file", _nearest(path))
    with open_regular(path, DataError) as file:
        try:
            _check_head(path, suffix, file.read(512))
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    return suffix


def strict_json(text: str) -> Any:
    """Parse JSON, refusing duplicate keys, NaN, Infinity and lone surrogates.

    Raises:
        ValueError: with a reason for the user, and the column where the text is not JSON.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{_NOT_JSON}: {error.msg} (column {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair, which is not valid Unicode") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return row


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _check_head(path: Path, suffix: str, head: bytes) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text:
        raise DataError(f"{path}: the file is empty", "was the download or the export interrupted?")
    if text.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}:1: a Git LFS pointer instead of the data", "fetch the content: git lfs pull")
    if suffix != ".csv" and text[:1] == b"<":
        raise DataError(f"{path}:1: an HTML or XML page instead of the data", "the download failed: repeat it")
    magic = _MAGIC.get(suffix, b"")
    if not head.startswith(magic):
        message = f"{path}: not a {suffix} file: its first bytes are {head[:4]!r}, not {magic!r}"
        raise DataError(message, "rename it to match its content, or download it again")
    if suffix == ".jsonl" and head.startswith(_MAGIC[".jsonl.gz"]):
        raise DataError(f"{path}: gzip data, but the name is that of a text file", "rename it to end in .jsonl.gz")


def _nearest(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist either"
    names = [entry.name for entry in folder.iterdir() if suffix_of(entry.name)]
    near = difflib.get_close_matches(path.name, names, n=3)
    return f"similar names: {', '.join(near)}" if near else ""


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with open_lines(path) as file:
        for number, raw in read_lines(path, file):
            yield number, line_row(path, number, raw)


def open_lines(path: Path) -> BinaryIO:
    """A .jsonl or .jsonl.gz file, opened to read its lines."""
    return cast(BinaryIO, gzip.open(path) if suffix_of(path.name) == ".jsonl.gz" else path.open("rb"))


def read_lines(path: Path, file: BinaryIO, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers, from the current position.

    Raises:
        DataError: the gzip data is damaged.
    """
    number = first - 1
    try:
        while raw := file.readline():
            number += 1
            if raw.strip():
                yield number, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip data is damaged or ends after line {number}: {error}", "download the file again"
        ) from None


def line_row(path: Path, number: int, raw: bytes) -> Row:
    """The row that a line of a .jsonl file holds; raises DataError with its number."""
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line)", _ENCODING) from None
    try:
        row = strict_json(text.strip())
    except ValueError as error:
        hint = "each line must be one row as a JSON object: correct this line"
        if not raw.endswith(b"\n") and str(error).startswith(_NOT_JSON):
            hint = "this is the last line, so the file may be incomplete"
        if b"\r" in raw.strip():
            hint = "the line has carriage returns without line feeds: end each line with a line feed"
        raise DataError(f"{path}:{number}: {error}", hint) from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: a row must be a JSON object, not {_kind(row)}", 'such as {"prompt": …}')
    return row


def _kind(value: object) -> str:
    names = {list: "an array", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "null")


def _read_json(path: Path) -> tuple[dict[str, list[Row]], bool]:
    hint = "a .json file holds an array of objects, or one array for each split; a .jsonl file, an object a line"
    try:
        value = strict_json(path.read_bytes().decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1})", _ENCODING) from None
    except ValueError as error:
        raise DataError(f"{path}: {error}", hint) from None
    named = isinstance(value, dict)
    splits = value if isinstance(value, dict) else {"train": value}
    if not splits:
        raise DataError(f"{path}: the file holds no rows", hint)
    for split, rows in splits.items():
        if not isinstance(rows, list):
            raise DataError(f"{path}: {f'{split!r} is' if named else 'it holds'} {_kind(rows)}, not an array", hint)
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(f"{path}: row {index + 1} of {split} must be an object, not {_kind(row)}", hint)
    return splits, named


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)  # for good: files are read in turns, so none may restore the 128 KiB for the rest
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader)
            if len(header) == 1 and (mark := next((mark for mark in _MARKS if mark in header[0]), None)):
                what = f"{path}:1: its cells are separated by {_MARKS[mark]}"
                raise DataError(what, "save it with commas between the cells")
            twice = {name for name in header if header.count(name) > 1}
            if twice:
                raise DataError(f"{path}:1: column {min(twice)!r} occurs twice in the header", "rename one of the two")
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield line, _csv_row(path, line, header, cells)
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}", _CELLS) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (near line {reader.line_num + 1}): {error.reason}", _ENCODING) from None


def _csv_row(path: Path, line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise DataError(f"{path}:{line}: {len(cells)} cells under a header of {len(header)} columns", _CELLS)
    row: Row = dict(zip(header, cells, strict=True))
    for column in _JSON_CELLS:
        if row.get(column):
            try:
                row[column] = strict_json(row[column])
            except ValueError as error:
                raise DataError(f"{path}:{line}: column {column}: {error}") from None
    return row
