"""Run folders: `<parent>/<name>-<YYYYMMDD-HHMMSS>-<4 hex>/`, each with a manifest of its state."""

import errno
import json
import os
import re
import secrets
import socket
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtrain.errors import CheckpointError, InputError, command_line
from rmtrain.files import held, read_text, sync_folder, write_json

if TYPE_CHECKING:
    from rmtrain.documents import Manifest

MANIFEST = "manifest.json"
_HIDDEN = "."  # prefix of a run folder that is not complete yet
STATES = ("running", "finished", "failed", "interrupted")
_HOLDER = re.compile(r"process (\d+) on (.+)")  # the content of .lock, as `held` writes it


def create_run(parent: Path, name: str) -> Path:
    """Make a new folder under a hidden name; `reveal` gives it its own name once it is complete.

    Raises:
        InputError: the parent can't be written.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    while True:
        folder = parent / f"{_HIDDEN}{name}-{stamp}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise InputError(f"{parent} is not a folder", "set run.folder") from None
        except OSError as error:
            raise InputError(f"{parent}: can't make a run folder: {error.strerror}", "set run.folder") from error
        if not os.path.lexists(_revealed(folder)):
            return folder
        folder.rmdir()


def require_writable(parent: Path) -> None:
    """Check that a folder can be made under `parent`, which need not exist; writes nothing.

    Raises:
        InputError: it can't.
    """
    place = next(path for path in (parent.absolute(), *parent.absolute().parents) if os.path.lexists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = os.strerror(errno.EACCES if place.is_dir() else errno.ENOTDIR)
        raise InputError(f"{parent}: can't make a run folder: {why}", "set run.folder")


def reveal(folder: Path) -> Path:
    """Give a completed folder of `create_run` its own name; returns the new path."""
    sync_folder(folder)
    named = folder.rename(_revealed(folder))
    sync_folder(named.parent)
    return named


def _revealed(folder: Path) -> Path:
    return folder.with_name(folder.name.removeprefix(_HIDDEN))


def read_manifest(folder: Path, notes: list[str] | None = None) -> "Manifest":
    """The manifest of a run folder; entries of a wrong type are left out, with a sentence in `notes`.

    Raises:
        CheckpointError: it is missing, or can't be read.
    """
    from rmtrain.documents import Manifest, sound
    from rmtrain.json_values import read_json

    try:
        whole = read_json(folder / MANIFEST, error=CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is not a run folder: {error.message}") from error
    if not isinstance(whole, dict) or whole.get("state") not in STATES:
        raise CheckpointError(f"{folder / MANIFEST}: no state among {', '.join(STATES)}")
    manifest, faults = sound(whole, Manifest)
    if notes is not None:
        notes += [f"{MANIFEST}: {fault}; this entry is left out." for fault in faults]
    return manifest


def update_manifest(folder: Path, **values: Any) -> None:
    """Change entries of a run's manifest, atomically."""
    path = folder / MANIFEST
    manifest = json.loads(read_text(path, error=CheckpointError)) if path.exists() else {}
    write_json(path, {**manifest, **values})


def list_runs(parent: Path, faults: dict[Path, str] | None = None) -> list[tuple[Path, "Manifest"]]:
    """All runs under a folder, oldest first; an error message in `faults` for each that can't be read."""
    runs = []
    for folder in parent.glob("[!.]*"):
        try:
            runs.append((folder, read_manifest(folder)))
        except CheckpointError as error:
            if faults is not None and os.path.lexists(folder / MANIFEST):
                faults[folder] = error.message
    return sorted(runs, key=lambda run: (_instant(run[1].get("started")), run[0].name))


def _instant(started: Any) -> float:
    """Seconds since 1970 of a manifest's time; without a zone it is local time."""
    try:
        return datetime.fromisoformat(started).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return 0.0


def newest_finished(parent: Path, faults: dict[Path, str] | None = None) -> Path:
    """The newest finished run under a folder; `faults` as for `list_runs`.

    Raises:
        InputError: no run is finished.
    """
    finished = [folder for folder, manifest in list_runs(parent, faults) if manifest["state"] == "finished"]
    if not finished:
        raise InputError(f"no finished run under {parent}/", "train one, or name a checkpoint with --ckpt")
    return finished[-1]


def locate_model(ckpt: str) -> tuple[str, Path | None]:
    """Where the weights of a run folder, another folder or a hub id are, and the run if they are its final model.

    Raises:
        InputError: the run is not finished, or the folder is one of runs.
        CheckpointError: a path that names no folder.
    """
    path = Path(ckpt)
    if (path / MANIFEST).exists():
        if not (path / "final").is_dir():
            raise InputError(
                f"{path} has no final model: the run is not finished",
                f"resume it with `{command_line('train', '--resume', path)}`, or name one of its checkpoints/",
            )
        return str(path / "final"), path
    if path.is_dir():
        if runs := list_runs(path):
            raise InputError(f"{path} is a folder of runs, not a model", f"name one of them, such as {runs[-1][0]}")
        run = path.resolve().parent
        return ckpt, run if path.resolve().name == "final" and (run / MANIFEST).exists() else None
    if path.exists() or ckpt.startswith((".", "/", "~")):
        raise CheckpointError(f"{ckpt}: no such folder", "give a run folder, a checkpoint folder or a hub id")
    return ckpt, None


def wandb_notes(folder: Path) -> list[str]:
    """A line on how to upload the offline wandb records of a run, oldest first; none if all are synced.

    Each resume makes a record.
    """
    records = sorted(folder.glob("wandb/offline-run-*"))
    left = [str(path) for path in records if not list(path.glob("*.wandb.synced"))]
    return [f"wandb is offline; upload with: wandb sync {' '.join(left)}"] if left else []


def locked(folder: Path, write: bool = True) -> AbstractContextManager[None]:
    """Lock a run folder for this process; the lock ends with the process.

    Raises:
        InputError: another process holds it.
    """
    return held(folder / ".lock", folder, write=write)


def lock_holder(folder: Path) -> int | None:
    """The id of the process that locked a run last; None if unknown or on another machine.

    The lock is only read: taking it could stop a process that starts at that moment.
    """
    try:
        holder = _HOLDER.fullmatch((folder / ".lock").read_text(encoding="utf-8").strip())
        return int(holder[1]) if holder is not None and holder[2] == socket.gethostname() else None
    except (OSError, ValueError):
        return None
