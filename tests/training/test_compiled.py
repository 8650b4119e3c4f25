"""A run with compiled layers has the losses and names of a plain one, and is resumed in the mode that it began with."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from training_cases import Recorder, at_step, only_run, run, weights

from rmtrain.errors import Interrupted
from rmtrain.model import compiling
from rmtrain.recipe.load import load_recipe
from rmtrain.training.trainer import GroupRewardTrainer

CASE: dict[str, Any] = {"optim__max_steps": 3, "evaluation__every": 3.0}


@pytest.mark.slow
@pytest.mark.timeout(1000)
# torch's compiler warns itself, of the gradients that it looks at, and hides that by a way that errors get around
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_run_is_stopped_and_resumed_as_such_and_learns_what_a_plain_one_does(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._functorch._aot_autograd.utils import make_boxed_func

    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)  # put back afterwards
    monkeypatch.setattr(  # C++ takes most of the time
        compiling._Backend, "_inner", lambda self, graph, inputs, **options: make_boxed_func(graph.forward)
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    plain = Recorder()
    run(base, tmp_path / "plain", display=plain, **CASE)
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(base, tmp_path / "cut", model__compile=True, **CASE)
    folder = only_run(tmp_path / "cut")
    assert load_recipe(folder / "recipe.yaml").recipe.model.compile is True
    display = Recorder()
    run(base, tmp_path / "cut", resume=folder, display=display, model__compile="auto", **CASE)
    assert "model.compile: true (the run began with it)" in display.notes
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for figure in ("loss", "eval_loss"):
        found, expected = ([line[figure] for line in part if figure in line] for part in (lines, plain.lines))
        assert len(found) == len(expected) > 0
        assert found == pytest.approx(expected, abs=1e-5)
    assert weights(folder / "final").keys() == weights(only_run(tmp_path / "plain") / "final").keys()
