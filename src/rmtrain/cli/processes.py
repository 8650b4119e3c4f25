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
from rmtrain.runs import read_manifest, update_manifest

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_STATUS = "RMTRAIN_STATUS"  # file in which the processes of a launch leave how they ended: torchrun's code is always 1
_LAUNCHER = "RMTRAIN_LAUNCHER"  # id of the process that launched this one
_LAUNCHERS = (_LAUNCHER, "TORCHELASTIC_RUN_ID", "CROSS_RANK", "ACCELERATE_DYNAMO_BACKEND")  # set by whom: see below
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SHUTDOWN_SECONDS = "900"  # after a signal: a step of a large model and its checkpoint outlast torchrun's own 30


def is_child() -> bool:
    """Whether this process was started by rmtrain's own launch."""
    return _STATUS in os.environ


def joined() -> bool:
    """Whether a launcher (torchrun, accelerate, DeepSpeed, Slurm's srun) has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join_slurm() -> None:
    """Where srun has started this process as one of several tasks, say so in the variables that torch reads.

    One task is one process with one GPU. The first node of the step is where they meet; MASTER_ADDR and MASTER_PORT are
    kept where they are set.

    Raises:
        InputError: srun's variables don't say which task this is.
    """
    slurm = {name.removeprefix("SLURM_"): value for name, value in os.environ.items() if name.startswith("SLURM_")}
    if joined() or int(slurm.get("STEP_NUM_TASKS", "1")) < 2:
        return
    try:
        nodes = slurm["STEP_NODELIST"]
        local = tasks_per_node(slurm["STEP_TASKS_PER_NODE"])[int(slurm["NODEID"])]
        # two jobs on a node must not meet: the port follows from the job and the step
        port = 20_000 + (97 * int(slurm["JOB_ID"]) + int(slurm["STEP_ID"])) % 20_000
        found = {
            "RANK": slurm["PROCID"],
            "WORLD_SIZE": slurm["STEP_NUM_TASKS"],
            "LOCAL_RANK": slurm["LOCALID"],
            "LOCAL_WORLD_SIZE": str(local),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"this is a task of a Slurm step, but its variables are incomplete ({error})",
            "start it by srun, or by torchrun within the job",
        ) from error
    os.environ.update(found)
    os.environ.setdefault("MASTER_ADDR", first_node(nodes))
    os.environ.setdefault("MASTER_PORT", str(port))


def first_node(nodes: str) -> str:
    """The first host of Slurm's compressed list, such as `gpu[003-007,9],login1`: here gpu003.

    Raises:
        ValueError: it is no such list.
    """
    found = re.match(r"([^\[\],]+)(?:\[([^\],-]+)[^\]]*\]([^\[\],]*))?", nodes)
    if found is None:
        raise ValueError(f"no list of nodes: {nodes!r}")
    return "".join(part or "" for part in found.groups())


def tasks_per_node(text: str) -> list[int]:
    """Tasks of each node from Slurm's `4(x2),3`: here 4, 4, 3.

    Raises:
        ValueError: it is no such list.
    """
    counts = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ValueError(f"no tasks by node: {text!r}")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def is_main_process() -> bool:
    """Whether this process speaks for the command."""
    return os.environ.get("RANK", "0") == "0"


def own_arguments(arguments: list[str]) -> list[str]:
    """A command line without the --local_rank=N of DeepSpeed's launcher, which LOCAL_RANK says too."""
    if "LOCAL_RANK" not in os.environ:
        return arguments
    return [argument for argument in arguments if not re.fullmatch(r"--local[-_]rank=\d+", argument)]


def alone(output: Path) -> contextlib.AbstractContextManager[None]:
    """Keep other commands from writing a file or folder while this one does; of its processes, the first holds it.

    Raises:
        InputError: another command writes it now, or its folder can't be written.
    """
    if is_child() or not is_main_process():
        return contextlib.nullcontext()
    return held(output.with_name(f".{output.name}.lock"), output, remove=True)


def handed_down(name: str, find: Callable[[], str]) -> str:
    """What is found once by the command, and taken over from it by the processes that it launches."""
    key = f"RMTRAIN_{name}"
    if not is_child():
        os.environ[key] = find()
    return os.environ[key]


_MOST_PER_CORE = 16
_MOST_PLANNED = 1024  # for another machine


def processes_wanted(number: int | None, here: bool = True) -> int:
    """How many processes to start: the number asked for, else one a GPU, else one.

    Args:
        number: asked for.
        here: they are to run on this machine.

    Raises:
        InputError: fewer than one, more than there are GPUs here, or far more than there are cores.
    """
    import torch

    if number is not None and number < 1:
        raise InputError(f"--num-processes {number}: at least 1 is needed")
    most = max(_MOST_PER_CORE * (os.cpu_count() or 1), 0 if here else _MOST_PLANNED)
    if number is not None and number > most:
        place = "for this machine" if here else "to plan for"
        raise InputError(f"--num-processes {number}: that is too many {place}", f"ask for at most {most}")
    devices = torch.cuda.device_count()
    if here and number is not None and 0 < devices < number:
        raise InputError(f"--num-processes {number}: there are {devices} GPUs", f"ask for at most {devices}")
    return number or max(1, devices)


def spread(number: int | None) -> None:
    """Hand the command over to several processes where some are wanted and none were started; else do nothing.

    Raises:
        typer.Exit: with the exit code of the processes that did the work.
    """
    if not joined() and (wanted := processes_wanted(number)) > 1:
        raise typer.Exit(launch(wanted))


def launch(number: int) -> int:
    """Run this very command line on `number` processes of this machine; returns the exit code of the first to fail.

    Raises:
        RunFailedError: a process was killed, which is named, or ended without a word.
        KeyboardInterrupt: a signal came before the processes could hear it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    print(f"starting {number} processes", file=sys.stderr, flush=True)
    for name in ("agent.server.api", "multiprocessing.api"):  # how the processes end is said below
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        # without the last, Python would look for modules in the current folder first
        os.environ |= {_STATUS: str(status), _LAUNCHER: str(os.getpid()), "PYTHONSAFEPATH": "1"}
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_SECONDS)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
        signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
        options = ["--standalone", f"--nproc-per-node={number}", f"--signals-to-handle={signals}"]
        failures, signalled = dict[int, "ProcessFailure"](), False
        try:
            torchrun([*options, "-m", "rmtrain", *sys.argv[1:]])
        except ChildFailedError as error:
            failures = error.failures
        except SignalException:
            signalled = True
        finally:
            del os.environ[_STATUS], os.environ[_LAUNCHER]
        lines = status.read_text().splitlines() if status.exists() else []
    ended = {int(rank): (int(code), run) for rank, code, run in (line.split(" ", 2) for line in lines)}
    if killed := _killed({rank: failure for rank, failure in failures.items() if rank not in ended}, failures):
        for run in {run for _, run in ended.values() if run}:
            told = {"failed": killed, "finished": f"after training: {killed}"}
            if (state := read_manifest(Path(run))["state"]) in told:
                update_manifest(Path(run), error=told[state])
        raise RunFailedError(killed, "if nobody did it, memory may have run out: see the lines above, and dmesg")
    for code, _ in ended.values():  # in the order of ending: those after the first to fail may fail for want of it
        if code:
            return code
    if len(ended) == number:
        return 0
    if signalled:
        raise KeyboardInterrupt
    raise RunFailedError("a process ended without a word", "see the lines above")


def _killed(wordless: "dict[int, ProcessFailure]", failures: "dict[int, ProcessFailure]") -> str:
    """Which of the processes that ended without a word a signal ended before any failed, in words; empty if none."""
    first = min((failure.timestamp for failure in failures.values()), default=0)
    # torchrun sees at once what ends within a tenth of a second, and then ends the others, by SIGTERM first
    by_torchrun = any(failure.exitcode != -signal.SIGTERM for failure in failures.values())
    for rank, failure in sorted(wordless.items()):
        if failure.exitcode == -signal.SIGTERM and by_torchrun:
            continue
        if failure.exitcode < 0 and failure.timestamp <= first + 1:
            return f"process {rank} was ended by {failure.signal_name()} (signal {-failure.exitcode})"
    return ""


def leave_group() -> None:
    """Leave the process group: its threads must end before the interpreter does, which would abort otherwise."""
    distributed = sys.modules.get("torch.distributed")  # not imported here: most commands need no torch
    if joined() and distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def report_exit(code: int, run: Path | None = None) -> None:
    """Leave how this process ends for the one that launched it: its exit code, and a run that lost another process."""
    if is_child():
        with open(os.environ[_STATUS], "a", encoding="utf-8") as stream:
            stream.write(f"{os.environ['RANK']} {code} {run or ''}\n")


def tie_to_launcher() -> None:
    """Have the kernel end this process when its launcher dies, however that happens.

    The launcher is the parent where rmtrain, torchrun, accelerate or DeepSpeed has started this process. The daemon of
    Slurm's srun ends its tasks itself; and where RANK was set by hand, the parent may be a shell that is left.
    """
    if not any(name in os.environ for name in _LAUNCHERS):
        return
    launcher = int(os.environ.get(_LAUNCHER, os.getppid()))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)
