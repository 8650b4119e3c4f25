"""Finished parts of an output, in a folder beside it: shared by processes, and kept if the command is interrupted."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rmtrain.data.token_notes import TokenNote, merge_notes
from rmtrain.display import Display
from rmtrain.files import write_atomic, writing

_CLAIMS = "claims"
_HELD = (errno.EACCES, errno.EAGAIN)


class Tally(NamedTuple):
    """Counts and notes on scored rows."""

    rows: int = 0
    truncated: int = 0
    notes: Sequence[TokenNote] = ()

    def __add__(self, other: "Tally") -> "Tally":  # type: ignore[override]
        notes = merge_notes([*self.notes, *other.notes])
        return Tally(self.rows + other.rows, self.truncated + other.truncated, notes)


class Parts:
    """The parts of an output, which are joined into its file or folder at the end.

    A part's name identifies the rows and the scorer, so that only the same scoring continues from it.
    """

    def __init__(self, output: Path, display: Display) -> None:
        self.folder = output.with_name(f".{output.name}.parts")
        self._display = display

    def rows(self, name: str) -> Path:
        """The file of a part's rows."""
        return self.folder / f"{name}.rows"

    def batches(self, name: str) -> Path:
        """The beginning of the paths of the files that keep a part's finished batches until it is finished."""
        return self.folder / f"{name}.batches"

    def tally(self, name: str) -> Tally | None:
        """Counts and notes on a part; None unless it is finished."""
        try:
            rows, truncated, notes = json.loads((self.folder / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        return Tally(rows, truncated, [TokenNote(*note) for note in notes])

    def is_finished(self, name: str) -> bool:
        """Whether a part is finished."""
        return (self.folder / f"{name}.json").exists()

    def finished(self) -> set[str]:
        """The names of all finished parts."""
        return {name.removesuffix(".json") for name in os.listdir(self.folder) if name.endswith(".json")}

    def finish(self, name: str, rows: bytes, tally: Tally) -> None:
        """Write a part.

        Raises:
            WriteError: the disk is full, or the folder can't be written.
        """
        write_atomic(self.rows(name), rows)
        write_atomic(self.folder / f"{name}.json", json.dumps(tally))
        for path in self.folder.glob(f"{self.batches(name).name}*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder; if the block fails, say which parts are kept in it."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            if os.environ.get("RANK", "0") == "0":  # the process group may not exist yet
                kept = [path for path in self.folder.iterdir() if path.name != _CLAIMS and path.stat().st_size]
                if kept:
                    self._display.note(f"finished parts are kept in {self.folder}; run the same command to continue")
                else:
                    self.remove()
            raise

    def remove(self) -> None:
        """Remove the folder with all parts, including those of other rows and models.

        It is renamed first, so that a late process can't write into a folder that is being removed.
        """
        removed = self.folder.with_name(f".{secrets.token_hex(8)}.removed")
        with contextlib.suppress(OSError):
            self.folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    @contextlib.contextmanager
    def claims(self) -> Iterator["Claims"]:
        """The file by which processes claim parts."""
        with writing(self.folder):
            descriptor = os.open(self.folder / _CLAIMS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield Claims(descriptor)
        finally:
            os.close(descriptor)


class Claims:
    """Claims of parts by processes: locks on bytes of a file, which the system releases when a process ends.

    On a file system without locks every claim succeeds: two processes may then make the same part, with the same
    content.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @contextlib.contextmanager
    def of(self, number: int) -> Iterator[bool]:
        """Claim a part for the block; False if another process has it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno in _HELD:
                yield False
                return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number)
