"""`rmtrain curate` as a user runs it: judges that are given and judges from folds, stopped and run again."""

import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_base, write_lines, write_pairs
from test_end_to_end import answer, rmtrain

from rmtrain.cli.judges import Judges
from rmtrain.data.judged import folds_of
from rmtrain.data.reader import read_source
from rmtrain.display import Silent
from rmtrain.signals import interrupt

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_reports")]

RECIPE = """
model: {{name: {folder}/base, dtype: float32}}
data:
  source: {{train: {folder}/train.jsonl}}
  splits: {{train: train}}
  max_length: 64
optim: {{learning_rate: 1.0e-2, epochs: 4, global_batch_size: 8}}
run: {{folder: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of which every fifth has all its preferences turned round."""
    work = tmp_path_factory.mktemp("curate")
    write_base(work / "base")
    rows = [json.loads(line) for line in write_pairs(work / "train.jsonl", 100).read_text().splitlines()]
    for row in rows[::5]:
        row["preferences"] = [pair[::-1] for pair in row["preferences"]]
    write_lines(work / "train.jsonl", rows)
    (work / "recipe.yaml").write_text(RECIPE.format(folder=work))
    return work


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def here(judges: Judges, *arguments: str) -> None:
    rmtrain(*arguments)


def test_rows_that_a_judge_refuses_are_booked_and_shown(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judges, "_command", here)
    rows = [
        {"prompt": [{"role": "user", "content": f"w{n}"}], "chosen": "w3\u2028w4", "rejected": "w5"} for n in range(12)
    ]
    for number in (4, 7):
        rows[number]["prompt"] += [{"role": "tool", "content": "w1"}]  # type: ignore[operator]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    command = ("curate", tmp_path / "recipe.yaml", "--judge", models / "rm", "--output", tmp_path / "kept.jsonl")
    rules = ("--rule", "refused", "--rule", "majority")
    (shown, _) = json.loads(
        rmtrain(*command, "--show", f"refused by the chat template of {models}/rm", "--json").stdout
    )
    assert shown["row"]["place"].endswith("train.jsonl:5")
    assert shown["why"].startswith("the chat template refuses a conversation with the roles user, tool, assistant")
    assert "every judge refuses it" in rmtrain(*command, *rules, "--show", "of_a_judge").stdout
    assert "the causes are: " in rmtrain(*command, "--show", "nothing", code=2).stderr
    assert not (tmp_path / "kept.jsonl").exists()
    result = answer(rmtrain(*command, "--json"))
    assert (result["judges"][0]["n"], result["judges"][0]["refused"]) == (10, 2)
    assert {"w4", "w7"} <= {row["prompt"][0]["content"] for row in lines(tmp_path / "kept.jsonl")}
    (tmp_path / "kept.jsonl").unlink()
    strict = answer(rmtrain(*command, *rules, "--json"))
    assert strict["rows"]["dropped"]["refused by the chat template of a judge"] == 2
    assert strict["rows"]["kept"] == result["rows"]["kept"] - 2
    weighted = (*command[:-1], tmp_path / "weighted.jsonl", "--weight")
    shown = rmtrain(*weighted, "0.25").stdout
    assert "rejected preferences have the weight 0.25" in shown
    assert "rejected: most judges reject it" in shown
    new = [f"data.source={{train: {tmp_path}/weighted.jsonl}}", "data.preference_weights=weights"]
    assert f"with its weights: rmtrain train {tmp_path}/recipe.yaml {shlex.join(new)}" in " ".join(shown.split())
    new += [f"model.name={models}/rm", "data.duplicates=keep"]
    report = answer(rmtrain("data", tmp_path / "recipe.yaml", *new, "--json"))
    counts = strict["preferences"]["dropped"]["most judges reject it"], result["preferences"]["total"]
    mean = (counts[1] - 0.75 * counts[0]) / counts[1]
    assert any(
        f"weights of {counts[1]} preferences: 0.25 to 1, mean over groups {mean:.4g}" in note
        for note in report["notes"]
    )
    assert "above 0 and below 1" in rmtrain(*command, "--weight", "1", code=2).stderr
    rows[5]["prompt"] = [*rows[4]["prompt"], {"role": "assistant", "content": "w9"}]
    write_lines(tmp_path / "train.jsonl", rows[4:8])
    assert "3 of 4 rows are refused" in rmtrain(*command[:-1], tmp_path / "other.jsonl", code=2).stderr


def test_folds_find_turned_labels_and_the_run_on_the_new_source_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judges, "_command", here)  # without a process for each, which takes seconds to start
    command = ("curate", folder / "recipe.yaml", "--folds", "2", "--output", folder / "kept.jsonl", "--json")
    result = answer(rmtrain(*command))
    assert [judge["ckpt"].rpartition("/")[2][:7] for judge in result["judges"]] == ["fold-0-", "fold-1-"]
    for ledger in ("rows", "preferences"):
        books = result[ledger]
        assert books["kept"] + sum(books["dropped"].values()) == books["total"]
    kept = {row["id"]: row["preferences"] for row in lines(folder / "kept.jsonl")}
    before = lines(folder / "train.jsonl")
    lost = [len(row["preferences"]) - len(kept.get(row["id"], [])) for row in before]
    total = [len(row["preferences"]) for row in before]
    turned, right = sum(lost[::5]) / sum(total[::5]), (sum(lost) - sum(lost[::5])) / (sum(total) - sum(total[::5]))
    assert turned > 2 * right

    judges = folder / "kept.jsonl.judges"
    scored = sorted(judges.glob("scored-*.jsonl"))
    assert sum(len(lines(path)) for path in scored) == len(before)  # each row by the judge of the other fold alone
    groups = read_source(str(folder / "train.jsonl"), None, evaluation=True).groups
    folds = dict(zip([group.id for group in groups], folds_of(groups, 2, 0), strict=True))
    for number, judge in enumerate(result["judges"]):  # as if every judge had scored every row
        output = folder / f"all-{number}.jsonl"
        rmtrain("score", folder / "train.jsonl", "--ckpt", judge["ckpt"], "--output", output)
        whole = {row["id"]: row["rewards"] for row in lines(output)}
        for row in lines(folder / "kept.jsonl"):
            margins = [whole[row["id"]][b] - whole[row["id"]][w] for b, w in row["preferences"]]
            own = [each[number] for each in row["margins"]]
            assert own == ([None] * len(own) if folds[row["id"]] == number else pytest.approx(margins, abs=1e-5))
    scored[0].unlink()
    stamps = {path: path.stat().st_mtime_ns for path in [*scored[1:], *judges.glob("fold-*/manifest.json")]}
    for path in (folder / "kept.jsonl", folder / "kept.curation.json"):
        shutil.move(path, path.with_name(f"first-{path.name}"))
    assert answer(rmtrain(*command)) == result
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # nothing was trained or scored twice
    assert (folder / "kept.jsonl").read_text() == (folder / "first-kept.jsonl").read_text()

    new = (f"data.source={{train: {folder}/kept.jsonl}}", "optim.max_steps=1")
    run = Path(answer(rmtrain("train", folder / "recipe.yaml", *new, "--json"))["run"])
    (recorded,) = json.loads((run / "manifest.json").read_text())["data"]["train"]["curation"].values()
    assert (recorded["rules"], recorded["judges"]) == (result["rules"], result["judges"])

    monkeypatch.undo()
    given = ("curate", folder / "recipe.yaml", "--judge", run, "--mark", "--rule", "hardest=0.25")
    shown = rmtrain(*given, "--output", folder / "marked.jsonl").stdout
    assert "# kept, - rejected" in shown
    assert "[better]" in shown
    assert [row["id"] for row in lines(folder / "marked.jsonl")] == [row["id"] for row in before]
    verdicts = [verdict for row in lines(folder / "marked.jsonl") for verdict in row["verdicts"]]
    assert verdicts.count("hardest 25 %") == round(0.25 * len(verdicts))


def test_faults_end_before_anything_is_trained(folder: Path) -> None:
    recipe, output = folder / "recipe.yaml", folder / "none.jsonl"
    for more in ([], ["--judge", "a/b", "--folds", "2"]):
        assert (
            "curate takes either --judge or --folds"
            in rmtrain("curate", recipe, "--output", output, *more, code=2).stderr
        )
    said = rmtrain("curate", recipe, "--folds", "2", "--rule", "best", "--output", output, code=2).stderr
    assert "no such rule" in said
    twice = ("--judge", folder, "--judge", f"{folder}/")
    assert "are the same checkpoint" in rmtrain("curate", recipe, *twice, "--output", output, code=2).stderr
    said = rmtrain("curate", recipe, "--judge", folder / "nowhere", "--output", output, code=2).stderr
    assert "nowhere" in said
    assert not output.exists()


def signal_once(path: Path) -> None:
    """Send this process a signal soon after a file exists."""
    while not path.exists():
        time.sleep(0.02)
    time.sleep(0.3)  # until it waits for the child that wrote the file
    os.kill(os.getpid(), signal.SIGUSR2)


def test_an_interrupted_judge_may_write_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to curate alone asks the judge's command to stop, and waits for it."""
    command = tmp_path / "python"
    stop = f"sleep 0.5; touch {tmp_path}/checkpoint; exit 130"
    command.write_text(f"#!/bin/sh\ntrap '{stop}' TERM\ntouch {tmp_path}/started\nwhile :; do sleep 0.05; done\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))
    notes: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda self, line: notes.append(line))
    before = signal.signal(signal.SIGUSR2, lambda *_: interrupt())
    threading.Thread(target=signal_once, args=[tmp_path / "started"], daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            Judges(tmp_path, [], Silent())._command("train", "recipe.yaml")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "checkpoint").exists()
    assert notes == ["stopped; run the same command again to continue"]
