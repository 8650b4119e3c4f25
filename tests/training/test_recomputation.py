"""What `gradient_checkpointing: auto` chooses as the free memory shrinks, and what a resumed run makes of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_memory_plan import HUGE, planned, shipped
from training_cases import make_recipe

from rmtrain.training import choices, memory_plan
from rmtrain.training.build import RunPlan
from rmtrain.training.choices import Settled, as_begun, settle_plan
from rmtrain.training.memory import GIB, Sharding, TokenLoad
from rmtrain.training.memory_plan import FITS
from rmtrain.training.recomputation import _ways, fastest_fit
from rmtrain.training.resume import FREE

# torch's compiler warns itself, of the gradients that it looks at, and hides that by a way that errors get around
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
LIMITED = {"optim__tokens_per_microbatch": 16_384}
LONG = TokenLoad((), largest=16_384, longest=1_500, scoring=16_384)


def test_micro_batches_get_smaller_before_anything_is_recomputed() -> None:
    plan = planned(1, LONG, **LIMITED)
    tried = [*_ways(plan, "none"), *_ways(plan, "full")]
    sizes = [(c.get("optim.gradient_checkpointing", "none"), c.get("optim.tokens_per_microbatch")) for c in tried]
    assert sizes[:3] == [("none", None), ("none", 8_192), ("none", 4_096)]
    assert sizes[3:] == [("full", None), ("full", 8_192), ("full", 4_096), ("full", 2_048)]
    assert {key for changes in tried for key in changes} <= {f"{s}.{key}" for s, keys in FREE.items() for key in keys}
    peaks = [changed.peak() for changes in tried if (changed := plan.under(changes))]
    chosen = []
    for free in (HUGE, *(int((peak or 0) / FITS) + 1 for peak in peaks)):
        choice = fastest_fit(replace(plan, free=free))
        place = tried.index(choice.changes)
        assert (peaks[place] or 0) <= FITS * free
        assert all((peak or 0) > FITS * free for peak in peaks[:place])  # nothing faster would have fitted
        assert f"{(peaks[place] or 0) / GIB:.1f} of the {free / GIB:.1f} GiB free" in choice.reason
        chosen.append(place)
    assert chosen[0] == 0
    assert len(set(chosen)) > 4


def test_where_nothing_fits_the_least_is_taken_and_the_reason_says_so() -> None:
    choice = fastest_fit(planned(1, LONG, free=1 << 20, **LIMITED))
    assert choice.changes["optim.gradient_checkpointing"] == "full"
    assert choice.changes["optim.tokens_per_microbatch"] == choice.changes["evaluation.tokens_per_batch"] == 2_048
    assert choice.reason.startswith("nothing tried fits: with 2,048 tokens")


def test_a_recipe_that_limits_groups_alone_keeps_its_micro_batches() -> None:
    plan = planned(1, LONG, optim__tokens_per_microbatch=None, optim__microbatch_size=4)
    assert [*_ways(plan, "none"), *_ways(plan, "full")] == [{}, {"optim.gradient_checkpointing": "full"}]


def test_whole_models_on_each_gpu_come_before_sharded_ones() -> None:
    plan = planned(8, LONG, lora=None, **LIMITED)
    halved = plan.under({"optim.tokens_per_microbatch": 4_096, "evaluation.tokens_per_batch": 4_096})
    assert halved is not None
    peak = halved.estimate(Sharding("ddp")).peak
    assert peak is not None
    free = int(peak / FITS) + 1
    assert replace(plan, free=free).choose()[0].strategy != "ddp"  # sharded, the larger micro-batches would fit
    assert fastest_fit(replace(plan, free=free)).changes["optim.tokens_per_microbatch"] == 4_096


def test_a_choice_is_planned_told_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(Path("base"), Path("runs"), **LIMITED)
    assert recipe.optim.gradient_checkpointing == "auto"
    changes = {"optim.gradient_checkpointing": "full", "optim.tokens_per_microbatch": 512}

    def plan(recipe: Any, splits: Any, processes: int) -> Any:
        sharding = SimpleNamespace(strategy="none")
        return SimpleNamespace(recipe=recipe, memory=SimpleNamespace(recipe=recipe), sharding=sharding, notes=[])

    monkeypatch.setattr(choices, "plan_run", plan)
    monkeypatch.setattr(
        choices, "fastest_fit", lambda memory: (changes, f"after {memory.recipe.optim.gradient_checkpointing}")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settled, made = settle_plan(Settled(recipe, {}), {}, 1)
    assert made.recipe == settled.recipe
    assert (made.recipe.optim.gradient_checkpointing, made.recipe.optim.tokens_per_microbatch) == ("full", 512)
    assert made.notes == ["optim.gradient_checkpointing: full (after none)"]
    assert as_begun(recipe, settled.recipe) == settled.recipe

    by_hand, _ = settle_plan(Settled(recipe, {}, recipe), {}, 1)  # auto in the run's own recipe was written by hand
    assert by_hand.recipe == settled.recipe
    monkeypatch.setattr(choices, "fastest_fit", None)  # nothing is decided anew
    again, _ = settle_plan(Settled(recipe, {}, settled.recipe), {}, 1)
    assert again.recipe == settled.recipe
    assert again.notes == ["optim.gradient_checkpointing: full (the run began with it)"]
    fewer = make_recipe(Path("base"), Path("runs"), optim__tokens_per_microbatch=128)  # on --resume
    assert as_begun(fewer, settled.recipe).optim.tokens_per_microbatch == 128
    explicit = make_recipe(Path("base"), Path("runs"), optim__gradient_checkpointing="none", **LIMITED)
    assert settle_plan(Settled(explicit, {}, settled.recipe), {}, 1)[0].recipe == explicit


def test_without_a_gpu_nothing_is_recomputed_and_no_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(Path("base"), Path("runs"))
    plan = SimpleNamespace(sharding=SimpleNamespace(strategy="none"), notes=[])
    monkeypatch.setattr(choices, "plan_run", lambda *_: plan)
    settled, _ = settle_plan(Settled(recipe, {}), {}, 1)
    assert settled.recipe.optim.gradient_checkpointing == "none"
    assert (settled.notes, plan.notes) == ([], [])


def test_compiled_layers_take_less_memory_unless_they_are_recomputed_or_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_plan, "compiler_obstacle", lambda: None)

    def peaks(strategy: str, **changes: Any) -> list[int]:
        plans = (planned(2, LONG, model__compile=compiled, **LIMITED, **changes) for compiled in (False, True))
        return [plan.estimate(Sharding(strategy)).peak or 0 for plan in plans]

    plain, compiled = peaks("ddp", optim__gradient_checkpointing="none")
    assert 0.6 * plain < compiled < 0.95 * plain
    for strategy, kind in (("ddp", "full"), ("zero3", "none")):
        plain, compiled = peaks(strategy, optim__gradient_checkpointing=kind)
        assert plain == compiled
    monkeypatch.setattr(memory_plan, "compiler_obstacle", lambda: "there is no C++ compiler")
    plain, compiled = peaks("ddp", optim__gradient_checkpointing="none")
    assert plain == compiled


@pytest.mark.parametrize(("strategy", "compiled"), [("ddp", True), ("auto", True), ("zero3", False)])
def test_the_strategy_is_chosen_by_the_memory_of_layers_as_they_will_run(
    strategy: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "compiler_obstacle", lambda: None)
    monkeypatch.setattr(memory_plan, "compiler_obstacle", lambda: None)
    monkeypatch.setattr(choices, "_pays", lambda plan, obstacle: (obstacle is None, obstacle or "it pays"))
    changes = {"model.compile": "auto", "distributed.strategy": strategy}
    memory = planned(8, LONG, lora=None)
    recipe = choices._set(memory.recipe, changes)
    peaks = [
        replace(memory, recipe=choices._set(recipe, {"model.compile": value})).estimate(Sharding("ddp")).peak or 0
        for value in (False, True)
    ]
    free = int(sum(peaks) / 2 / FITS)  # whole models fit if they are compiled, and only then
    memory = replace(memory, recipe=recipe, free=free)
    plan = RunPlan(None, "shared_prompt", memory, *memory.choose(), [])  # type: ignore[arg-type]
    assert plan.sharding.strategy == {"auto": "zero2"}.get(strategy, strategy)
    monkeypatch.setattr(choices, "plan_run", lambda *_: plan)
    settled, planned_anew = settle_plan(Settled(recipe, {}), {}, 8)
    assert settled.recipe.model.compile is compiled
    assert planned_anew.sharding.strategy == {"auto": "ddp"}.get(strategy, strategy)
    assert planned_anew.memory.recipe == settled.recipe


@pytest.mark.parametrize(
    ("free", "compiled", "kind", "tokens"),
    [
        (23.5, False, "full", 8_192),
        (23.5, True, "full", 8_192),
        (39.5, False, "full", 16_384),
        (39.5, True, "none", 4_096),
        (79.5, False, "none", 8_192),
        (79.5, True, "none", 8_192),
        (139.0, False, "none", 16_384),
        (139.0, True, "none", 16_384),
    ],
)
def test_mistral_lora_fits_cards_from_24_gib_on(
    free: float, compiled: bool, kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/gpu.md says."""
    monkeypatch.setattr(memory_plan, "compiler_obstacle", lambda: None)
    plan = shipped("mistral_lora", TokenLoad((), 16_384, 2_048, 16_384), int(free * GIB))
    recipe = choices._set(plan.recipe, {"model.compile": compiled})
    plan = replace(plan, recipe=recipe)
    changes = fastest_fit(plan).changes
    assert changes.get("optim.gradient_checkpointing", "none") == kind
    assert changes.get("optim.tokens_per_microbatch", 16_384) == tokens
