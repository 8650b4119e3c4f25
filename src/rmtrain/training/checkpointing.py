"""Checkpoints to resume from: complete, verified, and never replaced by one that is not.

A checkpoint is written in a staging folder, described by a manifest with a digest of every file, synced, and renamed
into place; only then may an older one go. A folder without a valid manifest is never resumed from.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerState

from rmtrain.data.render import Renderer
from rmtrain.errors import CheckpointError
from rmtrain.files import read_text, sha256_file, sync_folder, sync_tree, write_json
from rmtrain.json_values import Json, JsonObject
from rmtrain.model.digests import digest_of_values, seal
from rmtrain.model.saving import check_weights, write_companions
from rmtrain.model.sidecar import Scoring
from rmtrain.model.weights import MANIFEST

STAGING = ".staging"  # not "checkpoint-...": the Trainer's own rotation would count it
_NAME = re.compile(r"checkpoint-(\d+)")
_ASIDE = "."  # before a checkpoint's name: it is being replaced by another of the same step


@dataclass(frozen=True)
class CheckpointWriter:
    """What a run's checkpoints hold beside the weights and the Trainer's state, and how many are kept."""

    renderer: Renderer
    scoring: Scoring  # how the model is scored, as rmtrain.json says
    record: Mapping[str, object]  # what rmtrain.json says besides
    fingerprint: dict[str, Any]  # what identifies recipe and data; compared on resume
    shapes: dict[str, tuple[int, ...]]  # shapes of the tensors that must be saved
    keep: int  # newest checkpoints, beside the best one

    def complete(self, folder: Path, config: Any) -> None:
        """Make a folder of weights a model that anyone can load, without the Trainer's pickle, which holds secrets."""
        (folder / "training_args.bin").unlink()
        write_companions(config, self.renderer, folder, self.scoring, self.record)
        seal(folder, own=False)

    def commit(
        self, staged: Path, target: Path, state: TrainerState, figures: Mapping[str, Json], scaled: bool
    ) -> None:
        """Verify a staged checkpoint, rename it into place, and only then remove old ones.

        Args:
            figures: the trainer's own, which a resumed run continues.
            scaled: a loss scaler is in use.
        """
        best, processes = state.best_global_step, self.fingerprint["processes"]
        if best is not None:
            state.best_model_checkpoint = str(target.with_name(f"checkpoint-{best}"))
            state.save_to_json(str(staged / "trainer_state.json"))
        check_weights(staged, self.shapes)
        manifest = {"step": state.global_step, "processes": processes, "fingerprint": self.fingerprint, **figures}
        commit(staged, target, manifest, state_files(self.fingerprint["distributed.strategy"], processes, scaled))
        rotate(target.parent, state.global_step, self.keep, [best] if best is not None else [])


class NewestCheckpoint(NamedTuple):
    """The newest valid checkpoint with its manifest, and the newer ones that are damaged, with the reason."""

    path: Path | None
    manifest: dict[str, Any]
    passed_over: list[tuple[Path, str]]


def state_files(strategy: str, processes: int, scaled: bool) -> list[str]:
    """Patterns of the files that a resumed run needs to end as an uninterrupted one; each must match a file.

    Each process writes its random state, and under ZeRO its part of the optimiser's state; a loss scaler has its own.
    """
    ranks = range(processes)
    files = ["trainer_state.json", "scheduler.pt", *(["scaler.pt"] if scaled else [])]
    files += ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in ranks]
    if strategy in ("zero2", "zero3"):
        kinds = ["optim"] if strategy == "zero2" else ["optim", "model"]
        files += [f"global_step*/*zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for rank in ranks for kind in kinds]
        return [*files, "latest", *(["global_step*/mp_rank_00_model_states.pt"] if strategy == "zero2" else [])]
    return [*files, *(["optimizer.bin", "pytorch_model_fsdp.bin"] if strategy == "fsdp" else ["optimizer.pt"])]


def commit(staged: Path, target: Path, manifest: JsonObject, required: Iterable[str] = ()) -> None:
    """Describe, sync and rename a staged checkpoint.

    Args:
        target: where it is in the end; a folder there is replaced.
        manifest: what is stored beside the digests, such as step and fingerprint.
        required: patterns of files that must exist.

    Raises:
        CheckpointError: a required file is missing.
    """
    for pattern in required:
        if not any(path.stat().st_size for path in staged.glob(pattern)):
            raise CheckpointError(
                f"{pattern} is missing", "have all machines write to one folder: run.folder on a disk that they share"
            )
    files: dict[str, Json] = {}
    folders = [staged]
    for path in sorted(staged.rglob("*")):
        if path.is_dir():
            folders.append(path)
            continue
        files[str(path.relative_to(staged))] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    described: JsonObject = {**manifest, "files": files}
    write_json(staged / MANIFEST, {**described, "digest": digest_of_values(described)})
    for folder in folders:
        sync_tree(folder)
    aside = target.with_name(_ASIDE + target.name)
    if os.path.lexists(target):  # the same step written again after a resume
        _remove(aside)
        os.rename(target, aside)
    os.rename(staged, target)
    sync_folder(target.parent)
    _remove(aside)


def verify(path: Path) -> JsonObject:
    """The manifest of a checkpoint, once all its files are known to be as they were written.

    Raises:
        CheckpointError: names the file that is missing, cut or changed.
    """
    try:
        manifest = json.loads(read_text(path / MANIFEST, error=CheckpointError))
        digest = manifest.pop("digest")
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: no valid {MANIFEST} ({type(error).__name__})") from error
    if digest != digest_of_values(manifest):
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # a folder that can't be removed must not end a run
    else:
        path.unlink(missing_ok=True)


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders by step, ascending; anything else in the folder is ignored."""
    entries = folder.iterdir() if folder.is_dir() else []
    matches = [(_NAME.fullmatch(path.name), path) for path in entries if path.is_dir() and not path.is_symlink()]
    return sorted((int(match[1]), path) for match, path in matches if match)


def newest_valid(folder: Path) -> NewestCheckpoint:
    """The newest checkpoint that verifies; one that was being replaced when the run died is restored first."""
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
            return NewestCheckpoint(path, manifest, passed_over)
    return NewestCheckpoint(None, {}, passed_over)


def rotate(folder: Path, step: int, keep: int, protected: Iterable[int]) -> None:
    """Remove the oldest committed checkpoints, once that of a step has been committed; `protected` steps are kept as
    well.

    Checkpoints of later steps were passed over by the resumed run, and do not count.
    """
    committed = [(n, path) for n, path in numbered(folder) if n <= step and (path / MANIFEST).is_file()]
    for number, path in committed[:-keep]:
        if number not in set(protected):
            (path / MANIFEST).unlink()  # from here on it is no checkpoint, even if the removal stops halfway
            _remove(path)
