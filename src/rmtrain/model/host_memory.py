"""The memory of this machine: what a job may take, and what this process holds."""

import contextlib
import os
from pathlib import Path


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
