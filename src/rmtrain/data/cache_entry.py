"""Entries of the cache: folders written once for all processes, atomically, and verified when they are opened."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rmtrain.errors import RunFailedError
from rmtrain.files import staged_folder, writing

CHECKSUMS = "checksums"  # the checksum file of an entry
_ELSEWHERE = "RMTRAIN_CACHE can name another place"

Content = TypeVar("Content")


def cache_folder() -> Path:
    """Where curated and tokenised splits are kept: $RMTRAIN_CACHE, or rmtrain/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RMTRAIN_CACHE") or Path(base) / "rmtrain")


def cached(
    folder: Path,
    what: str,
    write: Callable[[Path], None],
    read: Callable[[Path], Content],
    notify: Callable[[str], None],
) -> Content:
    """The content of an entry, which is made if it is missing or if any of its bytes has changed.

    The first of several processes does the work; the others wait for a file lock, without a time limit.

    Args:
        write: writes the files of the entry into an empty folder.
        read: reads the content from the files. It may raise OSError and ValueError if they are damaged.
        notify: receives one line for the user if a damaged entry is made again.

    Raises:
        WriteError: the entry can't be written.
    """
    from filelock import FileLock

    with writing(folder.parent, left=_ELSEWHERE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if (content := opened(folder, read)) is not None:
                return content
            if folder.exists():
                notify(f"the {what} in {folder} are damaged, so they are made again")
            # this process holds the lock, so an existing folder is damaged
            with staged_folder(folder, left=_ELSEWHERE, replace=True, durable=False) as staging:
                write(staging)
                (staging / CHECKSUMS).write_bytes(checksums(staging))
            if (content := opened(folder, read)) is not None:
                return content
    raise RunFailedError(f"{folder}: the {what} just written can't be read", "the disk may be damaged")


def opened(folder: Path, read: Callable[[Path], Content]) -> Content | None:
    """The content of an entry; None if it is missing or if any of its bytes has changed.

    Checked before Arrow maps a table into memory, since a damaged table can crash the process.
    """
    try:
        return read(folder) if (folder / CHECKSUMS).read_bytes() == checksums(folder) else None
    except (OSError, ValueError):  # pyarrow's errors are among these
        return None


def checksums(folder: Path) -> bytes:
    """CRC-32, size and name of each file of an entry: fast, and it detects every flipped bit."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != CHECKSUMS:
            value = size = 0
            with open(path, "rb") as stream:
                while piece := stream.read(1 << 20):
                    value, size = zlib.crc32(piece, value), size + len(piece)
            lines.append(f"{value:08x} {size} {path.name}\n")
    return "".join(lines).encode()
