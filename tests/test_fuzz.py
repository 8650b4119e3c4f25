"""Hostile input through the real entry point: whatever a file or argument holds, the answer is a plain one.

`RMTRAIN_FUZZ=5000` runs so many cases in place of 60; `RMTRAIN_FUZZ_CASE="rows 17"` runs one.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
import pytest
from bench_cases import write
from conftest import write_base, write_pairs
from fuzz_cases import KINDS, SECRET, Case, draw
from reporting.run_cases import write_benchmark

from rmtrain.cli.app import run as rmtrain

RECIPE = """
model: {name: base, dtype: float32}
lora: {rank: 2}
data:
  source: {train: train.jsonl, validation: rows.jsonl, test: rows.jsonl}
  max_length: 64
optim: {global_batch_size: 4, tokens_per_microbatch: 600}
run: {folder: runs}
"""
COUNT = int(os.environ.get("RMTRAIN_FUZZ", "60"))
SECONDS = 20  # a case may take, on a busy machine
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class HangError(BaseException):
    """A case took too long."""


class Watch:
    """Paths that this process opens to write, while it is on; an audit hook can't be taken away again."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & WRITES:
            self.seen.append(os.path.abspath(os.fsdecode(arguments[0])))
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.symlink", "os.link"):
            self.seen += [os.path.abspath(os.fsdecode(a)) for a in arguments[:2] if isinstance(a, (str, bytes))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a base, rows, a recipe and two runs of it, and a copy of it as it was."""
    folder = tmp_path_factory.mktemp("fuzz") / "world"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    write_base(folder / "base")
    write_pairs(folder / "train.jsonl", 8, 1)
    write_pairs(folder / "rows.jsonl", 4)
    write("rewardbench-1", folder / "bench.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "pairs.csv").write_text("prompt,chosen,rejected\nw1,w2,w3\n")
    (folder / "published.json").write_text(json.dumps({"model": "org/m", "hep-go": 0.5}))
    (folder / "out").mkdir()
    assert rmtrain(["train", "recipe.yaml"]) == 0
    (run,) = (folder / "runs").iterdir()
    write_benchmark(run)
    run.rename(folder / "runs" / "r")
    shutil.copytree(folder / "runs" / "r", folder / "runs" / "s")
    shutil.copytree(folder, folder.with_name("whole"), symlinks=True)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*files, *folders]:
            path = os.path.join(place, name)
            kept = os.lstat(path)
            is_folder = os.path.isdir(path) and not os.path.islink(path)
            found[os.path.relpath(path, folder)] = (
                (kept.st_mode,) if is_folder else (kept.st_mode, kept.st_size, kept.st_mtime_ns, kept.st_ino)
            )
    return found


def run(case: Case, world: Path, watch: Watch) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""

    def stop(*_: Any) -> None:
        raise HangError

    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    watch.seen.clear()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            watch.on = True
            code = rmtrain(case.argv)
    finally:
        watch.on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, out.getvalue(), err.getvalue()


def faults(case: Case, world: Path, watch: Watch) -> list[str]:
    """What is wrong with how a command ended."""
    before = state(world)
    try:
        code, out, err = run(case, world, watch)
    except HangError:
        return [f"no end after {SECONDS} s"]
    except BaseException as error:
        return [f"raises {type(error).__name__}: {error}"]
    found = []
    if code not in (0, 1, 2):
        found.append(f"exit code {code}")
    if code and not err:
        found.append("no word about it")
    found += [f"shows {word!r}" for word in ("fault in rmtrain", "Traceback", "\x1b", SECRET) if word in out + err]
    if "--json" in case.argv and code == 0:
        try:
            json.loads(out)
        except ValueError:
            found.append("standard output is not one JSON document")
    after = state(world)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    found += [
        f"changed {name}" for name in sorted(changed) if not f"{name}/".startswith(case.outputs) and name != "results"
    ]
    mine = (str(world), os.environ["RMTRAIN_CACHE"], os.environ[measured.FOLDER], "/dev/null")
    found += [f"writes {path}" for path in watch.seen if not path.startswith(mine)]
    return [*found, *err.splitlines()[-4:]] if found else []


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_input_the_answer_is_a_plain_one(kind: str, world: Path, watch: Watch) -> None:
    wanted = os.environ.get("RMTRAIN_FUZZ_CASE", "").split()
    seeds = range(COUNT // len(KINDS)) if not wanted else [int(wanted[1])] if wanted[0] == kind else []
    failed = []
    for seed in seeds:
        case = draw(kind, seed, world)
        if found := faults(case, world, watch):
            failed.append(f"{kind} {seed}: {shlex.join(case.argv)[:300]} ({case.changed})\n    " + "\n    ".join(found))
        shutil.rmtree(world)
        shutil.copytree(world.with_name("whole"), world, symlinks=True)
        os.chdir(world)
    assert not failed, f"{len(failed)} of {len(seeds)}:\n" + "\n".join(failed)
