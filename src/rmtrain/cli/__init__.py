"""The command line: parse, call, render. The only room that prints or exits."""

import os
import sys

# glibc keeps small freed blocks in caches and does not merge them with their neighbours, so the memory of freed tensors
# stays fragmented. Without these caches a training step on a CPU takes a third less memory. Up to 128 MiB that are
# free at the end of the heap are kept: else they go back to the system and are asked for again many times a step.
_TUNABLES = (
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:"
    f"glibc.malloc.mmap_threshold={32 << 20}:glibc.malloc.trim_threshold={128 << 20}"  # bytes
)
_GPUS = ("/dev/nvidiactl", "/dev/kfd")


def main() -> None:
    """Entry point of `rmtrain`: runs a command and exits with its code."""
    if sys.argv[1:2] == ["train"] and not any(map(os.path.exists, _GPUS)):
        _start_again_with_tunables()
    from rmtrain.cli.app import run

    sys.exit(run(sys.argv[1:]))


def _start_again_with_tunables() -> None:
    """Restart this process with settings that glibc reads only at start-up; settings of the user are kept."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
