"""The command line: parse, call, render. The only room that prints or exits."""

import os
import sys

# glibc keeps small freed blocks in caches and does not merge them with their neighbours, so the memory of freed tensors
# stays fragmented. Without these caches a training step on a CPU takes a third less memory.
_TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
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
