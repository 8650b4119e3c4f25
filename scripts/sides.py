"""What the benchmarks share: sides that take turns, each in a fresh process, and their figures with n and spread."""

import json
import multiprocessing
import os
import platform
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Side = Callable[[dict[str, Any]], Result]  # importable, since it runs in a fresh process


def take_turns(sides: Mapping[str, Side], settings: dict[str, Any], repeats: int) -> dict[str, list[Result]]:
    """Run the sides one after the other, `repeats` times over, so that a change of the machine meets all alike."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name, side in sides.items():
            results[name].append(alone(side, settings))
            print(f"run {turn + 1} of {repeats}: {name} done", flush=True)
    return results


def alone(side: Side, settings: dict[str, Any]) -> Result:
    """Run a side in a fresh process, whose peak memory is then its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_quiet) as pool:
        return pool.submit(side, settings).result()


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def peak_bytes() -> int:
    """Peak of this process: of tensors on the GPU where there is one, else resident on the host."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_seconds(process: int) -> float:
    """Seconds of the processor that a running process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, with their number."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def shown(found: Mapping[str, float], digits: int = 2) -> str:
    """`1.23 (1.20 to 1.31, n = 3)`."""
    low, high = (f"{found[end]:,.{digits}f}" for end in ("min", "max"))
    return f"{found['median']:,.{digits}f} ({low} to {high}, n = {found['n']:.0f})"


def ratios(fast: Sequence[float], slow: Sequence[float]) -> dict[str, float]:
    """How many times as much `fast` is, run by run."""
    return spread([a / b for a, b in zip(fast, slow, strict=True)])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": None if gpu else os.getloadavg()[0],  # above the threads, something else was running
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_json(path: Path | None, **content: Any) -> None:
    """The figures and all that they were made of."""
    if path is not None:
        path.write_text(json.dumps(content, default=str, indent=2) + "\n")
        print(f"written: {path}")
