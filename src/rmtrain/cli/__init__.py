"""The command line: parse, call, render. The only room that prints or exits."""

import os
import sys

# glibc's allocator can't reuse freed tensors: it keeps the crumbs beside an aligned block in caches of small blocks, so
# the block never becomes whole again. Without these caches a training step on a CPU takes two thirds of the memory.
_TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
_GPUS = ("/dev/nvidiactl", "/dev/kfd")


def main() -> None:
    """Entry point of `rmtrain`: runs a command and exits with its code."""
    if sys.argv[1:2] == ["train"] and not any(map(os.path.exists, _GPUS)):
        _start_again_with_tunables()
    from rmtrain.cli.app import run

    sys.exit(run(sys.argv[1:]))


def _start_again_with_tunables() -> None:
    """Start this process again with the allocator's settings, which are read at the start; a user's own stay."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
