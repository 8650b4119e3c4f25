"""Digests of large files, kept between processes while a file's size, times and place on its disk stay the same."""

import contextlib
import hashlib
import time
from pathlib import Path
from typing import NamedTuple

from rmtrain.data.cache_entry import cache_folder
from rmtrain.errors import InputError, WriteError
from rmtrain.files import read_text, write_atomic

LEAST_BYTES = 64 << 20  # smaller files are read in less than a tenth of a second
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a disk: a file younger than this could change again and keep its time


class FileState(NamedTuple):
    """What changes when a file is written, replaced, or put back with an older time."""

    size: int
    modified_ns: int
    changed_ns: int  # when content or attributes changed; no program can set it
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of an existing file."""
        state = path.stat()
        return cls(state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)


def known_digest(path: Path, state: FileState) -> str | None:
    """The SHA-256 of a file in the state in which it was read before; None if that is not known."""
    if state.size < LEAST_BYTES:
        return None
    with contextlib.suppress(InputError, OSError, RuntimeError, ValueError):
        found, digest = read_text(_entry(path)).splitlines()
        if found == repr(state) and len(bytes.fromhex(digest)) == 32:
            return digest
    return None


def keep_digest(path: Path, state: FileState, digest: str) -> None:
    """Keep the SHA-256 of a file that was read in a state, unless it is too young or was written meanwhile."""
    if state.size < LEAST_BYTES:
        return
    with contextlib.suppress(WriteError, OSError, RuntimeError):  # it is read again next time
        if FileState.of(path) != state or time.time_ns() - max(state.modified_ns, state.changed_ns) < _SETTLED_NS:
            return
        entry = _entry(path)
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(entry, f"{state!r}\n{digest}\n")


def _entry(path: Path) -> Path:
    return (
        cache_folder() / "digests" / hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    )
