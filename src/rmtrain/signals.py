"""The signals that stop a command: Ctrl-C, SIGTERM, and SIGUSR1 as Slurm sends it before a time limit."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ECHO_SECONDS = 1.0  # Slurm signals every process of a job, and a launcher that is among them passes the signal on


@contextlib.contextmanager
def on_signal(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at the first signal; a second one ends the process at once, but for an echo of the first.

    Leaving waits until no echo of a signal that was heard can come any more. For the main thread.
    """
    heard: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not heard:
            heard.append(now)
            act()
        elif now - heard[0] > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        if heard:
            time.sleep(max(0.0, heard[0] + _ECHO_SECONDS - time.monotonic()))
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt
