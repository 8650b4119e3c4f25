"""`rmtrain train` where it fails: its hint can be typed as it is, and what fails is in the run folder."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pairs
from training_cases import at_step, only_run

from rmtrain.cli import app
from rmtrain.evaluation import splits
from rmtrain.training.trainer import GroupRewardTrainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_reports")]

RECIPE = """
model: {{name: {model}, dtype: float32}}
lora: {{rank: 4, alpha: 8}}
data:
  source: {{train: {data}/train.jsonl, validation: {data}/validation.jsonl}}
  splits: {{train: train, validation: train}}
  max_length: 64
optim: {{learning_rate: 3.0e-3, global_batch_size: 8, tokens_per_microbatch: 600}}
evaluation: {{every: 0}}
run: {{folder: {data}, name: try, save_every: 2}}
"""


@pytest.fixture
def recipe(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)  # put back afterwards
    write_pairs(tmp_path / "train.jsonl", 32, 1)
    write_pairs(tmp_path / "validation.jsonl", 4, 2)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=base, data=tmp_path), encoding="utf-8")
    return path


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_every_command_that_out_of_memory_names_ends_the_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    at_step(4, fail)
    assert app.run(["train", str(recipe)]) == 1
    told = capsys.readouterr().err
    assert "out of memory at step 4" in told
    lines = [line.partition("  (saves")[0] for line in told.splitlines() if "rmtrain train --resume" in line]
    assert len(lines) == 3
    folder, failed = only_run(tmp_path), tmp_path / "failed"
    shutil.copytree(folder, failed)
    for line in lines:
        shutil.rmtree(folder)
        shutil.copytree(failed, folder)
        program, *arguments = shlex.split(line)
        assert program == "rmtrain"
        assert app.run(arguments) == 0
        assert "resuming from checkpoint-2" in capsys.readouterr().err
        assert manifest(folder)["state"] == "finished"


def test_what_fails_after_training_is_written_down(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("by nought")

    with monkeypatch.context() as patch:
        patch.setattr(splits, "evaluate_splits", fail)
        assert app.run(["train", str(recipe)]) == 1
    folder = only_run(tmp_path)
    told = capsys.readouterr().err
    assert "training is finished, but what follows it failed: ZeroDivisionError: by nought" in told
    assert f"rmtrain eval --ckpt {folder}" in told
    assert (manifest(folder)["state"], manifest(folder)["error"]) == (
        "finished",
        "after training: ZeroDivisionError: by nought",
    )
    assert "ZeroDivisionError" in (folder / "log.txt").read_text(encoding="utf-8")
    assert app.run(["train", "--resume", str(folder)]) == 0
    assert manifest(folder)["error"] is None
