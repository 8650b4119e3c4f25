"""Checkpoints to resume from: whole, verified, and never lost for a newer one that is not.

A checkpoint is written in a staging folder, described by a manifest with a digest of every file, synced, and renamed
into place; only then may an older one go. A folder without a valid manifest is never resumed from.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rmtrain.errors import CheckpointError
from rmtrain.files import read_text, sha256_file, sync_folder, sync_tree, write_json
from rmtrain.model.weights import MANIFEST

STAGING = ".staging"  # not "checkpoint-...": the Trainer's own rotation would count it
_NAME = re.compile(r"checkpoint-(\d+)")
_ASIDE = "."  # before a checkpoint's name: it is being replaced by another of the same step


class Found(NamedTuple):
    """The newest valid checkpoint with its manifest, and the newer ones passed over with the reason."""

    path: Path | None
    manifest: dict[str, Any]
    passed_over: list[tuple[Path, str]]


def state_files(strategy: str, processes: int, scaled: bool) -> list[str]:
    """Patterns of the files without which a resumed run would end elsewhere, or not begin; each must match one.

    Args:
        strategy: ddp (or none), zero2, zero3 or fsdp.
        processes: that wrote it; each writes its random state, and under ZeRO its part of the optimiser's state.
        scaled: there is a loss scaler.
    """
    ranks = range(processes)
    files = ["trainer_state.json", "scheduler.pt", *(["scaler.pt"] if scaled else [])]
    files += ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in ranks]
    if strategy in ("zero2", "zero3"):
        kinds = ["optim"] if strategy == "zero2" else ["optim", "model"]
        files += [f"global_step*/*zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for rank in ranks for kind in kinds]
        return [*files, "latest", *(["global_step*/mp_rank_00_model_states.pt"] if strategy == "zero2" else [])]
    return [*files, *(["optimizer.bin", "pytorch_model_fsdp.bin"] if strategy == "fsdp" else ["optimizer.pt"])]


def commit(staged: Path, target: Path, manifest: dict[str, Any], required: Iterable[str] = ()) -> None:
    """Describe, sync and rename a staged checkpoint.

    Args:
        staged: the folder as written.
        target: its final place; a folder there is replaced.
        manifest: what is stored beside the digests, such as step and fingerprint.
        required: patterns of files that must be there.

    Raises:
        CheckpointError: a file that must be there is not.
    """
    for pattern in required:
        if not any(path.stat().st_size for path in staged.glob(pattern)):
            raise CheckpointError(
                f"{pattern} is missing", "have all machines write to one folder: run.folder on a disk that they share"
            )
    files = {}
    folders = [staged]
    for path in sorted(staged.rglob("*")):
        if path.is_dir():
            folders.append(path)
            continue
        files[str(path.relative_to(staged))] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    described = {**manifest, "files": files}
    write_json(staged / MANIFEST, {**described, "digest": _digest(described)})
    for folder in folders:
        sync_tree(folder)
    aside = target.with_name(_ASIDE + target.name)
    if os.path.lexists(target):  # the same step written again after a resume
        _remove(aside)
        os.rename(target, aside)
    os.rename(staged, target)
    sync_folder(target.parent)
    _remove(aside)


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all as they were written.

    Raises:
        CheckpointError: names the file that is missing, cut or changed.
    """
    try:
        manifest = json.loads(read_text(path / MANIFEST, error=CheckpointError))
        digest = manifest.pop("digest")
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: no valid {MANIFEST} ({type(error).__name__})") from error
    if digest != _digest(manifest):
        raise CheckpointError(f"{path}: {MANIFEST} has changed since it was written")
    for name, (size, sha256) in files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{path}: {MANIFEST} names a file outside the folder")
        if not file.is_file():
            raise CheckpointError(f"{path}: {name} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"{path}: {name} has {file.stat().st_size} bytes, not {size}")
        if sha256_file(file) != sha256:
            raise CheckpointError(f"{path}: {name} has changed since it was written")
    return manifest  # type: ignore[no-any-return]


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # what can't be removed is no reason to end a run
    else:
        path.unlink(missing_ok=True)


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders by step, ascending; anything else in the folder is ignored."""
    entries = folder.iterdir() if folder.is_dir() else []
    matches = [(_NAME.fullmatch(path.name), path) for path in entries if path.is_dir() and not path.is_symlink()]
    return sorted((int(match[1]), path) for match, path in matches if match)


def newest_valid(folder: Path) -> Found:
    """Look for the newest checkpoint that verifies; one that was being replaced when the run died is put back."""
    for aside in folder.glob(f"{_ASIDE}checkpoint-*"):
        target = aside.with_name(aside.name.removeprefix(_ASIDE))
        if not os.path.lexists(target):
            os.rename(aside, target)
    passed_over = []
    for step, path in reversed(numbered(folder)):
        try:
            manifest = verify(path)
            if manifest.get("step") != step:
                raise CheckpointError(f"{path}: {MANIFEST} is of step {manifest.get('step')}")
        except CheckpointError as error:
            passed_over.append((path, error.message))
        else:
            return Found(path, manifest, passed_over)
    return Found(None, {}, passed_over)


def rotate(folder: Path, step: int, keep: int, protected: Iterable[int]) -> None:
    """Remove the oldest committed checkpoints, once a new one has been committed.

    Args:
        folder: of the checkpoints.
        step: of the new one; newer ones were passed over by the resumed run and do not count.
        keep: how many to keep, up to `step`.
        protected: steps that are kept beside them.
    """
    committed = [(n, path) for n, path in numbered(folder) if n <= step and (path / MANIFEST).is_file()]
    for number, path in committed[:-keep]:
        if number not in set(protected):
            (path / MANIFEST).unlink()  # from here on it is no checkpoint, however far the removal gets
            _remove(path)
