"""A checkpoint is whole or it is none, and no fault leaves a run without a whole one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import cut, flipped, missing

from rmtrain.errors import CheckpointError
from rmtrain.training.checkpointing import (
    MANIFEST,
    STAGING,
    commit,
    newest_valid,
    numbered,
    rotate,
    state_files,
    verify,
)

FILES = {
    "adapter_model.safetensors": bytes(range(256)) * 4,
    "optimizer.pt": b"\x01optimizer" * 50,
    "scheduler.pt": b"scheduler",
    "rng_state.pth": b"rng" * 9,
    "trainer_state.json": b'{"global_step": 1}',
    "global_step1/rank_0.pt": b"shard" * 30,
}


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Kills and damage are of processes and files; a disk's own cache is out of a test's reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def write(root: Path, step: int, files: dict[str, bytes] | None = None) -> Path:
    """Stage and commit a checkpoint as the trainer does."""
    staged = root / STAGING / f"checkpoint-{step}"
    for name, content in (files or FILES).items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_bytes(content)
    target = root / f"checkpoint-{step}"
    commit(staged, target, {"step": step, "fingerprint": {"seed": 0}, "totals": {"steps": float(step)}})
    return target


def test_a_committed_checkpoint_verifies_and_says_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, 4)
    manifest = verify(path)
    assert manifest["step"] == 4
    assert manifest["fingerprint"] == {"seed": 0}
    assert set(manifest["files"]) == set(FILES)
    assert newest_valid(tmp_path) == (path, manifest, [])


SETS = {  # as the engines write them, on two processes
    "ddp": ["optimizer.pt"],
    "zero2": [
        "latest",
        "global_step4/mp_rank_00_model_states.pt",
        *(f"global_step4/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)),
    ],
    "zero3": [
        "latest",
        *(f"global_step4/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(2)),
        *(f"global_step4/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)),
    ],
    "fsdp": ["optimizer.bin", "pytorch_model_fsdp.bin"],
}
COMMON = ["trainer_state.json", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"]


@pytest.mark.parametrize("strategy", SETS)
def test_a_set_that_nothing_could_go_on_from_is_not_committed(tmp_path: Path, strategy: str) -> None:
    """Some of it lies on another machine's disk, say."""
    older, names = write(tmp_path, 3), [*COMMON, *SETS[strategy]]
    required = state_files(strategy, 2, scaled=False)
    staged, target = tmp_path / STAGING / "checkpoint-4", tmp_path / "checkpoint-4"
    for lost in [*names, None]:
        shutil.rmtree(staged, ignore_errors=True)
        for name in names:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(b"" if name == lost else b"state")
        if lost is None:
            commit(staged, target, {"step": 4}, required)
            break
        with pytest.raises(CheckpointError, match="is missing") as caught:
            commit(staged, target, {"step": 4}, required)
        assert Path(lost).match(caught.value.message.split()[0])
        assert "share" in caught.value.hint
        assert newest_valid(tmp_path).path == older
    assert newest_valid(tmp_path).path == target
    assert "scaler.pt" in state_files(strategy, 2, scaled=True)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [missing, empty, cut, zeroed, flipped, a_folder])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_damage_is_found_and_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    damage(newer / name)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        verify(newer)
    found = newest_valid(tmp_path)
    assert found.path == older
    ((passed, reason),) = found.passed_over
    assert passed == newer
    assert name in reason


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    path = write(tmp_path, 1, {"a": b"a"}) / MANIFEST
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        if _same(changed, content):  # a blank became another, say
            continue
        with pytest.raises(CheckpointError):
            verify(path.parent)


def _same(changed: bytes, content: bytes) -> bool:
    try:
        return bool(json.loads(changed) == json.loads(content))
    except ValueError:
        return False


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"files": {}}',
        '{"files": [], "digest": ""}',
        '{"files": {"a": 1}, "digest": ""}',
        '{"files": {"a": {"size": 1}}, "digest": ""}',
        "[" * 100_000,
    ],
)
def test_a_strange_manifest_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, 1)
    (path / MANIFEST).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        verify(path)


def test_a_manifest_beyond_all_bounds_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-4"
    path.mkdir()
    with open(path / MANIFEST, "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="the file has more than"):
        verify(path)
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)
    with pytest.raises(CheckpointError, match="a device or a pipe"):
        verify(path)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"a")
    path = write(tmp_path / "run", 1, {"a": b"a"})
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    del manifest["digest"]
    manifest["files"] = {"../../secret": manifest["files"]["a"]}
    shutil.rmtree(path)
    path.mkdir()
    from rmtrain.model.digests import digest_of_values

    (path / MANIFEST).write_text(json.dumps({**manifest, "digest": digest_of_values(manifest)}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="outside the folder"):
        verify(path)


def test_only_whole_checkpoints_of_this_run_are_taken(tmp_path: Path) -> None:
    whole = write(tmp_path, 3)
    elsewhere = write(tmp_path / "other", 90)
    (tmp_path / "checkpoint-90").symlink_to(elsewhere)
    (tmp_path / "checkpoint-91").mkdir()  # empty
    (tmp_path / "checkpoint-92").mkdir()
    shutil.copy(whole / "optimizer.pt", tmp_path / "checkpoint-92")  # partial
    shutil.copytree(whole, tmp_path / "checkpoint-93")  # another step's, under this name
    (tmp_path / "checkpoint-94").write_text("a file", encoding="utf-8")
    for name in ("checkpoint-95.tmp", "checkpoint-x", "checkpoint-", "xcheckpoint-96", "tmp-checkpoint-97"):
        shutil.copytree(whole, tmp_path / name)
    found = newest_valid(tmp_path)
    assert found.path == whole
    assert {path.name: reason.partition(": ")[2] for path, reason in found.passed_over} == {
        "checkpoint-93": "checkpoint.json is of step 3",
        "checkpoint-92": "no such file",
        "checkpoint-91": "no such file",
    }


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "none") == (None, {}, [])
    assert newest_valid(tmp_path) == (None, {}, [])


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    assert [step for step, _ in numbered(tmp_path)] == [9, 10, 100]


@pytest.mark.parametrize("place", ["checkpoint", "symlink", "file", "partial"])
def test_a_commit_replaces_whatever_has_its_name(tmp_path: Path, place: str) -> None:
    target = tmp_path / "checkpoint-2"
    if place == "checkpoint":
        write(tmp_path, 2)
    elif place == "symlink":
        target.symlink_to(write(tmp_path / "other", 2))
    elif place == "file":
        target.write_text("a file", encoding="utf-8")
    else:
        (target / "deep").mkdir(parents=True)
    for content in (b"new", b"newer"):  # a second time, over what the first may have left
        path = write(tmp_path, 2, {"weights": content})
        assert newest_valid(tmp_path).path == path
        assert (path / "weights").read_bytes() == content
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "other") == [STAGING, "checkpoint-2"]
    if place == "symlink":
        verify(tmp_path / "other" / "checkpoint-2")


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=8, unique=True),
    keep=st.integers(2, 4),
    best=st.none() | st.integers(1, 30),
    times=st.lists(st.integers(0, 10**9), min_size=8, max_size=8),
    newer=st.sets(st.integers(31, 40), max_size=3),
)
def test_rotation_keeps_the_newest_and_the_best(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[int],
    keep: int,
    best: int | None,
    times: list[int],
    newer: set[int],
) -> None:
    root = tmp_path_factory.mktemp("rotate")
    for step, modified in zip(steps, times, strict=False):
        os.utime(write(root, step, {"a": b"a"}), (modified, modified))
    for step in newer:  # passed over by the resumed run: damaged, say
        write(root, step, {"a": b"a"})
    foreign = [root / name for name in ("checkpoint-0", "checkpoint-1.tmp", "checkpoint-x", "notes")]
    for path in foreign:
        path.mkdir()
    rotate(root, max(steps), keep, [best] if best is not None else [])
    expected = {*sorted(steps)[-keep:], *newer} | ({best} & set(steps))
    assert {step for step, path in numbered(root) if (path / MANIFEST).exists()} == expected
    assert all(path.is_dir() for path in foreign)


def test_all_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename = os.rename

    def synced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def renamed(source: Path, target: Path) -> None:
        events.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    write(tmp_path, 1)
    *before, renamed_at, after = events
    assert renamed_at == "rename to checkpoint-1"
    assert after == tmp_path.name
    assert {*map(os.path.basename, FILES), "global_step1", "checkpoint-1"} <= set(before)


def test_rotation_counts_no_checkpoint_that_the_resumed_run_passed_over(tmp_path: Path) -> None:
    """Two damaged newer ones must not push the one just written out."""
    for step in (4, 8, 10, 6):
        write(tmp_path, step)
    for step in (8, 10):
        flipped(tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    rotate(tmp_path, 6, 2, [])
    assert newest_valid(tmp_path).path == tmp_path / "checkpoint-6"


def test_a_deletion_that_fails_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    monkeypatch.setattr(os, "rmdir", _refuse)
    rotate(tmp_path, 3, 2, [])
    assert newest_valid(tmp_path).path == tmp_path / "checkpoint-3"
    assert not (tmp_path / "checkpoint-1" / MANIFEST).exists()


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise PermissionError("refused")


def test_killed_anywhere_a_whole_checkpoint_is_left(tmp_path: Path) -> None:
    """The script below is killed before its k-th change to the disk, for every k."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "chmod")


def _scenario(root: Path) -> None:
    """Checkpoints with two kept, then the newest written again, as after a resume from the one before."""
    files = {"weights": b"weights", "global_step/shard": b"shard"}
    write(root, 1, files)
    (root / "first").touch()
    for step in (2, 3, 4):
        write(root, step, files)
        rotate(root, step, 2, [])
    write(root, 4, files)
    rotate(root, 4, 2, [])


def _kill_at(number: int) -> None:
    """Be killed before the `number`-th change to the disk."""
    left = [number]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def _main(folder: Path) -> int:
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    for number in range(1, 1000):
        root = folder / str(number)
        root.mkdir()
        pid = os.fork()
        if pid == 0:
            _kill_at(number)
            _scenario(root)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if (root / "first").exists():
            path = newest_valid(root).path
            assert path is not None, (number, sorted(root.iterdir()))
            assert ended < 0 or path.name == "checkpoint-4"
            # and the run goes on from there: what the kill left behind is in nobody's way
            _scenario(root)
            assert newest_valid(root).path == root / "checkpoint-4"
        shutil.rmtree(root)
        if ended == 0:
            return number - 1
        assert ended == -signal.SIGKILL
    raise AssertionError("the scenario never ended")


if __name__ == "__main__":
    print(_main(Path(sys.argv[1])))
