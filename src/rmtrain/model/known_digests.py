"""SHA-256 of files. That of a large file is kept between processes while its size, times and place stay the same."""

import contextlib
import functools
import hashlib
import time
from pathlib import Path
from typing import NamedTuple

from rmtrain.data.cache_entry import cache_folder
from rmtrain.errors import InputError, WriteError
from rmtrain.files import read_text, sha256_file, write_atomic

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


def digest_of(path: Path) -> str:
    """SHA-256 of a file. A large file is read again only if its state changes, a small one once a process."""
    return _digest_in(path, FileState.of(path))


@functools.cache
def _digest_in(path: Path, state: FileState) -> str:
    """The digest of a file in this state, from the cache where it is known."""
    if state.size < LEAST_BYTES:
        return sha256_file(path)
    with contextlib.suppress(InputError, OSError, RuntimeError, ValueError):
        known_state, digest = read_text(_entry(path)).splitlines()
        if known_state == repr(state) and len(bytes.fromhex(digest)) == 32:
            return digest
    digest = sha256_file(path)
    with contextlib.suppress(WriteError, OSError, RuntimeError):  # it is read again next time
        settled = time.time_ns() - max(state.modified_ns, state.changed_ns) >= _SETTLED_NS
        if settled and FileState.of(path) == state:  # it was not written meanwhile
            entry = _entry(path)
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(entry, f"{state!r}\n{digest}\n")
    return digest


def _entry(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / "digests" / name
