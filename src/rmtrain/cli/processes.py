"""Several processes for one command: started here through torchrun, or joined where a launcher has started them."""

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path

import typer

from rmtrain.errors import InputError, RunFailedError

_STATUS = "RMTRAIN_STATUS"  # file in which the processes of a launch leave their exit code, since torchrun makes it 1
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def is_child() -> bool:
    """Whether this process was started by rmtrain's own launch."""
    return _STATUS in os.environ


def joined() -> bool:
    """Whether a launcher (torchrun, accelerate, DeepSpeed, Slurm through torchrun) has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


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
