"""What a recipe says of the optimiser is what it holds, from the first step of a resumed run on too."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import make_groups
from training_cases import Recorder, run

from rmtrain.errors import InputError
from rmtrain.recipe.schema import OptimSection
from rmtrain.training.trainer import GroupRewardTrainer

CASE: dict[str, Any] = {  # 4 steps
    "groups": make_groups(16, seed=1),
    "validation": (),
    "lora__dropout": 0.0,
    "optim__global_batch_size": 4,
    "optim__epochs": 1.0,
    "evaluation__every": 0.0,
}
HEAD: dict[str, Any] = {"optim__head_learning_rate": 1e-3}
REFUSED = "refused"
# for each key a value to resume with; the optimiser must then hold what it holds in a run with it from the start
CHANGES: dict[str, Any] = {
    "learning_rate": 1e-5,
    "head_learning_rate": 2e-4,
    "epochs": 2.0,
    "max_steps": 3,
    "global_batch_size": 2,
    "tokens_per_microbatch": 200,
    "microbatch_size": 2,
    "schedule": "linear",
    "warmup_ratio": 0.9,
    "optimizer": REFUSED,
    "betas": (0.8, 0.95),
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "gradient_checkpointing": "full",
    "activation_offloading": True,
}


def held(monkeypatch: pytest.MonkeyPatch, base: Path, folder: Path, **changes: Any) -> tuple[Path, dict[int, Any]]:
    """The run, and what its optimiser held in each step that was made."""
    before, found = GroupRewardTrainer._get_grad_norm, dict[int, Any]()

    def spied(self: Any, *args: Any, **kwargs: Any) -> Any:
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        found[self.state.global_step + 1] = (groups, self.args.max_grad_norm, self.args.gradient_checkpointing)
        return before(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GroupRewardTrainer, "_get_grad_norm", spied)
        return run(base, folder, **(CASE | HEAD | changes)).run, found


@pytest.fixture(scope="module")
def stopped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose newest checkpoint is of its second step."""
    changes = CASE | HEAD | {"run__save_every": 2.0}
    folder: Path = run(base, tmp_path_factory.mktemp("stopped"), **changes).run
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    return folder


def copied(stopped: Path, folder: Path) -> Path:
    return Path(shutil.copytree(stopped, folder / stopped.name))


@pytest.mark.parametrize("key", OptimSection.model_fields)
def test_a_resumed_optimiser_holds_what_the_recipe_says(
    base: Path, tmp_path: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    changes = {f"optim__{key}": CHANGES[key]}
    mine = copied(stopped, tmp_path)
    if CHANGES[key] is REFUSED:
        with pytest.raises(InputError, match="can't read the optimiser state that adamw wrote"):
            run(base, tmp_path, resume=mine, allow_changes=True, **(CASE | HEAD | {"optim__optimizer": "adamw_8bit"}))
        return
    folder, resumed = held(monkeypatch, base, tmp_path, resume=mine, allow_changes=True, **changes)
    _, fresh = held(monkeypatch, base, tmp_path / "fresh", **changes)
    assert min(resumed) == 3
    assert resumed == {step: settings for step, settings in fresh.items() if step > 2}
    last = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["resumed"][-1]
    free = key in ("tokens_per_microbatch", "microbatch_size", "gradient_checkpointing", "activation_offloading")
    assert (f"optim.{key}" in last["changed"]) != free


def test_the_rate_of_the_first_step_is_that_of_the_new_schedule_and_its_jump_is_said(
    base: Path, tmp_path: Path, stopped: Path
) -> None:
    mine, display = copied(stopped, tmp_path), Recorder()
    changes = CASE | HEAD | {"optim__learning_rate": 1e-2, "optim__schedule": "linear"}
    run(base, tmp_path, resume=mine, allow_changes=True, display=display, **changes)
    before = 3e-3 * 0.5 * (1 + math.cos(math.pi * (2 - 1) / (4 - 1)))  # one step of warm-up
    now = 1e-2 * (4 - 2) / (4 - 1)
    assert f"the learning rate of step 3 jumps from {before:.3g} to {now:.3g}" in display.notes
    assert display.lines[0]["step"] == 3
    assert display.lines[0]["learning_rate"] == pytest.approx(now)


def test_a_finished_run_goes_on_at_the_rate_of_the_longer_schedule(base: Path, tmp_path: Path) -> None:
    mine, display = run(base, tmp_path, **CASE).run, Recorder()
    longer = CASE | {"optim__epochs": 2.0}
    run(base, tmp_path, resume=mine, allow_changes=True, display=display, **longer)
    rate = 3e-3 * 0.5 * (1 + math.cos(math.pi * (4 - 1) / (8 - 1)))
    assert f"the learning rate of step 5 jumps from 0 to {rate:.3g}" in display.notes
    assert display.lines[0]["learning_rate"] == pytest.approx(rate)
    again = Recorder()
    run(base, tmp_path, resume=mine, display=again, **longer)
    assert not any("jumps" in note for note in again.notes)


@pytest.mark.parametrize(("there", "now"), [(None, 1e-3), (1e-3, None)])
def test_a_heads_own_rate_can_not_come_or_go(base: Path, tmp_path: Path, there: Any, now: Any) -> None:
    changes = CASE | {"optim__max_steps": 1}
    mine = run(base, tmp_path, **changes, optim__head_learning_rate=there).run
    with pytest.raises(InputError, match=r"optim\.head_learning_rate was (null|0\.001); the score head has") as caught:
        run(base, tmp_path, resume=mine, allow_changes=True, **changes, optim__head_learning_rate=now)
    assert "resume with" in caught.value.hint
