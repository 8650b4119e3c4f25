"""Files written whole or not at all, and users' files read within bounds."""

import hashlib
import io
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from rmtrain.errors import InputError

TEXT_LIMIT = 64 << 20  # bytes; more than any template, manifest or result needs


def open_regular(path: Path | str, error: type[InputError] = InputError) -> io.BufferedReader:
    """Open a user's file to read its bytes; a device or a pipe, which may never end, is refused without waiting for it.

    Args:
        path: of the file.
        error: what is raised.

    Raises:
        InputError: there is no such file, it can't be read, or it is something else than a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as fault:
        raise error(f"{path}: no such file") from fault
    except (OSError, ValueError) as fault:  # a ValueError for a name that no file can have
        raise error(f"{path}: can't be read: {getattr(fault, 'strerror', None) or fault}") from fault
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise error(f"{path}: can't be read: it is {what}", "name a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path | str, limit: int = TEXT_LIMIT, error: type[InputError] = InputError) -> bytes:
    """All bytes of a user's file.

    Raises:
        InputError: as `open_regular`, or the file has more than `limit` bytes.
    """
    with open_regular(path, error) as stream:
        try:
            data = stream.read(limit + 1)
        except OSError as fault:
            raise error(f"{path}: can't be read: {fault.strerror or fault}") from None
    if len(data) > limit:
        raise error(f"{path}: the file has more than {limit:,} bytes", "is it the right file?")
    return data


def read_text(path: Path | str, limit: int = TEXT_LIMIT, error: type[InputError] = InputError) -> str:
    """All of a user's text file.

    Raises:
        InputError: as `read_bytes`, or the file is not UTF-8.
    """
    data = read_bytes(path, limit, error)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        what = f"byte 0x{data[fault.start]:02x} at offset {fault.start}"
        raise error(f"{path}:{line}: not UTF-8 text ({what})", "save the file as UTF-8") from None


def write_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name, sync it, and rename it into place.

    Raises:
        OSError: the disk is full or the folder can't be written; an older file is untouched.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinity are refused, since JSON has none."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_tree(path: Path) -> None:
    """Make the files of a folder durable, and readable like any other: safetensors' are for their owner alone."""
    for file in path.iterdir():
        file.chmod(path.stat().st_mode & 0o666)
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(path)


def sync_folder(path: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
