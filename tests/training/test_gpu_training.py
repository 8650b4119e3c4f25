"""Training runs on a GPU: what half precision, quantised bases and interruptions do there."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_base
from gpu_cases import NEEDS_GPU, REHEARSAL
from training_cases import Recorder, at_step, only_run, run, weights

from rmtrain.errors import Interrupted, NonFiniteError
from rmtrain.training.trainer import GroupRewardTrainer

pytestmark = [*NEEDS_GPU, pytest.mark.filterwarnings("ignore:MatMul8bitLt")]
CLOSE = 1e-5 if REHEARSAL else 2e-3  # sums of a GPU's kernels come in no fixed order


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_learns(base: Path, tmp_path: Path, dtype: str) -> None:
    display = Recorder()
    result = run(base, tmp_path, display=display, model__dtype=dtype, optim__epochs=6.0)
    losses = [line["loss"] for line in display.lines if "loss" in line]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(
        tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights(result.run / "final").values()
    )


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_bases_learn(tmp_path: Path, kind: str) -> None:
    wide = write_base(tmp_path / "wide", hidden_size=64, head_dim=16)
    display = Recorder()
    changes = {"model__dtype": "bfloat16", "model__quantization": kind, "optim__epochs": 4.0}
    run(wide, tmp_path, display=display, **changes)
    losses = [line["loss"] for line in display.lines if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_optimisers_of_bitsandbytes_learn(base: Path, tmp_path: Path, optimizer: str) -> None:
    if REHEARSAL:
        pytest.skip("8-bit optimisers need a GPU")
    display = Recorder()
    run(base, tmp_path, display=display, optim__optimizer=optimizer, optim__epochs=4.0)
    losses = [line["loss"] for line in display.lines if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_an_interrupted_run_ends_where_the_whole_one_does(base: Path, tmp_path: Path) -> None:
    whole = weights(run(base, tmp_path / "whole", lora__dropout=0.0).run / "final")
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(base, tmp_path / "cut", lora__dropout=0.0)
    found = only_run(tmp_path / "cut")
    resumed = weights(run(base, tmp_path / "cut", resume=found, lora__dropout=0.0).run / "final")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=CLOSE, rtol=0, msg=name)


def test_a_loss_that_is_not_finite_ends_the_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = GroupRewardTrainer._rewards

    def poisoned(self: Any, *args: Any) -> Any:
        batch = plain(self, *args)
        return replace(batch, rewards=batch.rewards * torch.nan)

    monkeypatch.setattr(GroupRewardTrainer, "_rewards", poisoned)
    with pytest.raises(NonFiniteError):
        run(base, tmp_path)


def test_a_killed_command_goes_on(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"w{i % 50}", "chosen": f"w1 w{i % 40} w3", "rejected": "w4"}) + "\n"
            for i in range(200)
        )
    )
    recipe = tmp_path / "try.yaml"
    recipe.write_text(
        json.dumps(
            {
                "model": {"name": str(base), "dtype": "float32"},
                "lora": {"rank": 2, "alpha": 4.0},
                "data": {"source": {"train": str(rows)}, "max_length": 64, "duplicates": "keep"},
                "optim": {"global_batch_size": 4, "max_steps": 40},
                "evaluation": {"every": 0, "select": "last", "splits": []},
                "run": {"folder": str(tmp_path / "runs"), "save_every": 2},
            }
        )
    )
    train = [sys.executable, "-m", "rmtrain", "train", "--num-processes", "1"]
    started = subprocess.Popen([*train, str(recipe)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*/checkpoints/*/checkpoint.json")) and started.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.kill()
    started.wait()
    (found,) = (tmp_path / "runs").iterdir()
    done = subprocess.run([*train, "--resume", str(found), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 40
