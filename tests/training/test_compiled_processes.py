"""Processes with compiled layers learn what one does without: the same losses, rewards and names, with few graphs."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import write_base
from launches import COMPILER, LORA, STEPS, import_deepspeed, launch, of, results_of
from training_cases import fork, import_all, wait

pytestmark = pytest.mark.slow

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"optim__gradient_checkpointing": "full"},
    "fsdp": {},
    **({"zero2": {}} if COMPILER else {}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(__file__, tmp_path_factory.mktemp("processes"))


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("engine", ENGINES)
def test_processes_learn_what_one_does_uncompiled(results: dict[str, Any], engine: str) -> None:
    found, one = of(results, engine), of(results, "one")
    assert len(one["losses"]) == STEPS
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert found["validation"] == pytest.approx(one["validation"], abs=1e-5)
    assert found["scores"] == pytest.approx(one["scores"], abs=1e-5)
    assert found["shapes"] == one["shapes"]
    assert 0 < found["graphs"][0] == found["graphs"][-1] < 6  # all of them in the first step


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


def _main(folder: Path) -> None:
    # once here, in place of once in each of the processes below
    for name in ("torch.distributed.fsdp", "torch.distributed.tensor", "torch._inductor.compile_fx"):
        importlib.import_module(name)
    if COMPILER:
        import_deepspeed()
    import_all()
    assert wait(fork(1, lambda: write_base(folder / "base", head=True), folder / "log")) == [0]
    results = {"one": launch(folder, "one", 1, LORA)}
    for engine, own in ENGINES.items():
        changes = LORA | own | {"distributed__strategy": engine, "model__compile": True}
        prepare = partial(_traced_only, folder / engine, split=engine == "fsdp")
        results[engine] = launch(folder, engine, 2, changes, prepare)
        told = folder / engine / "graphs.json"
        results[engine]["graphs"] = json.loads(told.read_text(encoding="utf-8")) if told.exists() else []
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
