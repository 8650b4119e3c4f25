"""Work on the parts of a sequence of groups, in several processes where it is long."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import RunFailedError

Result = TypeVar("Result")
Work = Callable[[Sequence[PreferenceGroup]], Result]

PART = 1000  # groups that are worked on at once
_PAYS = 20_000  # groups for which it pays to start a process, which takes about a second and 100 MB
_MOST = 8  # processes: beyond that, this one is busy with their results


def in_parts(work: Work[Result], groups: Sequence[PreferenceGroup]) -> Iterator[Result]:
    """The results of `work` for every `PART` groups, in order; they do not depend on the number of processes.

    Several processes work on the groups of a table, which each of them maps into memory; `work` is pickled. They are
    started afresh rather than forked, since the threads of a tokenizer, of Arrow or of torch do not survive a fork.

    Raises:
        RunFailedError: a process was ended from outside. And whatever `work` raises.
    """
    parts = [slice(start, start + PART) for start in range(0, len(groups), PART)]
    if (processes := processes_for(groups)) == 1:
        yield from (work(groups[part]) for part in parts)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (work, groups))
    try:
        yield from pool.map(_work_on, parts)
    except BrokenProcessPool as error:
        raise RunFailedError(
            f"one of {processes} processes that tokenise the data was ended from outside",
            "if memory was short, OMP_NUM_THREADS=1 lets one process do the work",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def processes_for(groups: Sequence[PreferenceGroup]) -> int:
    """The number of processes for groups: the cores, or OMP_NUM_THREADS, but at most one for each `_PAYS` groups of a
    table.

    Processes on one machine share its cores: torchrun sets OMP_NUM_THREADS=1 for its processes, which says nothing of
    the cores.
    """
    if getattr(groups, "name", None) is None:  # in memory, where each process would need its own copy
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local, threads = (os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"))
    shared = local.isdigit() and int(local) > 1
    most = cores // int(local) if shared else int(threads) if threads.isdigit() else cores
    return max(1, min(most, cores, _MOST, len(groups) // _PAYS))


_given: list[Any] = []  # of a process of `in_parts`: the work and the groups


def _begin(work: Work[Any], groups: Sequence[PreferenceGroup]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes fill the cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _given[:] = work, groups


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _work_on(part: slice) -> Any:
    work, groups = _given
    return work(groups[part])
