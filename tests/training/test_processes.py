"""Two processes train what one does, whatever the engine, and go on where they stopped."""

import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import make_config, write_base
from launches import COMPILER, FULL, LORA, STEP, STEPS, import_deepspeed, launch, of, results_of, score_there
from training_cases import at_step, cut, flipped, fork, import_all, make_recipe, missing, only_run, run, wait

from rmtrain.model.memory import measure_model
from rmtrain.training.checkpointing import MANIFEST, newest_valid
from rmtrain.training.memory import Sharding, estimate_states

pytestmark = pytest.mark.slow

ENGINES = ["ddp", "zero2", "zero3", "fsdp"]
RUNS: dict[str, tuple[int, dict[str, Any]]] = {  # processes, changes; the first of each kind is what others must equal
    "lora one": (1, LORA),
    "full one": (1, FULL),
} | {
    f"{kind} {engine}{suffix}": (2, changes | packing | {"distributed__strategy": engine})
    for kind, changes in {"lora": LORA, "full": FULL | {"optim__head_learning_rate": 1e-3}}.items()
    for engine in ENGINES
    for suffix, packing in {"": {}, " padded": {"model__packing": "none"}}.items()
    if kind == "lora" or not suffix  # an engine sees of padding what it sees with adapters
}
TEXT = LORA | {"loss__text_loss": 0.3}
RUNS |= {"text one": (1, TEXT)} | {
    f"text {engine}": (2, TEXT | {"distributed__strategy": engine}) for engine in ("zero3", "fsdp")
}
RUNS["lora fsdp"][1]["optim__gradient_checkpointing"] = "full"
RUNS["lora zero2 offload"] = (2, RUNS["lora zero2"][1] | {"distributed__offload": "optimizer"})
RESUMED = [f"{kind} {engine}" for kind in ("lora", "full") for engine in ENGINES]
OTHERS = {  # what was stopped is also gone on with by so many processes
    "lora ddp": {1: "one"},
    "lora one": {2: "two"},
    "lora fsdp": {1: "one", 3: "three"},
    "lora zero2": {1: "one"},
}
HELD = LORA | {"lora__rank": 3, "distributed__strategy": "fsdp", "optim__max_steps": 1, "evaluation__every": 0.0}
RETUNED: dict[str, Any] = {"optim__learning_rate": 1e-5, "optim__betas": [0.8, 0.95], "optim__weight_decay": 0.1}
OWN = {"zero_optimization": {"stage": 1}, "steps_per_print": 2**31 - 1}  # a user's file
if not COMPILER:
    RUNS = {name: value for name, value in RUNS.items() if "zero" not in name}
    RESUMED = [name for name in RESUMED if "zero" not in name]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(__file__, tmp_path_factory.mktemp("processes"))


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith(" one")])
def test_every_engine_trains_what_one_process_does(results: dict[str, Any], name: str) -> None:
    found, one = of(results, name), of(results, f"{name.split()[0]} one")
    assert len(one["losses"]) == STEPS
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert found["accuracies"] == one["accuracies"]
    assert found["validation"] == pytest.approx(one["validation"], abs=1e-5)
    assert found["tokens"] == one["tokens"] or "padded" in name


@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith(" one")])
def test_every_engines_model_loads_and_scores_alike(results: dict[str, Any], name: str) -> None:
    found, one = of(results, name), of(results, f"{name.split()[0]} one")
    assert found["scores"] == pytest.approx(one["scores"], abs=1e-5)
    assert found["shapes"] == one["shapes"]
    assert found["scores there"] == [pytest.approx(found["scores"], abs=1e-6)] * 2  # in the processes that trained


@pytest.mark.parametrize("name", RESUMED)
def test_a_signal_to_one_process_stops_all_at_one_step_and_the_rest_is_made_later(
    results: dict[str, Any], name: str
) -> None:
    found = results[f"{name} stopped"]
    assert found["codes"] == [130, 130], found["log"]
    assert found["state"] == "interrupted"
    assert found["checkpoints"] == [f"checkpoint-{STEP}"]
    assert found["validation"] == []  # the checkpoint comes first
    again = of(results, f"{name} resumed")
    whole = of(results, name)
    assert again["losses"] == whole["losses"][STEP:]
    assert again["validation"] == whole["validation"]
    assert again["scores"] == whole["scores"]


@pytest.mark.parametrize("name", ["lora ddp on one", "lora one on two", "lora fsdp on three"])
def test_a_run_goes_on_with_another_number_of_processes(results: dict[str, Any], name: str) -> None:
    found, whole = of(results, name), of(results, "lora one")
    assert found["losses"] == pytest.approx(whole["losses"][STEP:], abs=1e-5)
    assert found["validation"] == pytest.approx(whole["validation"], abs=1e-5)
    assert found["scores"] == pytest.approx(whole["scores"], abs=1e-5)
    assert any("random states are not restored" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora fsdp on one", "ddp can't read the optimiser state that fsdp wrote"),
        ("lora zero2 on one", "zero2 checkpoints resume only on the same number of processes: 2"),
    ],
)
def test_a_number_of_processes_that_the_engine_does_not_take_is_refused(
    results: dict[str, Any], name: str, said: str
) -> None:
    if name not in results:
        pytest.skip("no C++ compiler")
    found = results[name]
    assert found["codes"] == [2], found["log"]
    assert said in found["log"]
    assert found["state"] == "interrupted"  # as it was


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_a_users_own_deepspeed_file_is_what_the_run_takes(results: dict[str, Any]) -> None:
    found, one = of(results, "own file"), of(results, "lora one")
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert found["scores"] == pytest.approx(one["scores"], abs=1e-5)
    assert any(note.startswith("strategy zero2") for note in found["notes"])


@pytest.mark.parametrize("damage", [missing, cut, flipped])
@pytest.mark.parametrize("name", ["lora ddp", "lora zero2"])
def test_no_file_of_a_checkpoint_can_be_damaged_unseen(
    results: dict[str, Any], name: str, damage: Callable[[Path], None]
) -> None:
    if name not in results:
        pytest.skip("no C++ compiler")
    folder = Path(of(results, name)["run"]) / "checkpoints"
    newest = newest_valid(folder)
    assert newest.path == folder / f"checkpoint-{STEPS}"
    files = [newest.path / file for file in [*newest.manifest["files"], MANIFEST]]
    assert sorted(files) == sorted(path for path in newest.path.rglob("*") if path.is_file())
    for file in files:
        content = file.read_bytes()
        damage(file)
        found = newest_valid(folder)
        file.write_bytes(content)
        assert found.path == folder / f"checkpoint-{STEP}"
        assert file.name in found.passed_over[0][1]
    assert newest_valid(folder).path == newest.path


def test_fsdp_holds_what_is_predicted(results: dict[str, Any]) -> None:
    """Of tensors whose rows do not divide: the adapters' rank is 3, and the score head has one row."""
    place = Path(of(results, "fsdp held")["run"]).parent
    held = json.loads((place / "held.json").read_text(encoding="utf-8"))
    recipe = make_recipe(place.parent / "base", place, **HELD)
    size = measure_model(make_config(), recipe.model, recipe.lora)
    found = estimate_states(size, recipe.optim.optimizer, Sharding("fsdp"), 2)
    assert held["trained"] == found.gradients  # which take as much
    assert held["state"] == found.optimizer
    assert held["frozen"] == pytest.approx(found.parameters - found.gradients, rel=0.01)


def test_fsdp_without_accelerators_is_refused(results: dict[str, Any]) -> None:
    found = results["fsdp refused"]
    assert found["codes"] == [2, 2], found["log"]
    assert "distributed.strategy: fsdp needs GPUs" in found["log"]
    assert found["state"] is None  # no run folder is left


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_zero_runs_on_a_single_process(results: dict[str, Any]) -> None:
    found, one = of(results, "zero2 alone"), of(results, "lora one")
    assert found["losses"] == pytest.approx(one["losses"][: len(found["losses"])], abs=1e-5)


@pytest.mark.parametrize("name", ["fsdp held", *(["zero2 alone"] if COMPILER else [])])
def test_a_resumed_run_has_the_optimiser_settings_of_its_own_recipe(results: dict[str, Any], name: str) -> None:
    for group in json.loads((Path(of(results, name)["run"]).parent / "settings.json").read_text(encoding="utf-8")):
        assert group["initial_lr"] == RETUNED["optim__learning_rate"]
        assert 0 < group["lr"] <= group["initial_lr"]
        assert group["betas"] == RETUNED["optim__betas"]
        assert group["weight_decay"] in (RETUNED["optim__weight_decay"], 0.0)  # none on biases and norms


# The script


def _resume_retuned(changes: dict[str, Any], folder: Path) -> None:
    """Make one more step of a run with other optimiser settings, and write what its optimiser held in that step."""
    from rmtrain.training.trainer import GroupRewardTrainer

    before = GroupRewardTrainer.compute_loss

    def spied(self: Any, *args: Any, **kwargs: Any) -> Any:
        keys = ("lr", "initial_lr", "betas", "weight_decay")
        held = [{key: group[key] for key in keys} for group in self.optimizer.param_groups if group["params"]]
        if self.args.process_index == 0:
            (folder.parent / "settings.json").write_text(json.dumps(held), encoding="utf-8")
        return before(self, *args, **kwargs)

    GroupRewardTrainer.compute_loss = spied  # type: ignore[method-assign]
    step = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["steps"]
    again = changes | RETUNED | {"optim__epochs": 2.0, "optim__max_steps": step + 1}
    run(folder.parent.parent / "base", folder.parent, resume=folder, allow_changes=True, **again)


def _tell_what_is_held(folder: Path) -> None:
    from torch.distributed.tensor import DTensor

    from rmtrain.training.trainer import GroupRewardTrainer

    def size(tensor: Any) -> int:
        return int((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes)

    before = GroupRewardTrainer._save_checkpoint

    def save(self: Any, *args: Any) -> None:
        before(self, *args)
        sizes = {True: 0, False: 0}
        for parameter in self.model.parameters():
            sizes[parameter.requires_grad] += size(parameter)
        state = sum(size(value) for entry in self.optimizer.state.values() for value in entry.values())
        held = {"trained": sizes[True], "frozen": sizes[False], "state": state}
        if self.args.process_index == 0:
            (folder / "held.json").write_text(json.dumps(held), encoding="utf-8")

    GroupRewardTrainer._save_checkpoint = save  # type: ignore[method-assign]


def _main(folder: Path) -> None:
    # once here, in place of once in each of the processes below
    for name in ("torch.distributed.fsdp", "torch.distributed.tensor"):
        importlib.import_module(name)
    if COMPILER:
        import_deepspeed()
    import_all()
    assert wait(fork(1, lambda: write_base(folder / "base", head=True), folder / "log")) == [0]
    results = {
        name: launch(folder, name, processes, changes, then=score_there) for name, (processes, changes) in RUNS.items()
    }
    for name in [*RESUMED, "lora one"]:
        processes, changes = RUNS[name]
        stopped = f"{name} stopped"
        results[stopped] = launch(
            folder,
            stopped,
            processes,
            changes,
            lambda last=processes - 1: at_step(STEP, lambda: os.kill(os.getpid(), signal.SIGTERM), process=last),
        )
        mine = only_run(folder / stopped.replace(" ", "-"))
        for number, words in OTHERS.get(name, {}).items():
            other = f"{name} on {words}"
            copy = Path(shutil.copytree(mine, folder / other.replace(" ", "-") / mine.name))
            results[other] = launch(folder, other, number, changes, resume=copy)
        if name != "lora one":
            results[f"{name} resumed"] = launch(folder, f"{name} resumed", processes, changes, resume=mine)
    place = folder / "fsdp-held"
    retune = partial(_resume_retuned, HELD)
    results["fsdp held"] = launch(folder, "fsdp held", 2, HELD, lambda: _tell_what_is_held(place), then=retune)
    results["fsdp refused"] = launch(folder, "fsdp refused", 2, LORA | {"distributed__strategy": "fsdp"})
    if COMPILER:
        alone = LORA | {"distributed__strategy": "zero2", "evaluation__every": 0.0}
        results["zero2 alone"] = launch(folder, "zero2 alone", 1, alone, then=partial(_resume_retuned, alone))
        (folder / "own.json").write_text(json.dumps(OWN), encoding="utf-8")
        own = LORA | {"distributed__deepspeed_config": str(folder / "own.json")}
        results["own file"] = launch(folder, "own file", 2, own)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
