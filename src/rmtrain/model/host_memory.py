"""The memory of this machine: what a job may take, and what this process holds."""

import contextlib
import ctypes
import functools
import os
from pathlib import Path

_SMALL = range(24, 97, 16)  # bytes that fit into what is left beside a block that starts at a multiple of 64
_KEPT_SMALL = 8192  # free blocks of each of these sizes: more than one pass of a deep model takes


def host_memory() -> int:
    """Bytes of memory that this machine has, or that its job or container may take if that is less."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *cgroup_limits(Path("/"))])


def cgroup_limits(root: Path) -> list[int]:
    """Bytes that this process's control groups allow, its own and those around it, of both versions (cgroups(7))."""
    limits = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            mounted = root / "sys/fs/cgroup" / top
            group = mounted / place.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    limits.append(int((folder / name).read_text(encoding="ascii")))
                if folder == mounted:
                    break
    return limits


def resident_memory() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache  # once a process
def keep_tensors_whole() -> None:
    """Give small objects blocks of their own, so that glibc's heap can use a freed tensor's place again.

    A tensor's data starts at a multiple of 64 bytes, so glibc cuts its block out of one that is up to 96 bytes longer.
    A small object may take the piece that was cut off and outlive the tensor. The tensor's place is then too short for
    a tensor of the same size, and the heap grows. So this leaves free blocks of these sizes that can't merge with their
    neighbours; glibc prefers the oldest free block that fits. Without the settings of `rmtrain train` for glibc
    (GLIBC_TUNABLES), small blocks come from caches, and this does nothing.
    """
    if "glibc.malloc.tcache_count=0" not in os.environ.get("GLIBC_TUNABLES", ""):
        return
    libc = ctypes.CDLL(None)
    allocate, free = libc.malloc, libc.free
    allocate.restype, allocate.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    for size in _SMALL:
        blocks = [allocate(size) for _ in range(2 * _KEPT_SMALL)]
        for block in blocks[::2]:  # those between keep the free ones from becoming one
            free(block)
