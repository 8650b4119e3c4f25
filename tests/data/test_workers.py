"""Groups that several processes tokenise: the same result as from one, errors passed on, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import make_groups, make_tokenizer

from rmtrain.data import workers
from rmtrain.data.group_table import GroupTable, PlacedGroup, write_groups
from rmtrain.data.render import Renderer
from rmtrain.data.token_cache import TokenizedSplit, tokenize_split
from rmtrain.data.tokenize import Tokenization
from rmtrain.data.types import Message, PreferenceGroup
from rmtrain.errors import DataError, RunFailedError
from rmtrain.recipe.data_schema import OverLength


def table(folder: Path, groups: Sequence[PreferenceGroup]) -> GroupTable:
    write_groups(folder / "groups.arrow", map(PlacedGroup, range(len(groups)), groups))
    return GroupTable.open(folder / "groups.arrow", "these")


def with_faults() -> list[PreferenceGroup]:
    """Groups of which the template refuses one in seven, and one in five has two completions of the same tokens."""
    groups = make_groups(60)
    for place in range(0, 60, 7):
        groups[place] = groups[place]._replace(prompt=(Message("user", "w63"),))
    for place in range(1, 60, 5):
        first, _, *rest = groups[place].completions
        groups[place] = groups[place]._replace(completions=(first, first, *rest))
    return groups


def refusing() -> Renderer:
    tokenizer = make_tokenizer()
    refusal = "{% if messages[0]['content'] == 'w63' %}{{ raise_exception('not this') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    return Renderer.for_tokenizer(tokenizer)


def tokenised(groups: GroupTable, cache: Path, length: int = 20, rule: OverLength = "drop") -> TokenizedSplit:
    return tokenize_split(groups, Tokenization(refusing(), length, rule), cache, drop_identical=True)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, found = table(tmp_path, with_faults()), []
    monkeypatch.setattr(workers, "PART", 8)
    for processes in (1, 2):
        monkeypatch.setattr(workers, "processes_for", lambda groups, processes=processes: processes)
        made = tokenised(groups, tmp_path / str(processes))
        (folder,) = (tmp_path / str(processes)).glob(f"{made.fingerprint[:32]}-*[0-9]")
        found.append((made[:1] + made[2:], {path.name: path.read_bytes() for path in folder.iterdir()}))
    assert found[0] == found[1]
    monkeypatch.undo()
    direct = tokenize_split(
        with_faults(), Tokenization(refusing(), 20, "drop"), tmp_path / "memory", drop_identical=True
    )
    assert (direct[:1] + direct[2:], direct.table.to_list()) == (found[0][0], made.table.to_list())
    assert len(made) + sum(lost.rows for lost in made.report.dropped.values()) == 60
    assert {"over length", "identical after rendering", "refused by the chat template"} <= {*made.report.dropped}


@pytest.mark.slow
def test_an_error_in_a_process_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = table(tmp_path, make_groups(30))
    monkeypatch.setattr(workers, "PART", 8)
    told = []
    for processes in (1, 2):
        monkeypatch.setattr(workers, "processes_for", lambda groups, processes=processes: processes)
        with pytest.raises(DataError) as error:
            tokenised(groups, tmp_path / "cache", 5, "error")
        told.append(str(error.value))
    assert told[0] == told[1]
    assert "choose another data.over_length" in told[0]


def die(groups: Sequence[PreferenceGroup]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_was_killed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = table(tmp_path, make_groups(3))
    monkeypatch.setattr(workers, "processes_for", lambda groups: 2)
    with pytest.raises(RunFailedError, match="was ended from outside"):
        list(workers.in_parts(die, groups))


def wait(groups: Sequence[PreferenceGroup]) -> None:
    os.write(1, b".")
    time.sleep(3600)


def serve(folder: str) -> None:
    """In a process of its own: two others that wait."""
    workers.PART, workers.processes_for = 8, lambda groups: 2  # type: ignore[assignment]
    list(workers.in_parts(wait, GroupTable.open(Path(folder) / "groups.arrow", "these")))


@pytest.mark.slow
def test_no_process_outlives_one_that_is_killed(tmp_path: Path) -> None:
    table(tmp_path, make_groups(20))
    command = f"import sys; sys.path = {json.dumps(sys.path)}; import test_workers as t; t.serve({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read(2) == b".."  # both are at work
        parent.kill()
        parent.stdout.read()  # ends once nobody can write any more


@pytest.mark.parametrize(
    ("groups", "cores", "given", "local", "processes"),
    [
        (1_000_000, 2, None, None, 2),
        (1_000_000, 64, None, None, 8),
        (1_000_000, 64, "3", None, 3),
        (1_000_000, 2, "1", None, 1),
        (1_000_000, 2, "16", None, 2),
        (1_000_000, 2, "four", None, 2),
        (39_999, 2, None, None, 1),
        (40_000, 2, None, None, 2),
        (0, 2, None, None, 1),
        (1_000_000, 2, "1", "1", 1),
        (1_000_000, 32, "1", "8", 4),  # torchrun sets OMP_NUM_THREADS=1
        (1_000_000, 2, "1", "4", 1),
    ],
)
def test_processes_are_as_many_as_pay(
    monkeypatch: pytest.MonkeyPatch, groups: int, cores: int, given: str | None, local: str | None, processes: int
) -> None:
    class Table(Sequence[PreferenceGroup]):
        name = "these"

        def __len__(self) -> int:
            return groups

        def __getitem__(self, place: object) -> "PreferenceGroup":  # type: ignore[override]
            raise AssertionError

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    for name, value in (("OMP_NUM_THREADS", given), ("LOCAL_WORLD_SIZE", local)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert workers.processes_for(Table()) == processes
    assert workers.processes_for(make_groups(1)) == 1
