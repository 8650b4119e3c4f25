"""The run folder while it is trained in: opened and locked, described, and closed with how it ended."""

import contextlib
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rmtrain.data.prepare import ReadySplit
from rmtrain.errors import CheckpointError, InputError, Interrupted, RmtrainError, RunFailedError
from rmtrain.files import write_atomic
from rmtrain.model.devices import process_state
from rmtrain.recipe.load import LoadedRecipe
from rmtrain.recipe.render import dump_recipe
from rmtrain.runs import create_run, locked, read_manifest, update_manifest

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "deepspeed", "bitsandbytes", "rmtrain")


def open_run(loaded: LoadedRecipe, resume: Path | None, stack: ExitStack) -> Path:
    """Make a run folder, or take one up, and lock it until the stack closes; on the main process.

    Raises:
        InputError: the folder is no run, is in use, or can't be made.
    """
    if resume is not None:
        read_manifest(resume)
    folder = resume or create_run(Path(loaded.recipe.run.folder), loaded.name)
    stack.enter_context(locked(folder))
    return folder


def record_start(folder: Path, loaded: LoadedRecipe, splits: Mapping[str, ReadySplit], checkpoint: Path | None) -> None:
    """Write the resolved recipe, and the manifest as running; a resumed run keeps what its first part wrote."""
    write_atomic(folder / "recipe.yaml", dump_recipe(loaded.recipe))
    state = {
        "state": "running",
        "ended": None,
        "error": None,
        "seed": loaded.recipe.run.seed,
        "data": {name: _describe(split) for name, split in splits.items()},
        **_environment(),
    }
    if (folder / "manifest.json").exists():
        resumed = read_manifest(folder).get("resumed", [])
        again = {"at": now(), "command": _command(), "from": checkpoint.name if checkpoint else None}
        update_manifest(folder, **state, resumed=[*resumed, again])
        return
    update_manifest(
        folder,
        **state,
        format=1,
        started=now(),
        recipe=str(loaded.path),
        command=_command(),
        git_commit=_git_commit(),
    )


def record_failure(folder: Path, error: BaseException, new: bool) -> RmtrainError | KeyboardInterrupt:
    """Write why a run ended before its end, on every process; answers with the error to show.

    The process that fails first is the one that the manifest names: the others fail because it is gone. A new run that
    the user's input stopped before its first step leaves no folder.

    Args:
        folder: of the run.
        error: what ended it.
        new: it was made by this command, not resumed.
    """
    state = process_state()
    begun = not new or (folder / "metrics.jsonl").exists()
    if isinstance(error, InputError) and not begun:
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        return error
    stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
    if not stopped:
        # a full disk must not hide what happened
        with contextlib.suppress(OSError), open(folder / "log.txt", "a", encoding="utf-8") as stream:
            stream.write(f"{now()} process {state.process_index} of {state.num_processes}\n")
            stream.write("".join(traceback.format_exception(error)))
    message = error.message if isinstance(error, RmtrainError) else f"{type(error).__name__}: {error}"
    if state.num_processes > 1 and not isinstance(error, (RmtrainError, KeyboardInterrupt)):
        message = f"process {state.process_index}: {message}"
    with contextlib.suppress(OSError, CheckpointError):
        if read_manifest(folder)["state"] == "running":
            update_manifest(folder, state="interrupted" if stopped else "failed", ended=now(), error=message)
    if isinstance(error, (RmtrainError, KeyboardInterrupt)):
        # exit code 2 says that nothing was started, which is no longer so
        return RunFailedError(error.message, error.hint) if isinstance(error, InputError) else error
    hint = f"the traceback is in {folder / 'log.txt'}"
    if isinstance(error, torch.OutOfMemoryError):
        hint = "lower optim.tokens_per_microbatch, or set optim.gradient_checkpointing: full"
    return RunFailedError(f"training failed: {message}", hint)


def _command() -> list[str]:
    return ["rmtrain", *sys.argv[1:]]  # argv[0] is __main__.py in a process that was started by rmtrain


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _environment() -> dict[str, Any]:
    return {
        "processes": process_state().num_processes,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _describe(split: ReadySplit) -> dict[str, Any]:
    return {
        "source": split.data.source,
        "revision": split.data.revision,
        "fingerprint": split.fingerprint,
        "rows": asdict(split.data.report.rows),
        "preferences": asdict(split.data.report.preferences),
        "groups": len(split.tokens),
        "truncated": split.tokens.truncated,
        "dropped_over_length": split.tokens.over_length_dropped,
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
