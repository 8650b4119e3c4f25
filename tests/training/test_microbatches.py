"""The data loader's workers end with the run, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def start(base: Path, folder: Path, end: str) -> "subprocess.Popen[str]":
    """A process of its own: what an interpreter does when it exits is part of the matter."""
    return subprocess.Popen(
        [sys.executable, __file__, str(base), str(folder), end],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(("end", "code"), [("raises", 1), ("is signalled", 130), ("is killed", -signal.SIGKILL)])
def test_workers_end_with_the_run(base: Path, tmp_path: Path, end: str, code: int) -> None:
    with start(base, tmp_path, end) as process:
        assert process.stdout is not None
        told = process.stdout.readline().split()
        assert len(told) == 2, process.stderr.read() if process.stderr else ""
        if end == "is killed":
            process.kill()
        elif end == "is signalled":
            os.killpg(process.pid, signal.SIGTERM)  # the workers hear it too
        try:
            _, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == code, errors
    assert "Exception ignored" not in errors
    until = time.monotonic() + 5
    while any(alive(int(pid)) for pid in told) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(int(pid)) for pid in told)


def _main(base: Path, folder: Path, end: str) -> None:
    import multiprocessing

    from training_cases import at_step, run

    from rmtrain.errors import RmtrainError
    from rmtrain.training import train as module

    plain = module.training_arguments

    def arguments(*given):  # type: ignore[no-untyped-def]
        made = plain(*given)
        made.dataloader_num_workers = 2
        return made

    def tell() -> None:
        print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
        if end == "raises":
            raise ZeroDivisionError("by nought")
        time.sleep(2)  # for the signal

    module.training_arguments = arguments
    at_step(2, tell)
    try:
        run(base, folder)
    except RmtrainError as error:
        failed = error  # kept, with all that its traceback holds, as by an interpreter that prints it
        sys.exit(failed.exit_code)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
