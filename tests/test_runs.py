"""Run folders: names, manifests, locks, and which one is the newest."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rmtrain import runs
from rmtrain.errors import CheckpointError, InputError, WriteError
from rmtrain.runs import (
    create_run,
    list_runs,
    locate_model,
    locked,
    newest_finished,
    read_manifest,
    reveal,
    update_manifest,
)


def test_a_run_is_named_after_recipe_time_and_four_digits(tmp_path: Path) -> None:
    building = create_run(tmp_path / "deep" / "runs", "my_recipe")
    update_manifest(building, state="running")
    assert building.name.startswith(".")
    assert list_runs(building.parent) == []  # it is none before it has its name
    folder = reveal(building)
    assert not building.exists()
    assert [path for path, _ in list_runs(folder.parent)] == [folder]
    assert folder.parent == tmp_path / "deep" / "runs"
    assert re.fullmatch(r"my_recipe-\d{8}-\d{6}-[0-9a-f]{4}", folder.name)


def test_no_folder_is_ever_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = iter(["aaaa", "aaaa", "bbbb", "aaaa", "cccc"])
    monkeypatch.setattr(runs.secrets, "token_hex", lambda size: next(digits))
    monkeypatch.setattr(runs, "datetime", type("Clock", (), {"now": staticmethod(lambda: Moment())}))
    first, second = create_run(tmp_path, "r"), create_run(tmp_path, "r")
    assert (first.name, second.name) == (".r-20260102-030405-aaaa", ".r-20260102-030405-bbbb")
    assert reveal(first).name == "r-20260102-030405-aaaa"
    assert create_run(tmp_path, "r").name == ".r-20260102-030405-cccc"
    assert len(list(tmp_path.iterdir())) == 3


class Moment:
    def strftime(self, form: str) -> str:
        from datetime import datetime

        return datetime(2026, 1, 2, 3, 4, 5).strftime(form)


def test_many_runs_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    assert len({create_run(tmp_path, "r") for _ in range(50)}) == 50


def test_a_parent_that_can_not_hold_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't make a run folder") as error:
        create_run(tmp_path / "file", "r")
    assert "run.folder" in error.value.hint
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(InputError, match="is not a folder"):
        create_run(tmp_path / "link", "r")


# Manifests


def make(parent: Path, name: str, **values: object) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    update_manifest(folder, **values)
    return folder


def test_a_manifest_is_changed_entry_by_entry(tmp_path: Path) -> None:
    folder = make(tmp_path, "a", state="running", seed=1)
    update_manifest(folder, state="finished", ended="now")
    assert read_manifest(folder) == {"state": "finished", "seed": 1, "ended": "now"}
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_a_manifest_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, "a", state="running", filler="x" * 10_000)

    def fail(descriptor: int) -> None:
        assert read_manifest(folder)["state"] == "running"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="the disk is full"):
        update_manifest(folder, state="finished")
    assert read_manifest(folder)["state"] == "running"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "is not a run folder: .*manifest.json: no such file"),
        ("{", "is not a run folder"),
        ("[1]", "no state among running, finished, failed, interrupted"),
        ('{"state": "lost"}', "no state among"),
        ("{}", "no state among"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: str | None, named: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=named) as error:
        read_manifest(tmp_path)
    assert str(tmp_path) in error.value.message


def test_a_manifest_beyond_all_bounds_is_neither_read_nor_changed(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as stream:
        stream.truncate(1 << 40)
    for use in (read_manifest, update_manifest):
        with pytest.raises(CheckpointError, match="the file has more than"):
            use(tmp_path)


def test_runs_are_listed_oldest_first_and_strangers_left_out(tmp_path: Path) -> None:
    late = make(tmp_path, "a", state="failed", started="2026-03-01T00:00:00")
    early = make(tmp_path, "b", state="finished", started="2026-01-01T00:00:00")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("")
    assert [folder for folder, _ in list_runs(tmp_path)] == [early, late]
    assert list_runs(tmp_path / "gone") == []


def test_the_newest_run_that_finished_is_found(tmp_path: Path) -> None:
    make(tmp_path, "a", state="finished", started="2026-01-01T00:00:00")
    newest = make(tmp_path, "b", state="finished", started="2026-02-01T00:00:00")
    make(tmp_path, "c", state="interrupted", started="2026-03-01T00:00:00")
    make(tmp_path, "d", state="running", started="2026-04-01T00:00:00")
    assert newest_finished(tmp_path) == newest


def test_a_folder_of_runs_is_no_model_and_its_newest_run_is_named(tmp_path: Path) -> None:
    make(tmp_path / "runs", "a", state="finished", started="2026-01-01T00:00:00")
    newest = make(tmp_path / "runs", "b", state="running", started="2026-02-01T00:00:00")
    with pytest.raises(InputError, match="is a folder of runs, not a model") as error:
        locate_model(str(tmp_path / "runs"))
    assert error.value.hint == f"name one of them, such as {newest}"
    (tmp_path / "model").mkdir()
    assert locate_model(str(tmp_path / "model")) == (str(tmp_path / "model"), None)


def test_no_finished_run_is_said_with_the_way_out(tmp_path: Path) -> None:
    make(tmp_path, "a", state="failed")
    for parent in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError, match=f"no finished run under {parent}/") as error:
            newest_finished(parent)
        assert "--ckpt" in error.value.hint


# Locks

HOLDER = """
import sys, time
from pathlib import Path
from rmtrain.runs import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_keeps_others_out_and_goes_with_its_process(tmp_path: Path, ending: signal.Signals) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"is in use by process {holder.pid} on ") as error, locked(tmp_path):
            raise AssertionError("two held it")
        assert str(tmp_path) in error.value.message
    finally:
        holder.send_signal(ending)
        holder.wait(30)
        holder.stdout.close()
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_a_lock_is_given_back_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path), pytest.raises(InputError, match="is in use"), locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path):
        pass


def test_a_manifest_is_json(tmp_path: Path) -> None:
    folder = make(tmp_path, "a", state="running", totals={"loss": 0.5})
    assert json.loads((folder / "manifest.json").read_text())["totals"] == {"loss": 0.5}


def test_the_newest_run_is_found_by_instants(tmp_path: Path) -> None:
    times = {  # in the order in which they were started: an autumn clock change, then a machine elsewhere
        "b": "2026-10-25T02:50:00+02:00",
        "c": "2026-10-25T02:10:00+01:00",
        "a": "2026-10-24T20:30:00-05:00",
        "d": "2026-10-25T10:31:00+09:00",
    }
    for name, started in times.items():
        make(tmp_path, name, state="finished", started=started)
    make(tmp_path, "without", state="finished")
    make(tmp_path, "damaged", state="finished", started=[9])
    assert [path.name for path, _ in list_runs(tmp_path)] == ["damaged", "without", *times]
    assert newest_finished(tmp_path).name == "d"
