"""Training on a mixture: figures by entry, the choice of a checkpoint by their mean, and an exact resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pairs
from training_cases import Recorder, at_step, only_run, weights

from rmtrain.errors import RunFailedError
from rmtrain.recipe.load import parse_recipe_text
from rmtrain.runs import read_manifest
from rmtrain.training.train import train
from rmtrain.training.trainer import GroupRewardTrainer

RECIPE = """
model: {{name: {base}, dtype: float32}}
data:
  max_length: 64
  repeat: true
  source:
    train:
      - {{source: {here}/a.jsonl, weight: 1, tags: [helpful]}}
      - {{source: {here}/b.jsonl, weight: 2}}
    validation:
      - {{source: {here}/v.jsonl, name: a}}
      - {{source: {here}/w.jsonl, name: b}}
optim: {{learning_rate: 0.001, global_batch_size: 6, epochs: 1}}
evaluation: {{every: 2, select: mean_accuracy}}
run: {{folder: {here}/runs, name: try, save_every: 1}}
"""


@pytest.fixture
def go(base: Path, tmp_path: Path) -> Any:
    """Train the mixture as the command does."""
    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import recipe_renderer

    for seed, (name, count) in enumerate({"a": 9, "b": 6, "v": 10, "w": 3}.items(), 1):
        write_pairs(tmp_path / f"{name}.jsonl", count, seed)

    def trained(*overrides: str, resume: Path | None = None) -> tuple[Any, Recorder]:
        loaded = parse_recipe_text(RECIPE.format(base=base, here=tmp_path), "try.yaml", overrides)
        display = Recorder()
        ready = prepare(loaded.recipe, recipe_renderer(loaded.recipe.model), display)
        return train(loaded, ready.splits, ready.renderer, display, resume), display

    return trained


def validations(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_loss" in line]


def test_validation_shows_each_entry_and_their_mean_chooses(go: Any) -> None:
    result, _ = go()
    lines = validations(result.run)
    assert [line["step"] for line in lines] == [2, 3]  # 15 groups a pass: 5 of a, and the 6 of b as 10
    for line in lines:
        own = [line["eval_accuracy/a"], line["eval_accuracy/b"]]
        assert line["eval_mean_accuracy"] == pytest.approx(sum(own) / 2)
        assert min(own) <= line["eval_accuracy"] <= max(own)
    best = max(lines, key=lambda line: (line["eval_mean_accuracy"], -line["eval_loss"]))
    manifest = read_manifest(result.run)
    assert manifest["final"] == {"step": best["step"], "by": "mean_accuracy", "of": 3}
    entries = manifest["data"]["train"]["entries"]
    assert [(name, each["groups"], each["rows"]["kept"]) for name, each in entries.items()] == [
        ("a", 5, 5),
        ("b", 10, 6),
    ]
    assert entries["a"]["tags"] == ["helpful"]
    assert entries["a"]["rows"]["dropped"] == {"beyond the weight": 4}


def test_a_mixture_resumes_exactly(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> None:
        raise OSError("the cable was pulled")

    whole, _ = go(f"run.folder={tmp_path / 'whole'}")
    with monkeypatch.context() as patch:
        patch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)
        at_step(2, crash)
        with pytest.raises(RunFailedError, match="the cable was pulled"):
            go()
    folder = only_run(tmp_path / "runs")
    resumed, _ = go(resume=folder)
    expected, found = weights(whole.run / "final"), weights(resumed.run / "final")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert validations(resumed.run) == validations(whole.run)
