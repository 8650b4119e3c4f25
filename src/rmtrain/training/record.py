"""The run folder while it is trained in: opened and locked, described, and closed with how it ended."""

import contextlib
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rmtrain.data.prepare import ReadySplit
from rmtrain.errors import (
    CheckpointError,
    InputError,
    Interrupted,
    LostProcessError,
    RmtrainError,
    RunFailedError,
    WriteError,
    masked,
)
from rmtrain.files import why_unwritten, write_atomic
from rmtrain.model.devices import lost_another, process_state
from rmtrain.recipe.load import LoadedRecipe, dump_recipe
from rmtrain.runs import MANIFEST, create_run, locked, read_manifest, reveal, update_manifest
from rmtrain.training.resume import ResumePoint

_APPENDED = (".lock", "log.txt", "metrics.jsonl")  # written in place; all else is replaced
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "deepspeed", "bitsandbytes", "rmtrain")


def start_run(loaded: LoadedRecipe, splits: Mapping[str, ReadySplit], stack: ExitStack) -> Path:
    """Make a run folder and lock it until the stack closes; on the main process. It appears with its manifest in it.

    Raises:
        InputError: the folder can't be made.
    """
    building = create_run(Path(loaded.recipe.run.folder), loaded.name)
    try:
        stack.enter_context(locked(building))
        write_atomic(building / "recipe.yaml", dump_recipe(loaded.recipe))
        first = {"format": 1, "started": now(), "recipe": masked(str(loaded.path)), "command": _command()}
        update_manifest(building, **_running(loaded, splits), **first, git_commit=_git_commit())
        return reveal(building)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def take_up_run(folder: Path, stack: ExitStack, write: bool = True) -> Mapping[str, Any]:
    """Lock a run folder that is there, until the stack closes, and read its manifest; on the main process.

    Where nothing is to be written, the lock is held only if the run has its file.

    Raises:
        InputError: it is no run, in use, or would write into a file elsewhere.
    """
    read_manifest(folder)  # before a lock file is made in what is no run
    for path in (folder / name for name in _APPENDED):
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a symbolic link, and the run would write into the file that it points to",
                "put the file itself in its place, or remove the link",
            )
    stack.enter_context(locked(folder, write))
    return read_manifest(folder)


def record_resume(
    folder: Path, loaded: LoadedRecipe, splits: Mapping[str, ReadySplit], point: ResumePoint | None
) -> None:
    """Write that a run goes on, from a checkpoint or from the beginning; what its first part wrote is kept."""
    write_atomic(folder / "recipe.yaml", dump_recipe(loaded.recipe))
    again: dict[str, Any] = {"at": now(), "command": _command(), "from": None}
    if point is not None:
        again |= {"from": point.checkpoint.name, "changed": point.changed}
    resumed = [*read_manifest(folder).get("resumed", []), again]
    update_manifest(folder, **_running(loaded, splits), resumed=resumed)


def _running(loaded: LoadedRecipe, splits: Mapping[str, ReadySplit]) -> dict[str, Any]:
    return {
        "state": "running",
        "ended": None,
        "error": None,
        "seed": loaded.recipe.run.seed,
        "data": {name: _describe(split) for name, split in splits.items()},
        **_environment(),
    }


def record_failure(folder: Path, error: BaseException, new: bool) -> RmtrainError:
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
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("stopped before the first step or after the last", _go_on(folder))
    stopped = isinstance(error, Interrupted)
    if not stopped:
        _log(folder, error)
    message = _message(error)
    with contextlib.suppress(OSError, RmtrainError):
        if read_manifest(folder)["state"] == "running":
            try:
                update_manifest(folder, state="interrupted" if stopped else "failed", ended=now(), error=message)
            except WriteError:
                _fail_in_place(folder)
    if isinstance(error, OSError) and (why := why_unwritten(error, folder)):
        return WriteError(f"{error.filename or folder} can't be written: {why[0]}", f"{why[1]}; {_go_on(folder)}")
    if isinstance(error, RmtrainError):
        # exit code 2 says that nothing was started, which is no longer so
        return RunFailedError(error.message, error.hint) if isinstance(error, InputError) else error
    if lost_another(error):
        return LostProcessError(message, folder)
    hint = f"the traceback is in {folder / 'log.txt'}"
    if isinstance(error, torch.OutOfMemoryError):
        hint = "lower optim.tokens_per_microbatch, or set optim.gradient_checkpointing: full"
    return RunFailedError(f"training failed: {message}", hint)


@contextlib.contextmanager
def recording_what_follows(folder: Path) -> Iterator[None]:
    """Write into the folder of a finished run why something after its training failed or stopped; on every process.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
        RunFailedError: in place of an error of another kind.
    """
    try:
        yield
    except KeyboardInterrupt as signal:
        stop = Interrupted("the model is trained; stopped before all of it was scored", _go_on(folder))
        with contextlib.suppress(OSError, RmtrainError):
            update_manifest(folder, state="interrupted", error=stop.message)
        raise stop from signal
    except Exception as error:
        _log(folder, error)
        with contextlib.suppress(OSError, RmtrainError):
            if read_manifest(folder)["error"] is None:  # the first to fail is named
                update_manifest(folder, error=f"after training: {_message(error)}")
        if isinstance(error, RunFailedError):
            raise
        if lost_another(error):
            raise LostProcessError(_message(error), folder) from error
        whole = f"the model is whole: rmtrain eval --ckpt {folder}; the traceback is in {folder / 'log.txt'}"
        hint = "; ".join(filter(None, [getattr(error, "hint", ""), whole]))
        raise RunFailedError(f"training is finished, what follows failed: {_message(error)}", hint) from error


def _fail_in_place(folder: Path) -> None:
    """Turn the manifest's state from running to failed where there is no room for another manifest."""
    running, failed = b'"state": "running"', b'"state": "failed" '
    with open(folder / MANIFEST, "r+b") as stream:
        place = stream.read().index(running)
        stream.seek(place)
        stream.write(failed)


def _go_on(folder: Path) -> str:
    return f"go on with: rmtrain train --resume {folder}"


def _log(folder: Path, error: BaseException) -> None:
    state = process_state()
    # a full disk must not hide what happened
    with contextlib.suppress(OSError), open(folder / "log.txt", "a", encoding="utf-8") as stream:
        stream.write(f"{now()} process {state.process_index} of {state.num_processes}\n")
        stream.write(masked("".join(traceback.format_exception(error))))


def _message(error: BaseException) -> str:
    if isinstance(error, RmtrainError):
        return error.message
    state, message = process_state(), masked(f"{type(error).__name__}: {error}")
    if lost_another(error):
        message = f"another process ended first ({message})"
    return f"process {state.process_index}: {message}" if state.num_processes > 1 else message


def _command() -> list[str]:
    return ["rmtrain", *map(masked, sys.argv[1:])]  # argv[0] is __main__.py in a process that was started by rmtrain


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
        "rows": asdict(split.ledger("rows")),
        "preferences": asdict(split.ledger("preferences")),
        "groups": len(split.tokens),
        "truncated": split.tokens.truncated,
        "identical": sum(split.tokens.identical.values()),
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
