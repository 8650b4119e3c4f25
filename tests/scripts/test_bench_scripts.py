"""The benchmarks run, and what they compare is equal; how fast it is is never asserted."""

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from conftest import write_base

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Runs a script in this process, whose sides may be `fresh` processes as they are for a user."""

    def run(script: str, folder: Path, *options: str, fresh: bool = False) -> tuple[str, dict[str, Any]]:
        base = folder / "base"
        if not base.exists():
            write_base(base, "mistral")
        command = [script, "--model", str(base), "--json", str(folder / "out.json"), *options]
        output = io.StringIO()
        streams = contextlib.redirect_stdout(output)
        with monkeypatch.context() as patch, streams, warnings.catch_warnings(), warm.starting():
            warnings.simplefilter("ignore")
            patch.setattr(sys, "argv", command)
            patch.syspath_prepend(str(SCRIPTS))
            if not fresh:
                patch.setattr(importlib.import_module("sides"), "alone", lambda side, settings: side(settings))
            importlib.import_module(script.removesuffix(".py")).main()
        return output.getvalue(), json.loads((folder / "out.json").read_text())

    return run


@pytest.mark.parametrize("ways", [2, 4])
def test_training_sides_learn_the_same(run: Any, tmp_path: Path, ways: int) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"w1 {'w2 ' * (3 * i)}w3", "chosen": f"w4 w{i + 5} " * (i + 1), "rejected": f"w{i + 20} w6"}
        for i in range(8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", str(data), "--ways", str(ways), "--groups", "4", "--steps", "2", "--repeats", "1"]
    sides = ["rmtrain", "prompt twice", "TRL"] if ways == 4 else ["rmtrain", "TRL"]
    if ways == 2:
        options[options.index("--groups") + 1] = "8"
        options[options.index("--steps") + 1] = "1"
    text, found = run(
        "bench_training.py", tmp_path, *options, "--max-length", "2048", "--sides", *sides, fresh=ways == 2
    )
    for name in sides[1:]:
        assert found["against"][name]["loss_difference"] < 1e-5
        assert found["against"][name]["tokens"] > 1
    runs = found["runs"]
    assert {name: part[0]["pairs"] for name, part in runs.items()} == dict.fromkeys(sides, 8 if ways == 2 else 48)
    assert found["sides"]["rmtrain"]["matrix_rate_used"]["median"] > 0
    assert "times the pairs a second" in text


def test_processes_learn_the_same(run: Any, tmp_path: Path) -> None:
    options = ["--groups", "8", "--steps", "2", "--repeats", "1", "--max-length", "128"]
    text, found = run("bench_scaling.py", tmp_path, *options)
    assert set(found["sides"]) == {"1", "2"}
    assert max(side["loss_difference"] for side in found["sides"].values()) < 1e-5
    assert found["runs"]["1"][0]["tokens"] == found["runs"]["2"][0]["tokens"]
    assert "speed-up" in text


def test_scoring_sides_give_the_same_rewards(run: Any, tmp_path: Path) -> None:
    text, found = run("bench_scoring.py", tmp_path, "--limit", "20", "--repeats", "1")
    assert found["reward_difference"] < 1e-5
    assert len(found["runs"]["rmtrain"][0]["rewards"]) == 20
    assert "preferences/s" in text


def test_sharing_sweep_has_every_point_and_equal_losses(run: Any, tmp_path: Path) -> None:
    plot = tmp_path / "sharing.svg"
    options = ["--prompts", "4", "16", "--ways", "2", "5", "--completion", "6", "--repeats", "1", "--plot", str(plot)]
    _, found = run("bench_sharing.py", tmp_path, *options)
    assert [(point["prompt"], point["ways"]) for point in found["points"]] == [(4, 2), (4, 5), (16, 2), (16, 5)]
    for point in found["points"]:
        k, prompt = point["ways"], point["prompt"]
        assert point["loss_difference"] < 1e-5
        assert point["tokens"] == {
            "each prompt once": prompt + 6 * k,
            "packed, prompt before each": k * (prompt + 6),
            "padded pairs": k * (k - 1) * (prompt + 6),
        }
        assert 0 < point["kept_bytes"]["each prompt once"] < point["kept_bytes"]["packed, prompt before each"]
    assert plot.read_text().lstrip().startswith("<?xml")


def test_profile_tells_base_from_adapters(run: Any, tmp_path: Path) -> None:
    text, found = run("profile_step.py", tmp_path, "--groups", "4", "--steps", "1", "--rank", "7")
    assert {"base matrix products", "adapters' matrix products", "attention"} <= set(found["microseconds"])
    assert "ms a step" in text


def test_random_model_is_one_that_can_be_trained(run: Any, tmp_path: Path) -> None:
    write_base(tmp_path / "small", "mistral")
    target = tmp_path / "base"  # what `run` then takes
    options = ["--tokenizer", str(tmp_path / "small"), "--output", str(target), "--hidden", "128", "--layers", "1"]
    warm.run([sys.executable, str(SCRIPTS / "random_model.py"), *options], check=True, timeout=120)
    _, found = run("bench_scoring.py", tmp_path, "--limit", "4", "--repeats", "1", "--dtype", "bfloat16")
    assert len(found["runs"]["padded"][0]["rewards"]) == 4


@pytest.mark.skipif(os.environ.get("RMTRAIN_REHEARSE_GPU") != "1", reason="part of a rehearsal of the GPU's stages")
def test_memory_is_predicted_and_measured(run: Any, tmp_path: Path) -> None:
    options = ["--groups", "8", "--steps", "1", "--max-length", "64", "--tokens", "256", "--free", "1"]
    _, found = run("bench_memory.py", tmp_path, *options, "--dtype", "float32", "--rank", "2")
    (row,) = found["runs"]
    assert row["predicted"] > 0
    assert row["measured"] > 0
    assert row["overrides"] == []


def test_gpu_script_says_what_it_needs() -> None:
    script = SCRIPTS / "bench_gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)  # the whole of it: bash runs a script as it reads it
    done = subprocess.run([str(script), "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
    head, _, cases = script.read_text().partition("case $stage in")
    stages = re.findall(r"^#   (\w+)  ", head, re.MULTILINE)
    assert stages == re.findall(r"^  (\w+)\)", cases, re.MULTILINE)
    assert all(stage in done.stderr for stage in stages)


@pytest.mark.parametrize("workload", ["own", "shared"])
def test_serving_sides_give_the_same_rewards(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, workload: str
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(importlib.import_module("sides"), "alone", lambda side, settings: side(settings))
    options = ["--ckpt", str(models / "rm"), "--clients", "8", "--requests", "16", "--repeats", "1", "--words", "30"]
    out = ["--workload", workload, "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["bench_serving.py", *options, *out])
    with warm.starting():
        importlib.import_module("bench_serving").main()
    assert f"16 requests of 8 clients, prompts {workload}" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["reward_difference"] < 1e-5
    assert set(found["sides"]) == {"gathered", "one at a time"}
