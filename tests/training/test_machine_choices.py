"""What `auto` stands for: decided by the machine, recorded with the run, and kept when it is resumed elsewhere."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from training_cases import Recorder, at_step, make_recipe, only_run, run

from rmtrain.cli import evaluate
from rmtrain.cli.app import run as command_line
from rmtrain.errors import InputError, Interrupted
from rmtrain.model import compute_type, devices
from rmtrain.model.compute_type import ComputeType, fastest_type
from rmtrain.recipe.load import load_recipe
from rmtrain.runs import read_manifest
from rmtrain.scoring.scorer import ScoringOptions
from rmtrain.training import choices
from rmtrain.training.choices import PAYS, Settled, as_begun, settle, settle_compiling
from rmtrain.training.trainer import GroupRewardTrainer


def on_machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, half: bool = False, amx: bool = False, times: float = 0
) -> None:
    """A machine of a kind; `times`: how much faster its AVX-512 with bfloat16 is than float32, 0 without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: half or including_emulation)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: times > 0)
    monkeypatch.setattr(compute_type, "product_seconds", lambda dtype: times if dtype is torch.float32 else 1.0)


@pytest.mark.parametrize(
    ("machine", "name", "reason"),
    [
        ({"cuda": True, "half": True}, "bfloat16", "this GPU computes in bfloat16"),
        ({"cuda": True, "amx": True}, "float32", "this GPU has no bfloat16 arithmetic"),
        ({"amx": True}, "bfloat16", "this CPU has AMX"),
        ({}, "float32", "this CPU has no bfloat16 arithmetic"),
        ({"times": 4.2}, "bfloat16", "this CPU multiplies matrices in bfloat16 4.2 times as fast as in float32"),
        ({"times": 0.7}, "float32", "this CPU multiplies matrices in bfloat16 0.7 times as fast as in float32"),
    ],
)
def test_the_type_is_the_one_that_the_machine_multiplies_fastest_in(
    machine: dict[str, bool], name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, **machine)
    assert fastest_type() == (name, reason)
    assert ScoringOptions(dtype="auto").dtype == name
    assert ScoringOptions(dtype="auto").marks == [name]
    recipe = make_recipe(Path("base"), Path("runs"), model__dtype="auto")
    settled = settle(recipe, None)
    assert (settled.recipe.model.dtype, settled.notes) == (name, [f"model.dtype: {name} ({reason})"])
    assert settled.recipe == make_recipe(Path("base"), Path("runs"), model__dtype=name)
    assert as_begun(recipe, settled.recipe) == settled.recipe


def test_a_product_is_timed_on_one_thread_and_the_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    assert compute_type.product_seconds(torch.float32) > 0
    assert torch.get_num_threads() == before


def test_what_a_recipe_says_itself_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_type, "fastest_type", None)
    recipe = make_recipe(Path("base"), Path("runs"), model__dtype="float16")
    assert settle(recipe, None) == Settled(recipe, {})
    assert as_begun(recipe, make_recipe(Path("base"), Path("runs"))) == recipe


def test_all_processes_take_float32_where_one_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = ComputeType("float32", "this CPU has no bfloat16 arithmetic")
    monkeypatch.setattr(devices, "gather_values", lambda own: [*own, slow])
    on_machine(monkeypatch, amx=True)
    assert settle(make_recipe(Path("base"), Path("runs"), model__dtype="auto"), None).recipe.model.dtype == "float32"

    asked: list[ScoringOptions] = []

    def choose(ckpt: str, runs: Path, display: Any, options: ScoringOptions, verify: bool) -> None:
        asked.append(options)
        raise InputError("far enough")

    monkeypatch.setattr(evaluate, "choose", choose)
    command_line(["eval", "--ckpt", "nowhere", "--dtype", "auto"])  # before any process is started
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command_line(["eval", "--ckpt", "nowhere", "--dtype", "auto"])
    assert [options.dtype for options in asked] == ["bfloat16", "float32"]


def test_a_run_that_goes_on_elsewhere_keeps_its_type(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)  # put back afterwards
    on_machine(monkeypatch, amx=True)
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(base, tmp_path, model__dtype="auto")
    folder = only_run(tmp_path)
    assert load_recipe(folder / "recipe.yaml").recipe.model.dtype == "bfloat16"
    choice = {"model.dtype": {"value": "bfloat16", "reason": "this CPU has AMX"}}
    assert read_manifest(folder)["choices"] == choice

    on_machine(monkeypatch)
    with pytest.raises(InputError, match=r"model\.dtype: 'bfloat16' in the checkpoint, 'float32' now"):
        run(base, tmp_path, resume=folder, model__dtype="float32")
    display = Recorder()
    run(base, tmp_path, resume=folder, display=display, model__dtype="auto")
    assert "model.dtype: bfloat16 (the run began with it)" in display.notes
    sidecar = json.loads((folder / "final" / "rmtrain.json").read_text(encoding="utf-8"))
    assert sidecar["scoring"]["dtype"] == sidecar["recipe"]["model"]["dtype"] == "bfloat16"


def planned(tokens: int, strategy: str = "none", **changes: Any) -> Any:
    """As much of a plan as the choice reads: a model of 100 million parameters and the tokens of a run."""
    recipe = make_recipe(Path("base"), Path("runs"), **changes)
    memory = SimpleNamespace(config=None, recipe=recipe, load=SimpleNamespace(run=tokens))
    return SimpleNamespace(memory=memory, sharding=SimpleNamespace(strategy=strategy))


ENOUGH, ON_GPU = (int(PAYS[device] / 1e8) + 1 for device in ("cpu", "cuda"))


@pytest.mark.parametrize(
    ("changes", "tokens", "strategy", "machine", "compiled", "said"),
    [
        ({}, ENOUGH, "none", {}, True, "win back the time of compiling"),
        ({}, ENOUGH - 2, "none", {}, False, "are too few to win back the time of compiling"),
        ({}, ON_GPU, "none", {"cuda": True, "half": True}, True, "win back the time of compiling"),
        ({}, ON_GPU - 2, "none", {"cuda": True, "half": True}, False, "are too few to win back the time of compiling"),
        ({}, ENOUGH, "zero3", {}, False, "not useful with zero3, whose hooks divide the layers"),
        ({"model__quantization": "nf4"}, ENOUGH, "none", {}, False, "not measured with nf4"),
        ({"model__quantization": "int8"}, ENOUGH, "none", {}, False, "not tested with int8"),
        (
            {"optim__gradient_checkpointing": "selective"},
            ENOUGH,
            "none",
            {},
            False,
            "not possible with optim.gradient_checkpointing: selective",
        ),
        ({"optim__gradient_checkpointing": "full"}, ENOUGH, "ddp", {}, True, "win back the time of compiling"),
    ],
)
def test_layers_are_compiled_where_the_run_is_long_enough(
    changes: dict[str, Any],
    tokens: int,
    strategy: str,
    machine: dict[str, bool],
    compiled: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_machine(monkeypatch, **machine)
    monkeypatch.setattr(choices, "compiler_obstacle", lambda: None)
    monkeypatch.setattr(choices, "count_parameters", lambda *_: {"parameters": 10**8})
    plan = planned(tokens, strategy, **changes)
    recipe = make_recipe(Path("base"), Path("runs"), model__compile="auto", **changes)
    settled = settle_compiling(Settled(recipe, {}), plan)
    assert settled.recipe.model.compile is compiled
    assert said in settled.notes[0]
    assert settled.notes[0].startswith(f"model.compile: {str(compiled).lower()} (")
    assert as_begun(recipe, settled.recipe) == settled.recipe
    again = settle_compiling(Settled(recipe, {}, settled.recipe), planned(1))  # resumed: however long it is
    assert (again.recipe, again.reasons) == (settled.recipe, {"model.compile": "the run began with it"})


def test_float16_without_a_gpu_is_said_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "plan_run", lambda *_: SimpleNamespace(notes=[], **vars(planned(1))))
    for dtype, cuda, slow in (("float16", False, 1), ("float16", True, 0), ("bfloat16", False, 0)):
        on_machine(monkeypatch, cuda=cuda)
        recipe = make_recipe(Path("base"), Path("runs"), model__dtype=dtype, optim__gradient_checkpointing="none")
        _, plan = choices.settle_plan(Settled(recipe, {}), {}, 1)
        assert sum("float16 is very slow on a CPU" in note for note in plan.notes) == slow


def test_a_run_that_shall_be_compiled_goes_on_without_a_compiler_and_keeps_its_recipe() -> None:
    recipe, without = make_recipe(Path("base"), Path("runs"), model__compile=True), {"cpp.cxx": ("no-such-compiler",)}
    with inductor.patch(without):
        settled = settle_compiling(Settled(recipe, {}), planned(1))
    assert settled.recipe == recipe == as_begun(recipe, settled.recipe)
    reason = "there is no C++ compiler: the layers run uncompiled"
    assert settled.notes == [f"model.compile: true (the recipe asks for it, but {reason})"]
    resumed = make_recipe(Path("base"), Path("runs"), model__compile="auto")
    with inductor.patch(without):
        settled = settle_compiling(Settled(resumed, {}, recipe), planned(1))
    assert settled.notes == [f"model.compile: true (the run began with it, but {reason})"]
    assert settled.recipe == recipe
    with pytest.raises(InputError, match="not useful with zero3"):
        settle_compiling(Settled(recipe, {}), planned(1, "zero3"))
