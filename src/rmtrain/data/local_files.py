"""Local SOURCE → rows, split by split: a file, a list, a glob, a folder of shards, or a folder of `save_to_disk`."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rmtrain.data.files import FileRows, read_file, suffix_of
from rmtrain.data.folder_files import expand, splits_of_folder
from rmtrain.data.hub import rows_of
from rmtrain.data.rows import StoredRows
from rmtrain.data.types import Row
from rmtrain.errors import DataError, first_line
from rmtrain.files import sha256_file


class Shard(NamedTuple):
    """One of the files that rows come from."""

    name: str  # for messages
    rows: int
    lines: Sequence[int] | None  # the first line of each row
    first: int = 0  # numbers of the file's rows, if these are only a part


class SplitRows(NamedTuple):
    """The rows of a split, the SHA-256 of their content, and their files."""

    rows: Sequence[Row]
    fingerprint: str
    shards: Sequence[Shard] = ()
    files: Sequence[Path] = ()


# the splits of a SOURCE, each read when it is called; and whether the files name them: otherwise it has only `train`
LocalSource = tuple[Mapping[str, Callable[[], SplitRows]], bool]


def fingerprint_files(files: Sequence[Path]) -> str:
    """SHA-256 of a file's bytes; for several files, of their digests in order."""
    return _combined([sha256_file(path) for path in files])


def _combined(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def open_local(names: Sequence[str]) -> LocalSource:
    """Find the files that a SOURCE names: a file, a glob or a folder; or several files and globs.

    Raises:
        DataError: there are no such files, they are of several kinds, or the only file can't be read.
    """
    files = find_files(names)
    return _open_files(files, ", ".join(names)) if files else _open_saved(Path(os.path.expanduser(names[0])))


def find_files(names: Sequence[str]) -> dict[str, list[Path]]:
    """The files of a SOURCE by split; under the empty name if no file names a split.

    None for a folder that `save_to_disk` wrote. Raises as `open_local`.
    """
    paths = [os.path.expanduser(name) for name in names]
    if len(paths) == 1 and os.path.isdir(paths[0]):
        folder = Path(paths[0])
        saved = (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()
        splits = {} if saved else splits_of_folder(folder)
    else:
        splits = {"": [file for path in paths for file in expand(path)]}
    _require_once(", ".join(names), [file for files in splits.values() for file in files])
    return splits


def _require_once(source: str, files: Sequence[Path]) -> None:
    """Refuse a file whose rows would be read twice: it is named twice, or by a link, of its own or of a folder."""
    first: dict[str, Path] = {}
    for file in files:
        other = first.get(place := os.path.realpath(file))
        if other is not None:
            what = f"{file} is named twice" if other == file else f"{other} and {file} are the same file"
            raise DataError(f"{source}: {what}", "name each file once")
        first[place] = file


def _open_files(splits: dict[str, list[Path]], source: str) -> LocalSource:
    kinds = {suffix_of(path.name): path for files in splits.values() for path in files}
    if len(kinds) > 1:
        names = ", ".join(path.name for path in kinds.values())
        raise DataError(f"{source}: files of several kinds: {names}", "name files of one kind, such as *.jsonl")
    files = [path for shards in splits.values() for path in shards]
    if len(files) == 1 and "" in splits:  # read now, since a .json file may name splits inside
        file = read_file(files[0])
        return {name: partial(_join, files, [file], name) for name in file.splits}, file.named
    return {name or "train": partial(_join, shards) for name, shards in splits.items()}, "" not in splits


def _join(files: list[Path], contents: Sequence[FileRows] = (), split: str = "train") -> SplitRows:
    contents = contents or [read_file(path) for path in files]
    named = [path for path, file in zip(files, contents, strict=True) if file.named]
    if len(files) > 1 and named:
        raise DataError(
            f"{named[0]}: this file names its own splits, so it can't be one of several files", "give only this file"
        )
    parts = [file.splits[split] for file in contents]
    rows = parts[0] if len(parts) == 1 else StoredRows.joined(parts)
    shards = [Shard(str(path), len(file.splits[split]), file.lines) for path, file in zip(files, contents, strict=True)]
    return SplitRows(rows, _combined([file.fingerprint for file in contents]), shards, files)


def _open_saved(folder: Path) -> LocalSource:
    """A folder that `save_to_disk` wrote: one dataset, or several under the names of their splits."""
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{folder}: not a readable save_to_disk folder: {first_line(error)}", "save it again"
        ) from error
    if not isinstance(loaded, dict):
        return {"train": partial(_read_saved, folder, loaded)}, False
    return {name: partial(_read_saved, folder / name, table) for name, table in loaded.items()}, True


def _read_saved(folder: Path, table: Any) -> SplitRows:
    rows = rows_of(table, str(folder))
    if not rows:
        raise DataError(f"{folder}: the dataset holds no rows")
    files = sorted(folder.glob("*.arrow"))
    return SplitRows(rows, fingerprint_files(files), [Shard(str(folder), len(rows), None)], files)
