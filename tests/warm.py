"""Launched processes without their imports: a server that has imported everything forks one for each.

`run` and `Popen` are those of subprocess, for command lines that start this Python. A process of its own for each
command, its arguments, environment, folder, files, exit code and parent are as ever; so are the processes that torchrun
starts in it, which are forked too. Only the seconds of importing torch again and again are left out. A command line
that the server can't stand for, since its environment differs in what libraries read when they are imported, is
started as usual.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "OMP_", "GLIBC_", "DS_")
READ_LATER = ("HF_TOKEN",)
FLAGS = ("-u", "-P")
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_asking = threading.Lock()
_start_as_usual = subprocess._fork_exec  # type: ignore[attr-defined]


def run(arguments: list[str], **options: Any) -> "subprocess.CompletedProcess[Any]":
    with starting():
        return subprocess.run(arguments, **options)


def Popen(arguments: list[str], **options: Any) -> "subprocess.Popen[Any]":  # noqa: N802
    with starting():
        return subprocess.Popen(arguments, **options)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Have the server start also what other code starts within the block, in any thread."""
    with mock.patch.object(subprocess, "_fork_exec", _ask):
        yield


def _own(arguments: list[str]) -> list[str] | None:
    """A command line after this Python and its flags; None if it starts something else."""
    words = [os.fsdecode(word) for word in arguments]
    if words[0] != sys.executable:
        return None
    while words[1:] and words[1] in FLAGS:
        del words[1]
    return words[1:]


# The side of the test


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """A connection to the server, and the environment that it was started in."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    paths, environment = [*sys.path, str(Path(__file__).parent / "training")], dict(os.environ)
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, str(its.fileno())],
        pass_fds=[its.fileno()],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
    )
    its.close()
    atexit.register(server.wait)
    atexit.register(mine.close)
    assert mine.recv(10) == b"ready"
    return mine, environment


def _at_import(environment: dict[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT) and name not in READ_LATER
    }


def _ask(arguments: list[str], executables: Any, close: Any, keep: Any, cwd: Any, env: Any, *rest: Any) -> int:
    """In place of fork and exec: have the server fork, and adopt the process."""
    environment = dict(os.environ)
    if env is not None:
        environment = {name: value for name, _, value in (os.fsdecode(pair).partition("=") for pair in env)}
    words = _own(arguments)
    if words is None or set(keep) != {rest[7]} or _at_import(environment) != _at_import(_server()[1]):
        return int(_start_as_usual(arguments, executables, close, keep, cwd, env, *rest))
    p2cread, _, _, c2pwrite, _, errwrite, _, _, _, new_session = rest[:10]
    files = [given if given >= 0 else own for own, given in enumerate((p2cread, c2pwrite, errwrite))]
    job = {"words": words, "cwd": os.fsdecode(cwd or os.getcwd()), "env": environment, "session": bool(new_session)}
    connection, _ = _server()
    with _asking:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # whose parent ends is then this process's child
        try:
            socket.send_fds(connection, [json.dumps(job).encode()], files)
            return int(connection.recv(20))
        finally:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


# The side of the server


def _serve(connection: socket.socket) -> None:
    connection.send(b"ready")
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            return
        read, write = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                connection.close()
                _become(json.loads(message), files)
            os.write(write, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        connection.send(os.read(read, 20))
        for descriptor in (read, write, *files):
            os.close(descriptor)


def _fork_worker(arguments: list[str], executables: Any, close: Any, keep: Any, cwd: Any, env: Any, *rest: Any) -> int:
    """In place of fork and exec, in what the server forked: torchrun's workers."""
    words = _own(arguments)
    if words is None or env is None:
        return int(_start_as_usual(arguments, executables, close, keep, cwd, env, *rest))
    if pid := os.fork():
        return pid
    atexit._clear()  # what its parent has to tidy up
    p2cread, _, _, c2pwrite, _, errwrite, _, _, _, new_session = rest[:10]
    files = [given if given >= 0 else own for own, given in enumerate((p2cread, c2pwrite, errwrite))]
    pairs = (os.fsdecode(pair).partition("=") for pair in env)
    environment = {name: value for name, _, value in pairs}
    place = os.fsdecode(cwd or os.getcwd())
    _become({"words": words, "cwd": place, "env": environment, "session": bool(new_session)}, files)


def _become(job: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the process that this command line starts, from its first instruction to its exit code."""
    code: Any = 1
    try:
        gc.freeze()
        for own, given in enumerate(files):
            if given != own:
                os.dup2(given, own)
                os.close(given)
        _close_on_exec()
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        if job["session"]:
            os.setsid()
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"], GLIBC_TUNABLES=TUNABLES)
        sys.path[:0] = [each for each in job["env"].get("PYTHONPATH", "").split(os.pathsep) if each not in sys.path]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        subprocess._fork_exec = _fork_worker  # type: ignore[attr-defined]
        _execute(job["words"])
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does when it ends
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _close_on_exec() -> None:
    """Close the files that a process started by exec would not have."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                os.close(int(name))


def _execute(words: list[str]) -> None:
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _import_all() -> str:
    import conftest  # noqa: F401  # first: it has the shapes in annotations checked
    from training_cases import import_all

    from rmtrain.cli import _TUNABLES, app

    app.quiet_libraries()
    for name in ("rmtrain.evaluation.export", "rmtrain.reporting.report", "torch.distributed.run"):
        __import__(name)
    import_all()
    return _TUNABLES


if __name__ == "__main__":
    TUNABLES = _import_all()
    _serve(socket.socket(fileno=int(sys.argv[1])))
