"""Several processes for one command: started here through torchrun, or joined where a launcher has started them."""

import ctypes
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import typer

from rmtrain.errors import InputError, RunFailedError

_STATUS = "RMTRAIN_STATUS"  # file in which the processes of a launch leave their exit code, since torchrun makes it 1
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


def processes_wanted(number: int | None) -> int:
    """How many processes to start: the number asked for, else one a GPU, else one.

    Raises:
        InputError: fewer than one, or more than there are GPUs.
    """
    import torch

    if number is not None and number < 1:
        raise InputError(f"--num-processes {number}: at least 1 is needed")
    devices = torch.cuda.device_count()
    if number is not None and 0 < devices < number:
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
    """Run this very command line on `number` processes of this machine; returns its exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        os.environ[_STATUS] = str(status)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_SECONDS)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
        signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
        options = ["--standalone", f"--nproc-per-node={number}", f"--signals-to-handle={signals}"]
        try:
            torchrun([*options, "-m", "rmtrain", *sys.argv[1:]])
        except (ChildFailedError, SignalException, SystemExit):
            pass
        finally:
            del os.environ[_STATUS]
        if not status.exists():
            raise RunFailedError("a process ended without a word (killed, or out of memory)", "see the lines above")
        return min(int(code) for code in status.read_text().split())


def leave_group() -> None:
    """Leave the process group: its threads must end before the interpreter does, which would abort otherwise."""
    distributed = sys.modules.get("torch.distributed")  # not imported here: most commands need no torch
    if joined() and distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def report_exit(code: int) -> None:
    """Leave the exit code for the process that launched this one."""
    if is_child():
        with open(os.environ[_STATUS], "a", encoding="ascii") as stream:
            stream.write(f"{code}\n")


def tie_to_parent() -> None:
    """Have the kernel end this process when its parent dies, however that happens."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)
