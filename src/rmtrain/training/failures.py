"""Runs that end early or fail after training: recorded in the run folder, and shown with what to do next."""

import contextlib
import shutil
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch

from rmtrain.errors import (
    InputError,
    Interrupted,
    LostProcessError,
    RmtrainError,
    RunFailedError,
    WriteError,
    command_line,
    masked,
)
from rmtrain.files import why_unwritten
from rmtrain.model.devices import lost_another, process_state
from rmtrain.runs import MANIFEST, read_manifest, update_manifest
from rmtrain.signals import on_signal


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@contextlib.contextmanager
def recording_failure(folder: Path, new: bool) -> Iterator[None]:
    """Record an error that ends a run, on every process, and raise what the user is shown in its place.

    A new run is one that this command made, and did not resume.
    """
    try:
        yield
    except BaseException as error:
        with on_signal(lambda: None):  # a launcher signals the processes that are left once one has failed
            shown = record_failure(folder, error, new)
        if shown is error:
            raise
        raise shown from error


def record_failure(folder: Path, error: BaseException, new: bool) -> RmtrainError:
    """Write into the manifest why a run ended early; returns the error to show.

    The manifest names the process that failed first: the others fail because it has ended. A new run that ends by an
    InputError before its first step leaves no folder.
    """
    state = process_state()
    begun = not new or (folder / "metrics.jsonl").exists()
    if isinstance(error, InputError) and not begun:
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        return error
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("stopped before the first step or after the last", resume_hint(folder))
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
        return WriteError(f"{error.filename or folder} can't be written: {why[0]}", f"{why[1]}; {resume_hint(folder)}")
    if isinstance(error, RmtrainError):
        # exit code 2 says that nothing was started, but the run was
        return RunFailedError(error.message, error.hint) if isinstance(error, InputError) else error
    if lost_another(error):
        return LostProcessError(message, folder)
    hint = f"the traceback is in {folder / 'log.txt'}"
    if isinstance(error, torch.OutOfMemoryError):
        hint = "lower optim.tokens_per_microbatch, or set optim.gradient_checkpointing: full"
    return RunFailedError(f"training failed: {message}", hint)


@contextlib.contextmanager
def recording_what_follows(folder: Path) -> Iterator[None]:
    """Record in the folder of a finished run why something after training failed or was stopped; on every process.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
        RunFailedError: in place of an error of another kind.
    """
    try:
        yield
    except KeyboardInterrupt as signal:
        stop = Interrupted("the model is trained; stopped before all splits were scored", resume_hint(folder))
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
        whole = (
            f"the model is complete: {command_line('eval', '--ckpt', folder)}; the traceback is in {folder / 'log.txt'}"
        )
        hint = "; ".join(filter(None, [getattr(error, "hint", ""), whole]))
        raise RunFailedError(f"training is finished, but what follows it failed: {_message(error)}", hint) from error


def _fail_in_place(folder: Path) -> None:
    """Change the manifest's state from running to failed in place, where the disk has no space for a new manifest."""
    running, failed = b'"state": "running"', b'"state": "failed" '
    with open(folder / MANIFEST, "r+b") as stream:
        place = stream.read().index(running)
        stream.seek(place)
        stream.write(failed)


def resume_hint(folder: Path) -> str:
    """The command that resumes a run."""
    return f"resume with: {command_line('train', '--resume', folder)}"


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
