"""Compiled runs learn what one does without, with few graphs, and a killed one goes on to the same weights."""

import importlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_base
from launches import COMPILER, LORA, STEP, STEPS, import_deepspeed, launch, of, results_of
from training_cases import fork, import_all, only_run, wait, weights

pytestmark = pytest.mark.slow

ENGINES: dict[str, dict[str, Any]] = {
    "alone": {},
    "ddp": {"distributed__strategy": "ddp", "optim__gradient_checkpointing": "full"},
    "fsdp": {"distributed__strategy": "fsdp"},
    **({"zero2": {"distributed__strategy": "zero2"}} if COMPILER else {}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(__file__, tmp_path_factory.mktemp("processes"))


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("engine", ENGINES)
def test_compiled_runs_learn_what_one_does_uncompiled(results: dict[str, Any], engine: str) -> None:
    found, one = of(results, engine), of(results, "one")
    assert len(one["losses"]) == STEPS
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert found["validation"] == pytest.approx(one["validation"], abs=1e-5)
    assert found["scores"] == pytest.approx(one["scores"], abs=1e-5)
    assert found["shapes"] == one["shapes"]
    assert 0 < found["graphs"][0] == found["graphs"][-1] < 6  # all of them in the first step


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(results: dict[str, Any], engine: str) -> None:
    again, whole = of(results, f"{engine} resumed"), of(results, engine)
    assert again["graphs"][0] == again["graphs"][-1] > 0
    assert again["losses"] == whole["losses"][STEP:]
    assert again["validation"] == whole["validation"][2:]  # accuracy and loss; the killed step had been validated
    found, expected = (weights(Path(run["run"]) / "final") for run in (again, whole))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoints_have_the_names_of_an_uncompiled_run(results: dict[str, Any], engine: str) -> None:
    found, plain = (
        weights(Path(results[name]["run"]) / "checkpoints" / f"checkpoint-{STEP}").keys() for name in (engine, "one")
    )
    assert found == plain


# The script


def _traced_only(folder: Path, split: bool) -> None:
    """Layers are traced as always, and the graphs run as they are; how many there are after each step is told.

    Splitting them into a forward and a backward graph takes most of the time, so it is done where weights come and go.
    """
    from torch._dynamo.utils import counters
    from torch._functorch._aot_autograd.utils import make_boxed_func

    from rmtrain.model import compiling
    from rmtrain.training.trainer import GroupRewardTrainer

    before, graphs = GroupRewardTrainer.training_step, list[int]()

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = before(self, *args, **kwargs)
        graphs.append(counters["stats"]["unique_graphs"])
        if self.args.process_index == 0:
            (folder / "graphs.json").write_text(json.dumps(graphs), encoding="utf-8")
        return loss

    GroupRewardTrainer.training_step = step  # type: ignore[method-assign]
    if not split:
        compiling._Backend.__call__ = lambda self, graph, inputs: graph.forward  # type: ignore[method-assign]
    compiling._Backend._inner = (  # type: ignore[method-assign]
        lambda self, graph, *rest, **options: make_boxed_func(graph.forward)
    )


def _killed_after(run: Path, place: Path) -> Path:
    """A copy of a finished run as it would be had it been killed soon after it wrote a checkpoint."""
    ignored = shutil.ignore_patterns("final", f"checkpoint-{STEPS}")
    copy = Path(shutil.copytree(run, place / run.name, ignore=ignored))
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"state": "running"}), encoding="utf-8")
    return copy


def _launch(folder: Path, name: str, engine: str, resume: Path | None = None) -> dict[str, Any]:
    place = resume.parent if resume else folder / name
    prepare = partial(_traced_only, place, split=engine == "fsdp")
    changes = LORA | ENGINES[engine] | {"model__compile": True}
    found = launch(folder, name, 1 if engine == "alone" else 2, changes, prepare, resume)
    told = place / "graphs.json"
    return found | {"graphs": json.loads(told.read_text(encoding="utf-8")) if told.exists() else []}


def _main(folder: Path) -> None:
    # once here, in place of once in each of the processes below
    for name in ("torch.distributed.fsdp", "torch.distributed.tensor", "torch._inductor.compile_fx"):
        importlib.import_module(name)
    if COMPILER:
        import_deepspeed()
    import_all()
    assert wait(fork(1, lambda: write_base(folder / "base", head=True), folder / "log")) == [0]
    results = {"one": launch(folder, "one", 1, LORA)}
    for engine in ENGINES:
        results[engine] = _launch(folder, engine, engine)
        killed = _killed_after(only_run(folder / engine), folder / f"{engine}-killed")
        results[f"{engine} resumed"] = _launch(folder, f"{engine} resumed", engine, killed)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
