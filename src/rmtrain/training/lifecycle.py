"""The run folder during training: opened and locked, described in its manifest, and closed with how the run ended."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rmtrain.data.curated_source import curation_of
from rmtrain.data.entry_figures import entry_figures
from rmtrain.data.prepare import ReadySplit
from rmtrain.display import Display
from rmtrain.errors import CheckpointError, InputError, RmtrainError, RunFailedError, WriteError, masked
from rmtrain.files import why_unwritten, write_atomic
from rmtrain.json_values import JsonObject
from rmtrain.model.devices import process_state, value_of_main
from rmtrain.model.start import base_name
from rmtrain.recipe.load import LoadedRecipe, dump_recipe
from rmtrain.runs import create_run, locked, read_manifest, reveal, update_manifest
from rmtrain.training.failures import now
from rmtrain.training.resume import ResumePoint, choose_checkpoint
from rmtrain.training.tracking import check_login

_APPENDED = (".lock", "log.txt", "metrics.jsonl")  # written in place; all else is replaced
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "deepspeed", "bitsandbytes", "rmtrain")


class OpenRun(NamedTuple):
    """A run folder that this command holds, and where the run begins."""

    folder: Path
    resumed: ResumePoint | None = None  # the checkpoint to resume from
    commit: str | None = None  # the base model's hub commit when the run began


def open_run(
    loaded: LoadedRecipe,
    splits: Mapping[str, ReadySplit],
    fingerprint: JsonObject,
    resume: Path | None,
    allow_changes: bool,
    display: Display,
    stack: ExitStack,
) -> OpenRun:
    """Make or reopen the run folder on the main process, for all processes; an error there is raised on all of them.

    The folder is locked until the stack closes.

    Raises:
        InputError: the run can't be resumed, or is in use, or its folder can't be written.
    """
    answer: OpenRun | RmtrainError | None = None
    cause: Exception | None = None
    if process_state().is_main_process:
        try:
            check_login(loaded.recipe.tracking.wandb)
            if resume is None:
                answer = OpenRun(_start_run(loaded, splits, stack))
            else:
                answer = _resume_run(resume, loaded, splits, fingerprint, allow_changes, display, stack)
        except Exception as error:
            answer, cause = _opening_error(error, Path(resume or loaded.recipe.run.folder)), error
    answer = value_of_main(answer)  # the other processes wait for it, whatever it is
    if isinstance(answer, RmtrainError):
        raise answer from (cause if answer is not cause else None)
    assert answer is not None  # the main process has either
    return answer


def _resume_run(
    folder: Path,
    loaded: LoadedRecipe,
    splits: Mapping[str, ReadySplit],
    fingerprint: JsonObject,
    allow_changes: bool,
    display: Display,
    stack: ExitStack,
) -> OpenRun:
    """Reopen a run, and record from which checkpoint it is resumed, or from its beginning; earlier entries are kept."""
    manifest = reopen_run(folder, stack)
    point = choose_checkpoint(folder, fingerprint, display, allow_changes)
    write_atomic(folder / "recipe.yaml", dump_recipe(loaded.recipe))
    _write_overlaps(folder, splits)
    again: JsonObject = {"at": now(), "command": _command(), "from": None}
    if point is not None:
        again |= {"from": point.checkpoint.name, "changed": point.changed}
    update_manifest(folder, **_running(loaded, splits), resumed=[*manifest.get("resumed", []), again])
    base = manifest.get("model", {})
    return OpenRun(folder, point, base.get("commit") if base.get("name") == base_name(loaded.recipe.model) else None)


def _opening_error(error: Exception, place: Path) -> RmtrainError:
    """The error to show on all processes where the run folder could not be opened."""
    if isinstance(error, (OSError, WriteError)):  # a full disk, or a file system without locks
        known = (error.message, error.hint) if isinstance(error, WriteError) else why_unwritten(error, place)
        why, hint = known or (str(error), "")
        hint = "; ".join(filter(None, [hint, "run.folder names another place"]))
        return InputError(f"{place}: the run folder can't be written: {why}", hint)
    if isinstance(error, RmtrainError):
        return error
    hint = "this is a bug in rmtrain; run again with --debug for the traceback"
    return RunFailedError(f"the run can't be started: {type(error).__name__}: {error}", hint)


def _start_run(loaded: LoadedRecipe, splits: Mapping[str, ReadySplit], stack: ExitStack) -> Path:
    """Make a run folder and lock it until the stack closes; on the main process. It appears with its manifest in it.

    Raises:
        InputError: the folder can't be made.
    """
    building = create_run(Path(loaded.recipe.run.folder), loaded.name)
    try:
        stack.enter_context(locked(building))
        write_atomic(building / "recipe.yaml", dump_recipe(loaded.recipe))
        first = {"format": 1, "started": now(), "recipe": masked(str(loaded.path)), "command": _command()}
        _write_overlaps(building, splits)
        update_manifest(building, **_running(loaded, splits), **first, git_commit=_git_commit())
        return reveal(building)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def reopen_run(folder: Path, stack: ExitStack, write: bool = True) -> Mapping[str, Any]:
    """Lock an existing run folder until the stack closes, and read its manifest; on the main process.

    Where nothing will be written (`write` is false), the lock is held only if the run has its lock file.

    Raises:
        InputError: it is no run, is in use, or would write into a file elsewhere.
    """
    read_manifest(folder)  # before a lock file is made in a folder that is no run
    for path in (folder / name for name in _APPENDED):
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a symbolic link, and the run would write into the file that it points to",
                "put the file itself in its place, or remove the link",
            )
    stack.enter_context(locked(folder, write))
    return read_manifest(folder)


def _write_overlaps(folder: Path, splits: Mapping[str, ReadySplit]) -> None:
    """Name the training rows that overlap with a benchmark, one a line, if they were compared with any."""
    checks = splits["train"].data.report.checks
    lines = [{"benchmark": check.compared.name, **asdict(overlap)} for check in checks for overlap in check.overlaps]
    if checks:
        write_atomic(folder / "overlaps.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _running(loaded: LoadedRecipe, splits: Mapping[str, ReadySplit]) -> JsonObject:
    return {
        "state": "running",
        "ended": None,
        "error": None,
        "seed": loaded.recipe.run.seed,
        "data": {name: _describe(split) for name, split in splits.items()},
        "processes": process_state().num_processes,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _command() -> list[str]:
    return ["rmtrain", *map(masked, sys.argv[1:])]  # argv[0] is __main__.py in a process that was started by rmtrain


def _describe(split: ReadySplit) -> JsonObject:
    entries = {name: asdict(figures) for name, figures in entry_figures(split).items()}
    curated = {
        part.entry.name or split.data.source: how for part in split.data.parts if (how := curation_of(part.origin))
    }
    return {
        "source": split.data.source,
        "revision": split.data.revision,
        "fingerprint": split.fingerprint,
        "rows": asdict(split.ledger("rows")),
        "preferences": asdict(split.ledger("preferences")),
        "groups": len(split.tokens),
        "truncated": split.tokens.report.truncated,
        "identical": sum(split.tokens.report.identical.values()),
        **({"entries": entries} if entries else {}),
        "added": split.data.report.added._asdict(),
        **({"curation": curated} if curated else {}),
        "checks": [check.record() for check in split.data.report.checks],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
