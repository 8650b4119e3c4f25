"""Finished batches on disk, so that an interrupted scoring continues where it stopped."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rmtrain.display import Display
from rmtrain.files import writing
from rmtrain.model.devices import process_state, require_agreement, value_of_main

Key = TypeVar("Key")
Value = TypeVar("Value")


class OnePartial:
    """The files of finished batches of a process that scores alone, one for each scorer; `file` starts their names."""

    alone = True

    def __init__(self, file: Path) -> None:
        self._file = file

    def path(self, what: str, tokens: str, scorer: str) -> Path:
        """The file of a scorer, by its fingerprint."""
        return self._file.with_name(f"{self._file.name}-{scorer[:16]}")


class Partials:
    """The files of finished batches beside a rows file. Scorers name their files; the caller removes them."""

    alone = False

    def __init__(self, rows: Path, display: Display) -> None:
        self._rows, self._display, self._names = rows, display, list[str]()

    def path(self, what: str, tokens: str, scorer: str) -> Path:
        """A file name that identifies the rows and the scorer, so that only the same scoring continues from the file.

        `what` names the groups, `tokens` is the digest of what is scored, `scorer` the scorer's fingerprint.

        Raises:
            RunFailedError: the processes have read different rows or weights.
        """
        require_agreement(f"{tokens} {scorer}", f"rows or weights for {what}")
        path = self._rows.with_name(f".{self._rows.name}-{tokens[:16]}-{scorer[:16]}.partial")
        self._names.append(path.name)
        return path

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """If scoring ends early, report the files from which it can continue, and remove empty ones."""
        try:
            yield
        except BaseException:
            if process_state().is_main_process:
                for path in self._files():
                    if path.stat().st_size:
                        self._display.note(f"finished batches are kept in {path}; run the same command to continue")
                    else:
                        path.unlink()
            raise

    def remove(self) -> None:
        """Remove the files that scorers have named."""
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        """All files whose names start with one that a scorer asked for: a policy and its reference have one each."""
        names = tuple(self._names)
        return [path for path in self._rows.parent.iterdir() if names and path.name.startswith(names)]


def read_partial(
    path: Path | None, parse: Callable[[Any], dict[Key, Value] | None], alone: bool = False
) -> dict[Key, Value]:
    """Results of an interrupted scoring, on every process. A damaged line and all lines after it are removed.

    The JSON lines are those that the main process sees; no path, or a missing file, holds no results. `parse` turns a
    line's value into results, and rejects a line by None, ValueError or TypeError.
    """
    done = _read(path, parse) if path is not None and (alone or process_state().is_main_process) else {}
    return done if alone else value_of_main(done)


def _read(path: Path, parse: Callable[[Any], dict[Key, Value] | None]) -> dict[Key, Value]:
    done: dict[Key, Value] = {}
    if not path.exists():
        return done
    whole = 0
    with open(path, "rb") as stream:
        for line in stream:
            try:
                results = parse(json.loads(line)) if line.endswith(b"\n") else None
            except (ValueError, TypeError):
                break
            if not results:
                break
            done |= results
            whole += len(line)
    os.truncate(path, whole)
    return done


def append_partial(path: Path | None, values: list[Any], alone: bool = False) -> None:
    """Append lines of results to the file, on the main process or on a process that scores alone."""
    if path is not None and (alone or process_state().is_main_process):
        with writing(path), open(path, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(value) + "\n" for value in values)
