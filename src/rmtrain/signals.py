"""The signals that stop a command: Ctrl-C, SIGTERM, SIGUSR1, which Slurm sends before a time limit, and SIGHUP."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_ECHO_SECONDS = 1.0  # Slurm signals all processes of a job, and a launcher forwards the signal to its workers


def handled() -> list[signal.Signals]:
    """The signals that stop this command. SIGHUP, which a terminal sends when it closes, is not among them under nohup.

    The others are handled even where they are ignored: a shell ignores Ctrl-C for a command in the background, and
    `trap '' USR1` in a batch script is meant for the script alone.
    """
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def on_signal(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at the first signal; a second one ends the process at once, unless it echoes the first.

    After a signal, leaving waits until no echo can arrive. Only for the main thread.
    """
    received: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not received:
            received.append(now)
            act()
        elif now - received[0] > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, handle) for number in handled()}
    try:
        yield
    finally:
        if received:
            time.sleep(max(0.0, received[0] + _ECHO_SECONDS - time.monotonic()))
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt() -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt
