"""This process among the others, and its device."""

import os
import re
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce

from rmtrain.errors import RunFailedError
from rmtrain.model.host_memory import host_memory, resident_memory

Value = TypeVar("Value")

# in the errors of gloo and NCCL
_GONE = re.compile("closed by peer|reset by peer|remote process|broken pipe", re.IGNORECASE)


def process_state(timeout_minutes: float = 30.0) -> PartialState:
    """Join the process group that the launcher set up, or stand alone; the first call of a process decides.

    It also sets how long a collective may wait, since the Trainer's own option is ignored on the CPU.
    """
    arguments: dict[str, Any] = {}
    if not torch.cuda.is_available():
        arguments["cpu"] = True  # left out, accelerate would stand alone even under a launcher
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        arguments["timeout"] = timedelta(minutes=timeout_minutes)
        if not torch.cuda.is_available():
            arguments["backend"] = "gloo"
    return PartialState(**arguments)


def gather_values(values: list[Value]) -> list[Value]:
    """The values of all processes, in the order of their ranks."""
    process_state()  # accelerate's own function would stand alone where it is the first to ask
    return list(gather_object(values))


def value_of_main(value: Value) -> Value:
    """The main process's value, on every process."""
    process_state()
    values = [value]
    broadcast_object_list(values)
    return values[0]


def any_process(flag: bool) -> bool:
    """Whether a flag is set on one process at least; all processes call it."""
    state = process_state()
    if state.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=state.device), "sum") > 0)


def require_agreement(value: str, what: str) -> None:
    """Raise on all processes where they don't have the same value, such as a fingerprint of what each has read.

    Raises:
        RunFailedError: another process has another value.
    """
    if len(set(gather_values([value]))) > 1:
        raise RunFailedError(
            f"the processes have read different {what}", "a file has changed while it was read: run the command again"
        )


def lost_another(error: BaseException) -> bool:
    """Whether a collective failed because another process of the group has ended."""
    return isinstance(error, RuntimeError) and _GONE.search(str(error)) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def processes_here() -> int:
    """Processes of this job on this machine, as the launcher says; without one, all of the job's."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", process_state().num_processes))


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take: of the GPU, or its share of the host's."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, _ = torch.cuda.mem_get_info(device)
        return free + cached
    processes = processes_here()
    in_container = host_memory() // processes - resident_memory()  # its limit is not in what is available
    return int(max(0, min(psutil.virtual_memory().available // processes, in_container)))
