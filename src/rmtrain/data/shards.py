"""The files that a local SOURCE names: one, a list, a glob, a folder of shards, or what `save_to_disk` wrote."""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rmtrain.data.files import SUFFIXES, FileRows, read_file, suffix_of
from rmtrain.data.hub import HubDataset, rows_of
from rmtrain.errors import DataError, first_line
from rmtrain.files import sha256_file

_SPLIT = re.compile(r"(train|validation|test)(-(?P<shard>\d{5})-of-(?P<shards>\d{5})(-[0-9a-f]+)?)?")
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json")  # what datasets of the hub have beside them


class Shard(NamedTuple):
    """One of the files that rows are from."""

    name: str  # for messages
    rows: int
    lines: list[int] | None  # the line that each row begins on


class LocalSplit(NamedTuple):
    """The rows of a split, and the files that they are from."""

    rows: list[dict[str, Any]]
    shards: list[Shard]
    files: list[Path]
    fingerprint: str


class LocalRows(NamedTuple):
    """The rows of files, split by split."""

    splits: Mapping[str, Callable[[], LocalSplit]]  # one called `train` where they have no names
    named: bool


def is_glob(text: str) -> bool:
    """Whether a SOURCE is a pattern: no file has its name."""
    return glob.has_magic(text) and not os.path.exists(text)


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 of a file's bytes; of several, over theirs in order."""
    return _together([sha256_file(path) for path in files])


def _together(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_local(parts: Sequence[str]) -> LocalRows:
    """Read the files that a SOURCE names.

    Args:
        parts: a file, a glob or a folder; or several files and globs.

    Raises:
        DataError: they name no files, or files of several kinds; or the only file can't be read.
    """
    places = [os.path.expanduser(part) for part in parts]
    if len(places) == 1 and os.path.isdir(places[0]):
        folder = Path(places[0])
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            return _saved(folder)
        return _read(_splits_of(folder), parts[0])
    files = [path for place in places for path in _expand(place)]
    if twice := next((path for path in files if files.count(path) > 1), None):
        raise DataError(f"{', '.join(parts)}: {twice} is named twice", "name each file once")
    return _read({"": files}, ", ".join(parts))


def _expand(place: str) -> list[Path]:
    if not is_glob(place):
        return [Path(place)]
    if found := [Path(path) for path in sorted(glob.glob(place, recursive=True)) if os.path.isfile(path)]:
        return found
    raise DataError(f"{place}: no file has such a name (looked for from {os.getcwd()})", "check the pattern")


def _splits_of(folder: Path) -> dict[str, list[Path]]:
    """The data files of a folder by the split that they are named after; under an empty name where none is."""
    files = sorted(path for path in folder.iterdir() if suffix_of(path.name) and path.name[0] != ".")
    files = [path for path in files if path.is_file() and path.name not in _NOT_ROWS]
    if not files and (folder / "data").is_dir():  # as datasets of the hub lie
        return _splits_of(folder / "data")
    if not files:
        raise DataError(f"{folder}: no data files in this folder", f"data files end in {', '.join(SUFFIXES)}")
    splits: dict[str, list[Path]] = {}
    for path in files:
        match = _SPLIT.fullmatch(path.name[: -len(suffix_of(path.name) or "")])
        splits.setdefault(match[1] if match else "", []).append(path)
    if len(splits) > 1 and "" in splits:
        raise DataError(
            f"{folder}: {splits[''][0].name} belongs to no split, as other files do by their names "
            f"({', '.join(name for name in splits if name)})",
            "name the files of each split in data.source, or move this one elsewhere",
        )
    for name, found in splits.items():
        whole = {int(match["shards"]) for path in found if (match := _SPLIT.match(path.name)) and match["shards"]}
        if whole and whole != {len(found)}:
            raise DataError(
                f"{folder}: {len(found)} of {max(whole)} shards of {name} are there", "was the download cut off?"
            )
    return splits


def _read(splits: dict[str, list[Path]], source: str) -> LocalRows:
    kinds = {suffix_of(path.name): path for files in splits.values() for path in files}
    if len(kinds) > 1:
        names = ", ".join(path.name for path in kinds.values())
        raise DataError(f"{source}: files of several kinds: {names}", "name files of one kind, as *.jsonl does")
    files = [path for found in splits.values() for path in found]
    if len(files) == 1 and "" in splits:
        file = read_file(files[0])  # an object of splits has their names within
        read = {name: partial(_joined, files, [file], name) for name in file.splits}
        return LocalRows(read, file.named)
    return LocalRows({name or "train": partial(_joined, found) for name, found in splits.items()}, "" not in splits)


def _joined(files: list[Path], read: Sequence[FileRows] = (), split: str = "train") -> LocalSplit:
    read = read or [read_file(path) for path in files]
    if own := next((path for path, file in zip(files, read, strict=True) if file.named and len(files) > 1), None):
        raise DataError(f"{own}: it names splits of its own, and is one of several files", "name it alone")
    rows = [row for file in read for row in file.splits[split]]
    shards = [Shard(str(path), len(file.splits[split]), file.lines) for path, file in zip(files, read, strict=True)]
    return LocalSplit(rows, shards, files, _together([file.fingerprint for file in read]))


def _saved(folder: Path) -> LocalRows:
    """What `datasets` wrote by `save_to_disk`: a dataset, or several by the names of their splits."""
    from datasets import load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:
        reason = first_line(error)
        raise DataError(f"{folder}: can't be read as what save_to_disk wrote: {reason}", "save it again") from error
    if not isinstance(loaded, dict):
        return LocalRows({"train": partial(_saved_split, folder, loaded)}, False)
    return LocalRows({name: partial(_saved_split, folder / name, table) for name, table in loaded.items()}, True)


def _saved_split(folder: Path, table: Any) -> LocalSplit:
    rows, _ = rows_of(HubDataset(str(folder), "", {"": table}), "")
    if not rows:
        raise DataError(f"{folder}: the dataset holds no rows")
    files = sorted(folder.glob("*.arrow"))
    return LocalSplit(rows, [Shard(str(folder), len(rows), None)], files, fingerprint(files))
