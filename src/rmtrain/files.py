"""Files written whole or not at all."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any


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
