"""Signals that stop a command, wherever it is."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ECHO_SECONDS = 1.0  # a launcher passes on what its processes may have heard themselves


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise KeyboardInterrupt as Ctrl-C does, which training's steps hold back until they end.

    A second signal ends the process at once, but for an echo of the first.
    """
    heard: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not heard:
            heard.append(now)
            raise KeyboardInterrupt
        if now - heard[0] > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
