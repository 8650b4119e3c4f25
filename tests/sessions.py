"""Commands of rmtrain, one after another, in one process of their own: libraries read its environment when imported."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Session:
    """A process that runs commands as `rmtrain` does; its working folder is that of its start.

    Args:
        environment: of the process, for example that of a hub.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its input, at which it ends, and waits for it
            pass

    def run(self, *arguments: str | Path, **environment: str | None) -> SimpleNamespace:
        """Run one command; returns its `returncode`, `stdout` and `stderr`.

        Args:
            arguments: of the command.
            environment: variables that change from here on; None unsets one.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([[*map(str, arguments)], environment]), file=self._process.stdin, flush=True)
        return SimpleNamespace(**json.loads(self._process.stdout.readline()))


def _run(arguments: list[str], environment: dict[str, str | None]) -> dict[str, Any]:
    from rmtrain.cli.app import run

    for name, value in environment.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value is not None else {})
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = run(arguments)
    return {"returncode": code, "stdout": output.getvalue(), "stderr": errors.getvalue()}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print there is no answer
    for line in sys.stdin:
        print(json.dumps(_run(*json.loads(line))), file=answers, flush=True)
