"""`rmtrain sweep` as a user runs it; the runs are trained within this process except where processes are the point."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from conftest import write_pairs
from sweep_cases import in_this_process

from rmtrain.cli.app import run as rmtrain
from rmtrain.runs import list_runs, update_manifest
from rmtrain.training.sweep import Workers, devices_for

RECIPE = """
model: {{name: {base}, dtype: float32}}
lora: {{rank: 2, alpha: 4}}
data:
  source: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  splits: {{train: train, validation: train, test: train}}
  max_length: 64
optim: {{learning_rate: 3.0e-3, max_steps: 4, global_batch_size: 16, tokens_per_microbatch: 900}}
evaluation: {{every: 0, select: last}}
"""
RATES = "optim.learning_rate=1e-4,2e-2"


@pytest.fixture
def work(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, (name, count) in enumerate({"train": 40, "validation": 30, "test": 30}.items()):
        write_pairs(tmp_path / f"{name}.jsonl", count, seed)
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(base=base))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of a sweep, which run in this process."""
    return in_this_process(monkeypatch)


@pytest.fixture
def sweep(work: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def run(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert rmtrain(["sweep", "tiny.yaml", *arguments, "--json"]) == code
        out, errors = capsys.readouterr()
        sys.stderr.write(errors)  # for a test that looks at it
        return json.loads(out[out.index('{\n  "name"') :]) if code == 0 else out

    return run


@pytest.mark.slow
def test_a_grid_is_ranked_by_validation_and_trained_once(
    sweep: Callable[..., Any], commands: list[list[str]], work: Path
) -> None:
    result = sweep(RATES, "--seeds", "2")
    assert [command[0] for command in commands] == ["train"] * 4
    best, other = result["settings"]
    assert best["overrides"][0] == "optim.learning_rate=2e-2"
    assert best["accuracy"] >= other["accuracy"]
    assert set(best["by_seed"]) == {"0", "1"}
    assert best["lead"] is None
    assert other["lead"]["difference"] == pytest.approx(best["accuracy"] - other["accuracy"])
    assert not list(work.glob("runs/tiny-sweep/*/eval/test*"))  # the test split is untouched
    page = (work / "runs/tiny-sweep/grid.html").read_text()
    assert "2e-2" in page
    assert page.count("<img") == 2  # no validation during training, so no curve of it

    commands.clear()
    assert sweep(RATES, "--seeds", "2") == result
    assert commands == []
    final = sweep(RATES, "--seeds", "2", "--final")["final"]
    assert [command[0] for command in commands] == ["eval"] * 2
    assert final["setting"] == best["setting"]
    assert 0 <= final["low"] <= final["accuracy"] <= final["high"] <= 1

    # a run that was stopped goes on from its checkpoint, and one that is gone is trained again
    one, two = sorted(result["settings"], key=lambda of: of["setting"])
    update_manifest(work / one["runs"]["0"], state="interrupted")  # the first one trained
    shutil.rmtree(work / two["runs"]["1"])  # the last
    commands.clear()
    again = sweep(RATES, "--seeds", "2")
    assert [command[:2] for command in commands] == [["train", "--resume"], ["train", "tiny.yaml"]]
    assert [of["by_seed"] for of in again["settings"]] == [of["by_seed"] for of in result["settings"]]


@pytest.mark.slow
def test_a_probe_goes_beyond_the_end_of_its_range_and_recommends_a_rate(
    sweep: Callable[..., Any], commands: list[list[str]]
) -> None:
    result = sweep("--method", "lr-probe", "--probe-steps", "2", "optim.learning_rate=1e-5,1e-4")
    rates = sorted(float(of["overrides"][-1].partition("=")[2]) for of in result["settings"])
    assert rates == [1e-5, 1e-4, 1e-3, 1e-2, 0.1]
    losses = {of["overrides"][-1]: of["loss"] for of in result["settings"]}
    assert result["learning_rate"] == float(min(losses, key=lambda rate: losses[rate]).partition("=")[2])
    assert result["ranked_by"] == "loss"
    assert len(commands) == 5
    assert all("optim.max_steps=2" in command for command in commands)


@pytest.mark.slow
def test_halving_trains_the_better_half_in_full(sweep: Callable[..., Any], commands: list[list[str]]) -> None:
    result = sweep("optim.learning_rate=1e-4,1e-3,2e-2", "--halving")
    steps = [next(a for a in command[::-1] if a.startswith("optim.max_steps=")) for command in commands[:5]]
    assert steps == ["optim.max_steps=1"] * 3 + ["optim.max_steps=2"] * 2
    assert len(commands) == 6
    assert len(result["settings"]) == 1
    assert len(result["notes"]) == 2


@pytest.mark.slow
def test_processes_of_their_own_train_beside_each_other_and_a_failure_is_told(
    sweep: Callable[..., Any], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warm.starting():
        assert rmtrain(["sweep", "tiny.yaml", "optim.learning_rate=1e-3,2e-3", "--parallel", "2"]) == 0
    assert "of loss" not in capsys.readouterr().out
    assert len(list(work.glob("runs/tiny-sweep/logs/setting*-seed0.log"))) == 2
    assert len(list_runs(work / "runs/tiny-sweep")) == 2


def test_failed_and_refused_runs(
    sweep: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Workers, "_command", lambda *arguments: 1)
    assert "setting 1 (optim.learning_rate=1e-4), seed 0" in sweep(RATES, code=1)
    assert "failed (exit code 1)" in capsys.readouterr().err
    monkeypatch.setattr(Workers, "_command", lambda *arguments: 2)
    sweep(RATES, code=2)
    monkeypatch.setattr(Workers, "_command", lambda *arguments: 130)
    sweep(RATES, code=130)


def test_what_a_sweep_refuses_before_it_starts(
    sweep: Callable[..., Any], work: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(RATES, "--halving", "--method", "lr-probe", code=2)
    sweep("lora.rank=2,4", "--method", "lr-probe", code=2)
    sweep("data.source={train: train.jsonl}", code=2)
    assert commands == []
    assert rmtrain(["sweep", "tiny.yaml", RATES, "--seeds", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("not trained yet") == 4
    assert commands == []


def test_each_run_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert devices_for(2) == ["4", "5"]
    assert devices_for(1) == []
    with pytest.raises(Exception, match="3 GPUs"):
        devices_for(4)
