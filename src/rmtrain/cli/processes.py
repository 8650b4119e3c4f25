"""Several processes for one command: started here through torchrun, or joined where a launcher has started them."""

import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rmtrain.errors import InputError, RunFailedError
from rmtrain.files import held
from rmtrain.runs import lock_holder, read_manifest, update_manifest
from rmtrain.signals import handled

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_STATUS = "RMTRAIN_STATUS"  # file to which the processes of a launch write their exit codes: torchrun's is always 1
_LAUNCHER = "RMTRAIN_LAUNCHER"  # id of the process that launched this one
_LAUNCHERS = (_LAUNCHER, "TORCHELASTIC_RUN_ID", "CROSS_RANK", "ACCELERATE_DYNAMO_BACKEND")  # the last is accelerate's
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SHUTDOWN_SECONDS = "900"  # after a signal: a step of a large model and its checkpoint outlast torchrun's own 30


def is_child() -> bool:
    """Whether this process was started by rmtrain's own launch."""
    return _STATUS in os.environ


def joined() -> bool:
    """Whether a launcher (torchrun, accelerate, DeepSpeed, Slurm's srun) has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_slurm() -> None:
    """Set torch's variables from Slurm's, if srun started this process as one of several tasks.

    Each task is one process with one GPU. The tasks connect to the first node of the step, unless MASTER_ADDR is set.

    Raises:
        InputError: srun's variables are incomplete.
    """
    slurm = {name.removeprefix("SLURM_"): value for name, value in os.environ.items() if name.startswith("SLURM_")}
    if joined() or int(slurm.get("STEP_NUM_TASKS", "1")) < 2:
        return
    try:
        nodes = slurm["STEP_NODELIST"]
        local = tasks_per_node(slurm["STEP_TASKS_PER_NODE"])[int(slurm["NODEID"])]
        # derived from job and step, so that two jobs on a node use different ports
        port = 20_000 + (97 * int(slurm["JOB_ID"]) + int(slurm["STEP_ID"])) % 20_000
        variables = {
            "RANK": slurm["PROCID"],
            "WORLD_SIZE": slurm["STEP_NUM_TASKS"],
            "LOCAL_RANK": slurm["LOCALID"],
            "LOCAL_WORLD_SIZE": str(local),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"this is a task of a Slurm step, but its variables are incomplete ({error})",
            "start it with srun, or with torchrun inside the job",
        ) from error
    os.environ.update(variables)
    os.environ.setdefault("MASTER_ADDR", first_node(nodes))
    os.environ.setdefault("MASTER_PORT", str(port))


def first_node(nodes: str) -> str:
    """The first host of Slurm's compressed list, such as `gpu[003-007,9],login1`: here gpu003.

    Raises:
        ValueError: it is no such list.
    """
    match = re.match(r"([^\[\],]+)(?:\[([^\],-]+)[^\]]*\]([^\[\],]*))?", nodes)
    if match is None:
        raise ValueError(f"not a list of nodes: {nodes!r}")
    return "".join(part or "" for part in match.groups())


def tasks_per_node(text: str) -> list[int]:
    """Tasks of each node from Slurm's `4(x2),3`: here 4, 4, 3.

    Raises:
        ValueError: it is no such list.
    """
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"not a list of tasks per node: {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def is_main_process() -> bool:
    """Whether this is the process that prints the command's results."""
    return os.environ.get("RANK", "0") == "0"


def rank_and_number() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_arguments(arguments: list[str]) -> list[str]:
    """A command line without the --local_rank=N that DeepSpeed's launcher adds; LOCAL_RANK holds the same number."""
    if "LOCAL_RANK" not in os.environ:
        return arguments
    return [argument for argument in arguments if not re.fullmatch(r"--local[-_]rank=\d+", argument)]


def alone(output: Path) -> contextlib.AbstractContextManager[None]:
    """Lock an output file or folder against other commands; the main process holds the lock.

    Raises:
        InputError: another command is writing it, or its folder can't be written.
    """
    if is_child() or not is_main_process():
        return contextlib.nullcontext()
    return held(output.with_name(f".{output.name}.lock"), output, remove=True)


def handed_down(name: str, find: Callable[[], str]) -> str:
    """A value that the launching process computes once and passes on to the processes that it launches."""
    key = f"RMTRAIN_{name}"
    if not is_child():
        os.environ[key] = find()
    return os.environ[key]


_MOST_PER_CORE = 16
_MOST_PLANNED = 1024  # for another machine


def processes_wanted(number: int | None, here: bool = True) -> int:
    """How many processes to start: the requested number, else one per GPU, else one.

    Without `here`, they are only planned, for a machine with other GPUs.

    Raises:
        InputError: fewer than one, more than this machine's GPUs, or far more than its cores.
    """
    import torch

    if number is not None and number < 1:
        raise InputError(f"--num-processes {number}: must be at least 1")
    most = max(_MOST_PER_CORE * (os.cpu_count() or 1), 0 if here else _MOST_PLANNED)
    if number is not None and number > most:
        place = "for this machine" if here else "to plan for"
        raise InputError(f"--num-processes {number}: too many {place}", f"use at most {most}")
    devices = torch.cuda.device_count()
    if here and number is not None and 0 < devices < number:
        raise InputError(f"--num-processes {number}: this machine has {devices} GPUs", f"use at most {devices}")
    return number or max(1, devices)


def spread(number: int | None) -> None:
    """Run the command on several processes if several are wanted and none are started yet; otherwise do nothing.

    Raises:
        typer.Exit: with the exit code of these processes.
    """
    if not joined() and (wanted := processes_wanted(number)) > 1:
        raise typer.Exit(launch(wanted))


def launch(number: int, runs: Path | None = None) -> int:
    """Run this command line on `number` processes of this machine; returns the exit code of the first failure.

    If all processes of a training run were killed before one of them could record it, the run is marked as failed;
    `runs` is the folder in which to look for it.

    Raises:
        RunFailedError: a process was killed, or exited without reporting an error.
        KeyboardInterrupt: a signal arrived before the processes could handle it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    print(f"starting {number} processes", file=sys.stderr, flush=True)
    locks = _locks(runs)
    for name in ("agent.server.api", "multiprocessing.api"):  # how the processes ended is reported below
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        # without the last, Python would look for modules in the current folder first
        os.environ |= {_STATUS: str(status), _LAUNCHER: str(os.getpid()), "PYTHONSAFEPATH": "1"}
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_SECONDS)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
        signals = f"--signals-to-handle={','.join(number.name for number in handled())}"
        options = ["--standalone", f"--nproc-per-node={number}", signals, f"--log-dir={folder}"]
        failures, signalled = dict[int, "ProcessFailure"](), False
        try:
            torchrun([*options, "-m", "rmtrain", *sys.argv[1:]])
        except ChildFailedError as error:
            failures = error.failures
        except SignalException:
            signalled = True
            _wait_for_checkpoints()  # torchrun leaves at the third signal, before its processes have ended
        finally:
            del os.environ[_STATUS], os.environ[_LAUNCHER]
        lines = status.read_text().splitlines() if status.exists() else []
    ended = {int(rank): (int(code), run) for rank, code, run in (line.split(" ", 2) for line in lines)}
    if killed := _killed({rank: failure for rank, failure in failures.items() if rank not in ended}, failures):
        pids = {failure.pid for failure in failures.values()}
        held = {path for path, _ in _locks(runs) - locks if lock_holder(path) in pids}  # not by ids of earlier runs
        _record_killed(killed, {Path(run) for _, run in ended.values() if run}, held)
        raise RunFailedError(
            killed, "memory may have run out, unless someone killed it: see the lines above, and dmesg"
        )
    for code, _ in ended.values():  # in the order of their ends: the first failure may cause the others
        if code:
            return code
    if len(ended) == number:
        return 0
    if signalled:
        raise KeyboardInterrupt
    raise RunFailedError("a worker exited without reporting an error", "see the lines above")


def _locks(runs: Path | None) -> set[tuple[Path, int]]:
    """The runs in a folder, with the time at which each was locked last."""
    return {(path.parent, path.stat().st_mtime_ns) for path in runs.glob("[!.]*/.lock")} if runs is not None else set()


def _record_killed(killed: str, ended: set[Path], held: set[Path]) -> None:
    """Write the cause into the manifests of runs that a process has ended, or held when torchrun killed it."""
    from rmtrain.training.failures import now

    for run in ended:
        errors = {"failed": killed, "finished": f"after training: {killed}"}
        if (state := read_manifest(run)["state"]) in errors:
            update_manifest(run, error=errors[state])
    for run in (run for run in held if read_manifest(run)["state"] == "running"):
        update_manifest(run, state="failed", ended=now(), error=killed)


def _wait_for_checkpoints() -> None:
    """Wait until the launched processes have ended, which would be killed with this one.

    A terminal that closes can send three signals: the kernel's, the shell's, and that of the session's end.
    """
    import psutil
    from torch.distributed.elastic.multiprocessing.api import SignalException

    with contextlib.suppress(SignalException):
        launched = [child for child in psutil.Process().children() if "rmtrain" in child.cmdline()]
        psutil.wait_procs(launched, timeout=float(os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]))


def _killed(silent: "dict[int, ProcessFailure]", failures: "dict[int, ProcessFailure]") -> str:
    """A sentence on the process that a signal killed before any other failed; empty if there was none.

    `silent` are the failures of processes that reported no exit code.
    """
    first = min((failure.timestamp for failure in failures.values()), default=0)
    # torchrun polls every tenth of a second, and sends SIGTERM to all other processes once one has ended
    by_torchrun = any(failure.exitcode != -signal.SIGTERM for failure in failures.values())
    for rank, failure in sorted(silent.items()):
        if failure.exitcode == -signal.SIGTERM and by_torchrun:
            continue
        if failure.exitcode < 0 and failure.timestamp <= first + 1:
            return f"process {rank} was ended by {failure.signal_name()} (signal {-failure.exitcode})"
    return ""


def leave_group() -> None:
    """Leave the process group, whose threads would otherwise make the interpreter abort at exit."""
    distributed = sys.modules.get("torch.distributed")  # not imported here: most commands need no torch
    if joined() and distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def report_exit(code: int, run: Path | None = None) -> None:
    """Report this process's exit code to the launching process, and the run that another process's end has ended."""
    if is_child():
        with open(os.environ[_STATUS], "a", encoding="utf-8") as stream:
            stream.write(f"{os.environ['RANK']} {code} {run or ''}\n")


def tie_to_launcher() -> None:
    """Have the kernel end this process when its launcher dies.

    The launcher is the parent if rmtrain, torchrun, accelerate or DeepSpeed started this process. Slurm's daemon ends
    its tasks itself; and if RANK was set by hand, the parent may be a shell that the user leaves.
    """
    if not any(name in os.environ for name in _LAUNCHERS):
        return
    launcher = int(os.environ.get(_LAUNCHER, os.getppid()))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # the launcher died before the call
        os.kill(os.getpid(), signal.SIGKILL)
