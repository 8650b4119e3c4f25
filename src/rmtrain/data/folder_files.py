"""The data files that a folder or a pattern names: by split, as `datasets` finds them, with none left out silently."""

import glob
import os
import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from rmtrain.data.files import SUFFIXES, stem_of, suffix_of
from rmtrain.errors import DataError

_WORDS = {  # in names of files, as `datasets` knows them (SPLIT_KEYWORDS and NON_WORDS_CHARS in its data_files.py)
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_BETWEEN = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(?P<name>.*)-\d{5}-of-(?P<shards>\d{5})(-[0-9a-f]+)?")
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json")  # files beside the rows of a hub dataset
_OTHER_DATA = re.compile(  # kinds of rows that rmtrain does not read, packed files, and downloads that are not complete
    r"\.(arrow|feather|ndjson|tsv|xlsx?|(jsonl?|ndjson|[ct]sv|parquet|arrow)(\.gz)?\.(gz|bz2|xz|zst|zip|incomplete|part))$",
    re.IGNORECASE,
)


def is_glob(text: str) -> bool:
    """Whether a SOURCE is a pattern: it has wildcards, and is not the name of a file."""
    return glob.has_magic(text) and not os.path.exists(text)


def expand(path: str) -> list[Path]:
    """The files that a path or a pattern names.

    Raises:
        DataError: no file matches the pattern, or one that does is a link to nothing.
    """
    if not is_glob(path):
        return [Path(path)]
    files = [Path(file) for file in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(file)]
    if not files:
        raise DataError(f"{path}: no file matches this pattern (in {os.getcwd()})", "check the pattern")
    _require_targets(path, files)
    return files


def require_one_split(path: str) -> None:
    """Refuse a pattern whose files are of several splits by their names: training would take them all.

    Raises:
        DataError: names a file of each split.
    """
    files = expand(path) if is_glob(path := os.path.expanduser(path)) else []
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), Path(path).parts))
    below = {file: str(file.relative_to(fixed)) if file.is_relative_to(fixed) else file.name for file in files}
    first = {split: file for file, name in reversed(below.items()) for split in _splits_in(name)}
    if len(first) > 1:
        named = ", ".join(f"{file} ({split})" for split, file in first.items())
        raise DataError(
            f"{path}: the files that match this pattern are of several splits by their names: {named}",
            "name the files of each split in data.source; a list of files is read as it is",
        )


def splits_of_folder(folder: Path) -> dict[str, list[Path]]:
    """The data files of a folder by the split in their names; under the empty name if none names a split.

    Raises:
        DataError: there are none, a shard is missing, or a file with rows would be left out.
    """
    files = _data_files(folder)
    if not files and (folder / "data").is_dir():  # the layout of hub datasets
        files = _data_files(folder / "data")
    _require_targets(folder, files)
    _require_nothing_else(folder, files)
    if not files:
        raise DataError(f"{folder}: no data files in this folder", f"data files end in {', '.join(SUFFIXES)}")
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path), []).append(path)
    if len(splits) > 1 and "" in splits:
        raise DataError(
            f"{folder}: {splits[''][0].name} names no split, but other files do "
            f"({', '.join(name for name in splits if name)})",
            "name the files of each split in data.source, or move this one elsewhere",
        )
    _require_all_shards(folder, files)
    return splits


def _data_files(folder: Path) -> list[Path]:
    paths = [path for path in _shown(folder) if suffix_of(path.name) and path.name not in _NOT_ROWS]
    return [path for path in paths if not path.is_dir()]


def _splits_in(name: str) -> list[str]:
    """The splits of which a file's name has a word, such as `dev` for validation, each once."""
    words = (word for part in Path(name.lower()).parts for word in _BETWEEN.split(part))
    return [*dict.fromkeys(_SPLIT_OF[word] for word in words if word in _SPLIT_OF)]


def _split_of(path: Path) -> str:
    splits = _splits_in(stem_of(path.name))
    if len(splits) > 1:
        raise DataError(
            f"{path}: its name has words of several splits: {', '.join(splits)}",
            "rename it, or name the files of each split in data.source",
        )
    return splits[0] if splits else ""


def _require_targets(source: str | Path, files: Iterable[Path]) -> None:
    """Refuse a link to nothing, whose rows would be missing: a copy without the files, or a cache that was cleaned."""
    if dead := next((path for path in files if path.is_symlink() and not os.path.exists(path)), None):
        raise DataError(
            f"{source}: {dead} is a link to {os.readlink(dead)}, which does not exist",
            "copy or download the file again, or remove the link",
        )


def _require_nothing_else(folder: Path, files: list[Path]) -> None:
    """Refuse a folder where rows in other forms or in folders below it would be left out."""
    read_in = files[0].parent if files else folder
    others = [path.name for path in _shown(read_in) if not suffix_of(path.name) and path.is_file()]
    if other := next(filter(_OTHER_DATA.search, others), None):
        raise DataError(
            f"{read_in}: {other} is of a kind that can't be read, so its rows would be left out",
            f"convert or unpack it (data files end in {', '.join(SUFFIXES)}), or move it elsewhere",
        )
    kinds = {suffix_of(path.name) for path in files} or set(SUFFIXES)
    for below in (path for path in {*_shown(folder), *_shown(read_in)} - {read_in} if path.is_dir()):
        if left := next((path for path in _data_files(below) if suffix_of(path.name) in kinds), None):
            raise DataError(
                f"{folder}: {left} is in a folder below, which is not read",
                f"name the files by a pattern, such as {folder}/**/*{suffix_of(left.name)}, or the folder of each "
                "split, in data.source",
            )


def _shown(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _require_all_shards(folder: Path, files: Iterable[Path]) -> None:
    """Refuse a folder in which some of the shards that their names count are missing."""
    shards: dict[str, list[int]] = {}
    for path in files:
        if match := _SHARD.fullmatch(stem_of(path.name)):
            shards.setdefault(match["name"], []).append(int(match["shards"]))
    for name, totals in shards.items():
        if set(totals) != {len(totals)}:
            raise DataError(
                f"{folder}: only {len(totals)} of {max(totals)} shards of {name} are in the folder",
                "was the download interrupted?",
            )
