"""Atomic writes, bounded reads of users' files, and lock files."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import resource
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rmtrain.errors import InputError, RmtrainError, WriteError

TEXT_LIMIT = 64 << 20  # bytes; more than any template, manifest or result needs
_FULL = (errno.ENOSPC, errno.EDQUOT)


def open_regular(path: Path | str, error: type[InputError] = InputError) -> io.BufferedReader:
    """Open a user's file for reading; refuses devices and pipes, which may never end, without waiting.

    Raises:
        InputError: the file does not exist, can't be read, or is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as fault:
        raise error(f"{path}: no such file") from fault
    except (OSError, ValueError) as fault:  # ValueError: an impossible file name
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
        raise error(f"{path}: the file has more than {limit:,} bytes", "check that this is the right file")
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


def require_regular(folder: Path, error: type[InputError] = InputError) -> None:
    """Refuse a model folder with a device or a pipe, which libraries would wait for.

    Raises:
        InputError: it has one.
    """
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise error(f"{path}: can't be read: it is a device or a pipe", "put a regular file there")


def why_unwritten(error: BaseException, place: Path, needed: int | None = None) -> tuple[str, str] | None:
    """Why a file of so many bytes could not be written, and a hint; None for errors that have another cause."""
    number = _error_number(error)
    if number is None:
        return None
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    if number == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        size = f"; it takes {_size(needed)}" if needed is not None else ""
        return f"files may not be larger than {_size(limit)} here (ulimit -f){size}", "set `ulimit -f unlimited`"
    if number in _FULL:
        room = [
            *([f"{_size(needed)} needed"] if needed is not None else []),
            f"{_size(shutil.disk_usage(place).free)} free",
        ]
        quota = " by its quota" if number == errno.EDQUOT else ""
        return f"the disk is full{quota}: {', '.join(room)}", "free some space, or choose another folder"
    return f"{os.strerror(number)}", f"make {place} writable, or choose another folder"


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    if match := re.search(r"os error (\d+)", text):  # the error is from safetensors
        return int(match[1])
    if isinstance(error, RuntimeError) and re.search("unexpected pos|PytorchStreamWriter", text):  # from torch.save
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        return errno.EFBIG if limited else errno.ENOSPC
    return None


def _size(count: int) -> str:
    unit = next((unit for unit in (30, 20, 10) if count >= 1 << unit), 0)
    return f"{count / (1 << unit):,.{1 if unit else 0}f} {({30: 'GiB', 20: 'MiB', 10: 'KiB'}).get(unit, 'bytes')}"


@contextlib.contextmanager
def writing(path: Path, needed: int | None = None, left: str = "") -> Iterator[None]:
    """Turn system errors into errors that name the file being written.

    `needed` is its size in bytes, if known; `left` is a sentence on files that were written before.

    Raises:
        WriteError: the file can't be written.
    """
    try:
        yield
    except RmtrainError:
        raise
    except Exception as error:
        why = why_unwritten(error, path, needed)
        if why is None:
            raise
        raise WriteError(f"{path} can't be written: {why[0]}", "; ".join(filter(None, [why[1], left]))) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it into place.

    Raises:
        WriteError: the disk is full or the folder can't be written; an older file is untouched.
    """
    content = content.encode() if isinstance(content, str) else content
    with replaced(path, len(content)) as stream:
        stream.write(content)


@contextlib.contextmanager
def replaced(path: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A temporary file to write into, which is synced and gets the name `path` at the end of the block.

    Raises:
        WriteError: as `write_atomic`.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # the file's own name may have the maximum length
    with writing(path, needed):
        try:
            with open(temporary, "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinity raise a ValueError, since JSON lacks them."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, text.encode("utf-8", "backslashreplace").decode())  # a path need not be UTF-8


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_tree(path: Path) -> None:
    """Make the files of a folder durable, with the folder's permissions: safetensors makes them private."""
    for file in path.iterdir():
        if file.is_dir():
            continue
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


@contextlib.contextmanager
def staged_folder(folder: Path, left: str = "", replace: bool = False, durable: bool = True) -> Iterator[Path]:
    """A hidden folder beside `folder`, renamed to `folder` at the end of the block; after an error nothing is left.

    Only with `replace` may an existing folder hold files. A durable one has its files on disk before it appears.

    Raises:
        WriteError: as `writing`.
    """
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    with writing(folder, left=left), contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        staging.mkdir()
        yield staging
        if durable:
            sync_tree(staging)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
        if durable:
            sync_folder(folder.parent)


@contextlib.contextmanager
def held(lock: Path, what: Path, *, remove: bool = False, write: bool = True) -> Iterator[None]:
    """Hold a lock file for this process; the lock ends with the process.

    Args:
        what: the path to name in errors.
        remove: delete the file at the end.
        write: create a missing file and write this process into it; False writes nothing.

    Raises:
        InputError: another process holds it, or it can't be created.
    """
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | (os.O_CREAT if write else 0), 0o666)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                if write:
                    raise InputError(f"{lock.parent}: no such folder", "make it, or choose another folder") from error
                yield
                return
            hint = f"make {lock.parent} writable, or choose another folder"
            raise InputError(f"{what} can't be written: {error.strerror}", hint) from error
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
                raise InputError(f"{what} is in use by {holder}", "wait for it, or stop it") from None
            if not lock.exists() or not os.path.samestat(os.fstat(descriptor), lock.stat()):
                continue  # the holder has just deleted the file
            if remove:
                stack.callback(lock.unlink, missing_ok=True)
            if write:
                with contextlib.suppress(OSError):  # a full disk: the message to others lacks the holder
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
            return
