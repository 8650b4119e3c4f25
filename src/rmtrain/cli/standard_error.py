"""Standard error whose reader may end before the command does."""

import contextlib
import io
import sys


class StandardError(io.TextIOWrapper):
    """What can't be written is left out, and the work goes on: a training must not end with what shows its progress.

    The reader ends with a terminal that closes, with `| head`, and with `| tee` under Ctrl-C, which ends `tee` at once
    while the command still writes a checkpoint.
    """

    def write(self, text: str, /) -> int:
        """Write, or leave out."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush what can be written."""
        with contextlib.suppress(OSError):
            super().flush()


_KEPT: list[io.TextIOWrapper] = []  # the streams below: one that nothing refers to would close the file that they share


def outlive_reader() -> None:
    """Put such a stream in the place of standard error, unless something else than Python's own is there."""
    stream = sys.stderr
    if type(stream) is io.TextIOWrapper:
        _KEPT.append(stream)
        sys.stderr = StandardError(stream.buffer, stream.encoding, stream.errors, line_buffering=True)
        _KEPT.append(sys.stderr)
