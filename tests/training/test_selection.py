"""Which checkpoint becomes the final model, and when a run that no longer improves ends."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups
from training_cases import Recorder, at_step, only_run, run, weights

from rmtrain.errors import Interrupted, RecipeError, RunFailedError
from rmtrain.recipe.load import load_recipe
from rmtrain.runs import read_manifest
from rmtrain.training.trainer import GroupRewardTrainer

Figures = list[tuple[float, float]]  # validation accuracy and loss of each step, from the first on
CASE: dict[str, Any] = {
    "groups": make_groups(12, seed=1),
    "validation": make_groups(4, seed=2),
    "optim__global_batch_size": 2,
    "optim__epochs": 1.0,  # 6 steps
    "evaluation__every": 1.0,
    "run__keep_checkpoints": 6,
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Callable[[Figures], None]:
    """Have validations say what is given."""

    def give(values: Figures) -> None:
        def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            accuracy, loss = values[self.state.global_step - 1]
            metrics = {"eval_accuracy": accuracy, "eval_loss": loss}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        monkeypatch.setattr(GroupRewardTrainer, "evaluate", evaluate)

    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)  # at_step's is put back
    return give


def assert_final(folder: Path, step: int, by: str, made: int = 6) -> None:
    assert read_manifest(folder)["final"] == {"step": step, "by": by, "of": made}
    chosen, final = weights(folder / "checkpoints" / f"checkpoint-{step}"), weights(folder / "final")
    assert all(torch.equal(final[name], tensor) for name, tensor in chosen.items())


@pytest.mark.parametrize(
    ("losses", "step", "said"),
    [((0.5, 0.4), 2, "step 2 is chosen"), ((0.4, 0.5), 1, "step 1 is chosen"), ((0.4, 0.4), 1, "step 1 is")],
)
def test_of_equal_accuracies_the_lower_loss_decides(
    base: Path, tmp_path: Path, figures: Any, losses: tuple[float, float], step: int, said: str
) -> None:
    figures([(0.5417, losses[0]), (0.5417, losses[1])])
    display = Recorder()
    folder = run(base, tmp_path, display=display, **(CASE | {"optim__max_steps": 2})).run
    assert_final(folder, step, "accuracy", 2)
    (line,) = [note for note in display.notes if "validation accuracy is the same at steps 1 and 2" in note]
    assert said in line


RISE = [(0.5, 0.7), (0.6, 0.6), (0.9, 0.8), (0.8, 0.3), (0.8, 0.5), (0.7, 0.9)]


@pytest.mark.parametrize(
    ("before", "now", "lost", "step", "by", "said"),
    [
        (
            "accuracy",
            "loss",
            [],
            4,
            "loss",
            "of the kept checkpoints, step 4 has the best validation loss",
        ),
        ("accuracy", "loss", [4], 5, "loss", "step 5 has the best validation loss"),
        # of two with 0.8 the one with the lower loss
        ("loss", "accuracy", [3], 4, "accuracy", "step 4 has the best validation accuracy"),
        ("last", "accuracy", [], 3, "accuracy", "step 3 has the best validation accuracy"),
        ("loss", "last", [], 6, "last", "changed: evaluation.select: 'loss' in the checkpoint, 'last' now"),
    ],
)
def test_a_finished_run_is_chosen_from_by_another_figure(
    base: Path, tmp_path: Path, figures: Any, before: str, now: str, lost: list[int], step: int, by: str, said: str
) -> None:
    figures(RISE)
    folder = run(base, tmp_path, **(CASE | {"evaluation__select": before})).run
    for each in lost:
        shutil.rmtree(folder / "checkpoints" / f"checkpoint-{each}")
    display = Recorder()
    changes = CASE | {"evaluation__select": now}
    run(base, tmp_path, resume=folder, allow_changes=True, display=display, **changes)
    assert_final(folder, step, by)
    assert said in " ".join(display.notes)


def test_a_later_validation_is_held_against_the_best_by_the_new_figure(
    base: Path, tmp_path: Path, figures: Any
) -> None:
    figures(RISE)
    folder = run(base, tmp_path, **(CASE | {"optim__max_steps": 5})).run
    changes = CASE | {"evaluation__select": "loss"}
    run(base, tmp_path, resume=folder, allow_changes=True, **changes)
    assert_final(folder, 4, "loss")


@pytest.mark.parametrize(
    "changes", [{"evaluation__limit": 2}, {"validation": make_groups(6, seed=3)}], ids=["limit", "rows"]
)
def test_validations_of_other_rows_are_not_compared(
    base: Path, tmp_path: Path, figures: Any, changes: dict[str, Any]
) -> None:
    figures([(0.9, 0.1), (0.9, 0.2), (0.9, 0.3), (0.6, 0.5), (0.5, 0.6), (0.4, 0.7)])
    at_step(3, interrupt)
    with pytest.raises(Interrupted):
        run(base, tmp_path, **(CASE | {"evaluation__every": 2.0}))
    display = Recorder()
    changed = CASE | {"evaluation__every": 2.0} | changes
    folder = run(base, tmp_path, resume=only_run(tmp_path), allow_changes=True, display=display, **changed).run
    assert "validation has changed: the best checkpoint is chosen anew from step 3 on" in display.notes
    assert_final(folder, 4, "accuracy")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


STALE = [(0.5, 0.7), (0.8, 0.6), (0.7, 0.1), (0.8, 0.6), (0.9, 0.1), (0.9, 0.1)]


@pytest.fixture
def early(base: Path, tmp_path: Path, figures: Any) -> Path:
    """A run that stopped by itself after step 4."""
    figures(STALE)
    display = Recorder()
    result = run(base, tmp_path / "early", display=display, **(CASE | {"evaluation__stop_after": 2}))
    assert result.steps == 4
    said = "stopped early at step 4 of 6: 2 validations without a better accuracy than that of step 2"
    assert display.notes.count(said) == 1
    return result.run


def test_a_run_stops_after_so_many_validations_without_a_better_one(base: Path, tmp_path: Path, early: Path) -> None:
    assert_final(early, 2, "accuracy", 4)
    assert read_manifest(early)["state"] == "finished"
    before = (early / "metrics.jsonl").read_bytes()
    again = run(base, tmp_path, resume=early, **(CASE | {"evaluation__stop_after": 2}))
    assert again.steps == 4  # it stays stopped
    assert (early / "metrics.jsonl").read_bytes() == before
    assert_final(early, 2, "accuracy", 4)
    more = run(base, tmp_path, resume=early, allow_changes=True, **(CASE | {"evaluation__stop_after": 3}))
    assert more.steps == 6
    assert_final(early, 5, "accuracy")


def boom() -> None:
    raise OSError("the cable was pulled")


@pytest.mark.parametrize("stop", [interrupt, boom], ids=["signal", "crash"])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_that_was_stopped_between_counts_as_one_that_was_not(
    base: Path, tmp_path: Path, figures: Any, early: Path, step: int, stop: Any
) -> None:
    changes = CASE | {"evaluation__stop_after": 2}
    at_step(step, stop)
    with pytest.raises((Interrupted, RunFailedError)):
        run(base, tmp_path, **changes)
    folder, display = only_run(tmp_path), Recorder()
    result = run(base, tmp_path, resume=folder, display=display, **changes)
    assert result.steps == 4
    assert sum("stopped early at step 4" in note for note in display.notes) == 1
    assert_final(folder, 2, "accuracy", 4)
    ours, theirs = weights(folder / "final"), weights(early / "final")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    lines = [(early / "metrics.jsonl"), folder / "metrics.jsonl"]
    steps = [[json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] for path in lines]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("override", ["evaluation.select=last", "evaluation.every=0"])
def test_early_stopping_without_a_figure_to_compare_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "try.yaml"
    path.write_text("model: {name: x}\ndata: {source: demo}\nevaluation: {stop_after: 2}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="early stopping needs validations"):
        load_recipe(path, [override])
