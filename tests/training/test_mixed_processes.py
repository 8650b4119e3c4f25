"""A mixture on two processes: the rows, the data report and the validation of one process, also after a kill."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import write_base, write_pairs
from launches import results_of
from training_cases import Recorder, at_step, fork, import_all, only_run, save, wait

from rmtrain.recipe.load import parse_recipe_text

pytestmark = pytest.mark.slow

STEPS, KILLED = 8, 5
FIGURES = ("step", "eval_loss", "eval_accuracy", "eval_mean_accuracy", "eval_accuracy/large", "eval_accuracy/small")
PARTS = {  # 0 is killed, 2 goes on with it, and 1 is whole: on how many processes
    "one": {1: 1},
    "two killed": {0: 2, 2: 2},
    "two killed one resumed": {0: 2, 2: 1},
}
NAMES = [*list(PARTS)[1:], "two launched"]
RECIPE = """
model: {{name: {folder}/base, dtype: float32}}
lora: {{rank: 4, alpha: 8, dropout: 0.0}}
data:
  max_length: 64
  repeat: true
  contradictions: first
  source:
    train:
      - {{source: {folder}/a.jsonl, weight: 1, limit: 9, tags: [helpful]}}
      - {{source: {folder}/b.jsonl, weight: 2, name: small, tags: [code, hard]}}
      - {{source: {folder}/again.jsonl, weight: 0.5}}
      - {{source: {folder}/c.jsonl, weight: 1, preferences: best_vs_rest}}
    validation:
      - {{source: {folder}/v.jsonl, name: large}}
      - {{source: {folder}/w.jsonl, name: small, tags: [code]}}
  augment: {{other_prompts: 0.2}}
optim: {{learning_rate: 0.003, global_batch_size: 5, max_steps: 8, epochs: 5, tokens_per_microbatch: 200}}
evaluation: {{every: 2, select: mean_accuracy}}
run: {{folder: {place}, name: try, save_every: 1}}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(__file__, tmp_path_factory.mktemp("mixed"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_is_that_of_one_process(results: dict[str, Any], name: str) -> None:
    found, one = results[name], results["one"]
    assert set(found["codes"]) == {0}, found["log"]
    assert len(one["steps"]) == STEPS
    assert found["steps"] == one["steps"]
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_data_report_is_that_of_one_process(results: dict[str, Any], name: str) -> None:
    assert results[name]["report"] == results["one"]["report"]
    assert results[name]["data"] == results["one"]["data"]


@pytest.mark.parametrize("name", NAMES)
def test_validation_by_entry_and_the_chosen_step_are_those_of_one_process(results: dict[str, Any], name: str) -> None:
    found, one = results[name], results["one"]
    assert [line["step"] for line in one["validation"]] == [2, 4, 6, 8]
    assert {"eval_accuracy/large", "eval_accuracy/small", "eval_mean_accuracy"} <= {*one["validation"][0]}
    assert len(found["validation"]) == len(one["validation"])
    for ours, theirs in zip(found["validation"], one["validation"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert found["final"] == one["final"]


def test_each_step_is_drawn_from_the_whole_mixture(results: dict[str, Any]) -> None:
    data, steps = results["one"]["data"]["train"], results["one"]["steps"]
    entries = data["entries"]
    groups = sum(each["groups"] for each in entries.values())
    per_pass = -(-groups // 5)
    first = [name for step in steps[:per_pass] for name in step]
    assert len(first) == groups
    assert {name: sum(one.startswith(f"{name}/") for one in first) for name in entries} == {
        name: each["groups"] for name, each in entries.items()
    }
    assert max(first.count(name) for name in first) > 1  # a small entry is repeated


# The script


def _work(folder: Path, place: Path, part: int, resume: Path | None) -> None:
    """Train the mixture as the command does, and write which groups this process saw; the first part is killed."""
    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import recipe_renderer
    from rmtrain.reporting.data_report import data_report
    from rmtrain.training.train import train
    from rmtrain.training.trainer import GroupRewardTrainer

    rank, before = int(os.environ.get("RANK", "0")), GroupRewardTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids = inputs["ids"] if inputs["counts"]["groups"] else []  # else it fills a place, without weight
        with open(place / f"seen-{part}.{rank}", "a", encoding="utf-8") as file:
            file.write(json.dumps([self.state.global_step + 1, ids]) + "\n")
        return before(self, model, inputs, *args, **kwargs)

    GroupRewardTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    if part == 0:
        at_step(
            KILLED, lambda: os.kill(os.getpid(), signal.SIGKILL), process=int(os.environ.get("WORLD_SIZE", "1")) - 1
        )
    loaded = parse_recipe_text(RECIPE.format(folder=folder, place=place), "try.yaml", [])
    ready = prepare(loaded.recipe, recipe_renderer(loaded.recipe.model), Recorder())
    if rank == 0:
        save(place / "report.json", data_report(ready.data, ready.splits).as_json())
    train(loaded, ready.splits, ready.renderer, Recorder(), resume)


def _launch(folder: Path, name: str, parts: dict[int, int]) -> dict[str, Any]:
    """Train in one or two parts, each on so many processes, and read what they saw and wrote."""
    place = folder / name.replace(" ", "-")
    place.mkdir()
    steps: dict[int, list[str]] = {}
    for part, processes in parts.items():
        work = partial(_work, folder, place, part, only_run(place) if part == 2 else None)
        codes = wait(fork(processes, work, place / "log"), 120)
        seen: dict[int, list[str]] = {}
        for path in place.glob(f"seen-{part}.*"):
            for step, ids in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                seen.setdefault(step, []).extend(ids)
        steps |= seen
    run = only_run(place)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return {
        "codes": codes,
        "log": "\n".join(path.read_text(encoding="utf-8")[-2000:] for path in sorted(place.glob("log.*"))),
        "steps": [sorted(ids) for _, ids in sorted(steps.items())],
        "losses": [line["loss"] for line in lines if "loss" in line],
        "validation": [{key: x for key, x in line.items() if key in FIGURES} for line in lines if "eval_loss" in line],
        "data": manifest["data"],
        "final": manifest["final"],
        "report": json.loads((place / "report.json").read_text(encoding="utf-8")),
    }


def _main(folder: Path) -> None:
    from rmtrain.data.load import load_data
    from rmtrain.data.prepare import shared_with_processes

    import_all()
    assert wait(fork(1, lambda: write_base(folder / "base", head=True), folder / "log")) == [0]
    for seed, (name, count) in enumerate({"a": 12, "b": 3, "c": 9, "new": 4, "v": 10, "w": 3}.items(), 1):
        write_pairs(folder / f"{name}.jsonl", count, seed)
    old, new = ((folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:4] for name in ("a", "new"))
    (folder / "again.jsonl").write_text("\n".join([*old, *new]), encoding="utf-8")
    results = {name: _launch(folder, name, parts) for name, parts in PARTS.items()}
    recipe = parse_recipe_text(RECIPE.format(folder=folder, place=folder), "try.yaml", []).recipe
    with shared_with_processes(load_data(recipe.data, recipe.run.seed)):  # as --num-processes hands the rows on
        results["two launched"] = _launch(folder, "two launched", {1: 2})
    save(folder / "results.json", results)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
