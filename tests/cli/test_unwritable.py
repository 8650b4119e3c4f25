"""What the system does not let us write: a named file, why, what to do, and nothing left half-written."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bench_cases import write
from conftest import write_pairs

from rmtrain.cli.app import run as rmtrain
from rmtrain.data import token_cache

pytestmark = pytest.mark.usefixtures("inside")
RECIPE = """
model: {{name: {base}, dtype: float32}}
lora: {{rank: 2}}
data: {{source: {{train: pairs.jsonl}}, max_length: 64}}
optim: {{global_batch_size: 4, max_steps: 2}}
evaluation: {{splits: []}}
"""
PARTS = ".out.jsonl.parts"  # the folder of what `score` has finished
COMMANDS = {
    "score": ["score", "pairs.jsonl", "--ckpt", "rm", "--output", "out.jsonl"],
    "eval": ["eval", "--ckpt", "rm", "--data", "pairs.jsonl"],
    "rewardbench": ["rewardbench", "--ckpt", "rm", "--data", "bench.jsonl", "--output", "flat.json"],
    "data": ["data", "recipe.yaml"],
    "recipes": ["recipes", "copy", "quickstart"],
    "leaderboard": ["leaderboard", "--plot", "plot.png"],
    "export": ["export", "--ckpt", "adapter", "--output", "exported"],
    "train": ["train", "recipe.yaml"],
}


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter."""
    folder = tmp_path_factory.mktemp("trained")
    write_pairs(folder / "pairs.jsonl", 12)
    source = f"data.source={{train: {folder / 'pairs.jsonl'}}}"
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base))
    assert rmtrain(["train", str(folder / "recipe.yaml"), source, f"run.folder={folder / 'runs'}"]) == 0
    return next((folder / "runs").glob("*/final"))


@pytest.fixture(autouse=True)
def _there(models: Path, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    monkeypatch.setenv("RMTRAIN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(models / "rm", tmp_path / "rm")
    write_pairs(tmp_path / "pairs.jsonl", 12)
    write("rewardbench-1", tmp_path / "bench.jsonl")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=base))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files() -> set[str]:
    """All files here but the cache's, its locks and those of the run folder's past."""
    found = {str(path) for path in Path().rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock")}


@pytest.mark.parametrize("kib", [1, 30])
@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow) if name == "train" else name for name in COMMANDS]
)
def test_a_limit_on_the_size_of_files_is_named_and_nothing_half_written_is_left(
    command: str, kib: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files()
    with files_of_at_most(kib * 1024):
        code = rmtrain(COMMANDS[command])
    told = capsys.readouterr().err
    left = {name for name in files() - before if not name.startswith(("runs/", "cache/"))}
    if code == 0:
        assert kib > 0
        return
    assert code in (1, 2)
    assert "can't be written" in told or "could not be written" in told
    assert "ulimit -f" in told
    assert "Errno" not in told
    assert "fault in rmtrain" not in told
    assert not [name for name in files() if name.endswith(".tmp")]
    for name in left:  # whole, or said
        assert (
            name in told
            or name.endswith((".rows.jsonl", ".json"))
            or (name.startswith(PARTS) and f"kept in {PARTS}" in told)
        )
    for manifest in Path("runs").glob("[!.]*/manifest.json"):
        assert json.loads(manifest.read_text())["state"] == "failed"
    assert rmtrain(COMMANDS[command]) == 0  # the second try is not in the way of what the first left


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_named_with_what_is_free(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files()
    monkeypatch.setattr(os, "fsync", _refuse)
    monkeypatch.setattr(token_cache.Path, "write_text", _refuse)
    assert rmtrain(COMMANDS[command]) in (1, 2)
    told = capsys.readouterr().err
    assert "the disk is full" in told
    assert " free" in told
    assert "Errno" not in told
    left = {name for name in files() - before if not name.startswith("cache/")}
    assert f"kept in {PARTS}" in told or not {name for name in left if name.startswith(PARTS)}
    assert {name for name in left if not name.startswith(PARTS)} <= {".tmp"}
    assert not Path("exported").exists()


def test_a_manifest_says_that_its_run_failed_where_there_is_no_room_to_say_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmtrain.training import callbacks

    def fill(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(os, "fsync", _refuse)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callbacks.MetricsLog, "on_log", fill)
    assert rmtrain(COMMANDS["train"]) == 1
    (manifest,) = Path("runs").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["state"] == "failed"
    told = capsys.readouterr().err
    assert "can't be written: the disk is full" in told
    assert f"resume with: rmtrain train --resume {manifest.parent}" in told


def test_a_small_disk_loses_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode
    except OSError:
        done = 1
    if done:
        pytest.skip("no small file system can be mounted here")
    try:
        output = place / "out.jsonl"
        command = [*COMMANDS["score"][:-1], str(output)]
        filler = place / "filler"
        filler.write_bytes(b"x" * 60_000)
        assert rmtrain(command) == 1
        told = capsys.readouterr().err
        assert f"{place}" in told
        assert "the disk is full" in told
        assert [path.name for path in place.iterdir() if not path.name.endswith(".partial")] == ["filler"]
        assert rmtrain(["export", "--ckpt", "adapter", "--output", str(place / "exported")]) == 1
        assert "the export takes" in capsys.readouterr().err
        filler.unlink()
        assert rmtrain(command) == 0
        assert [path.name for path in place.iterdir()] == ["out.jsonl"]
    finally:
        subprocess.run(["umount", str(place)], check=False)


def test_standard_output_without_room_ends_in_words() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        import sys

        done = subprocess.run(
            [sys.executable, "-m", "rmtrain", "recipes", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output, or another file: the disk is full")
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    "command", [("average", "a", "b"), ("export", "--ckpt", "a"), ("curate", "a.yaml", "--judge", "a"), ("select", "a")]
)
def test_an_output_in_a_folder_that_is_missing_is_refused(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rmtrain([*command, "--output", "missing/out.jsonl"]) == 2
    assert "missing: no such folder\n  hint: make it, or choose another" in capsys.readouterr().err
    assert not Path("missing").exists()
