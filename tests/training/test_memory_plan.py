"""Which strategy is chosen as memory shrinks, and the overrides that are named where a run does not fit."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_config
from training_cases import make_recipe

from rmtrain.errors import InputError, RunFailedError
from rmtrain.model.host_memory import cgroup_limits, host_memory
from rmtrain.recipe.load import load_recipe
from rmtrain.training import memory_plan
from rmtrain.training.memory import GIB, Sharding, TokenLoad
from rmtrain.training.memory_plan import MemoryPlan, memory_failure
from rmtrain.training.resume import FREE

LOAD = TokenLoad((), largest=16_384, longest=2_048, scoring=16_384)
HUGE = 1 << 50  # bytes of a GPU on which everything fits
MISTRAL = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def planned(processes: int = 8, load: TokenLoad = LOAD, free: int | None = HUGE, **changes: Any) -> MemoryPlan:
    settled = {"model__dtype": "bfloat16", "optim__gradient_checkpointing": "none"}
    recipe = make_recipe(Path("base"), Path("runs"), **(settled | changes))
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "head_dim": 128}
    config = make_config("mistral", vocab_size=32_000, num_attention_heads=8, **shape)
    return MemoryPlan(recipe, config, load, processes, free)


def test_auto_uses_the_least_sharding_that_fits_as_memory_shrinks() -> None:
    plan = planned(lora=None, load=TokenLoad((), 512, 256, 512))
    peaks = {name: plan.estimate(Sharding(name)).peak for name in ("ddp", "zero2", "zero3", "fsdp")}
    assert all(peak is not None for peak in peaks.values())
    limits = sorted((int(peak * 1.1) for peak in peaks.values() if peak), reverse=True)
    chosen = []
    for free in (limits[0] * 2, *limits):
        sharding, reason = replace(plan, free=free).choose()
        chosen.append(sharding.strategy)
        peak = peaks[sharding.strategy]
        assert peak is not None
        assert peak <= free
        assert f"{peak / GIB:.1f} GiB" in reason
        earlier = list(peaks)[: list(peaks).index(sharding.strategy)]
        assert all((peaks[name] or 0) > memory_plan.FITS * free for name in earlier)  # nothing milder would have done
    assert chosen[0] == "ddp"
    assert len(set(chosen)) > 1
    sharding, reason = replace(plan, free=GIB // 64).choose()
    assert peaks[sharding.strategy] == min(peak for peak in peaks.values() if peak)
    assert "more than" in reason


def test_auto_without_a_gpu_or_with_one_process_is_the_plain_way() -> None:
    assert planned(free=None).choose()[0] == Sharding("ddp")
    assert planned(processes=1, free=GIB).choose()[0] == Sharding("none")


def test_an_architecture_that_cannot_be_predicted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "trial", lambda *_: None)
    monkeypatch.setattr(memory_plan, "_MEASURED", {})
    plan = planned(free=GIB)
    assert plan.estimate(Sharding("ddp")).peak is None
    assert "unknown GiB" in str(plan.estimate(Sharding("ddp")))
    sharding, reason = plan.choose()
    assert sharding == Sharding("ddp")
    assert "can't be predicted" in reason
    assert plan.suggestions(GIB) == []
    assert [saving.bytes for saving in plan.milder(sharding)] == [None, None, None]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("lora", [{"rank": 16}, None], ids=["lora", "full"])
@pytest.mark.parametrize("processes", [1, 4])
def test_suggested_overrides_fit_and_save_what_they_say(share: float, lora: Any, processes: int) -> None:
    plan = planned(processes, lora=lora, optim__tokens_per_microbatch=16_384)
    before = plan.peak()
    assert before is not None
    free = int(share * before)
    plan = replace(plan, free=free)
    if (peak := plan.peak()) is not None and peak <= free:
        pytest.skip("another strategy fits already")
    suggested = plan.suggestions(free)
    assert suggested or share <= 0.1
    for saving in suggested:
        changed = plan.under(saving.changes)
        assert changed is not None
        after = changed.peak()
        assert after is not None
        assert after <= free
        assert saving.bytes == (plan.peak() or 0) - after
        assert len(saving.changes) <= 2 or len(suggested) == 1  # several at once only where no single one is enough
    with pytest.raises(InputError) as refused:
        plan.require_fit()
    for saving in suggested:
        assert str(saving) in str(refused.value)


def test_what_activation_offloading_takes_off_the_device_is_in_the_hosts_memory() -> None:
    load = LOAD._replace(scoring=256, longest=256)
    plain, offloaded = (planned(1, load, optim__activation_offloading=moves) for moves in (False, True))
    before, after = (plan.estimate(Sharding("none")) for plan in (plain, offloaded))
    assert before.peak is not None
    assert after.peak is not None
    assert after.host - before.host == before.peak - after.peak > 0


def test_overrides_are_as_they_would_be_typed() -> None:
    plan = planned(1, optim__tokens_per_microbatch=16_384)
    peak = plan.peak()
    assert peak is not None
    first = str(plan.suggestions(int(0.9 * peak))[0])
    assert first.startswith("optim.")
    assert " (saves " in first


def test_without_a_gpu_all_that_a_process_takes_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(planned(1, free=None), resident=GIB // 2)
    found, on_gpu = plan.estimate(Sharding("none")), planned(1).estimate(Sharding("none"))
    assert found.peak is not None
    assert found.peak > (on_gpu.peak or 0) + GIB // 2
    monkeypatch.setattr(memory_plan, "host_memory", lambda: found.peak)
    plan.require_fit()
    monkeypatch.setattr(memory_plan, "host_memory", lambda: (found.peak or 0) - 1)
    with pytest.raises(InputError, match="host's memory on 1 processes") as refused:
        plan.require_fit()
    assert "optim.gradient_checkpointing=selective" in refused.value.hint


def test_a_small_micro_batch_takes_less_than_loading_the_weights() -> None:
    tiny = TokenLoad((), largest=64, longest=64, scoring=64)
    small, large = (planned(1, load, free=None, lora={"rank": 4}).estimate(Sharding("none")) for load in (tiny, LOAD))
    assert small.peak == small.loading == large.loading
    assert small.peak > small.states + (small.activations or 0)
    assert (large.peak or 0) > large.loading
    assert str(small).endswith("; reached while the weights are loaded)")
    assert "while the weights" not in str(large)


def test_full_fine_tuning_takes_at_least_two_tensors_as_large_as_its_largest() -> None:
    tiny = TokenLoad((), largest=1, longest=1, scoring=1)
    found = planned(1, tiny, free=None, lora=None).estimate(Sharding("none"))
    assert (found.activations or 0) >= 2 * 4 * 32_000 * 1024  # float32 values of the embedding


def test_more_than_the_hosts_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "host_memory", lambda: 1 << 20)
    with pytest.raises(InputError, match="host's memory on 2 processes"):
        planned(2, free=None).require_fit()


def test_out_of_memory_names_milder_settings_of_the_same_computation() -> None:
    plan = planned(1, optim__tokens_per_microbatch=16_384)
    failure = memory_failure(torch.OutOfMemoryError("CUDA out of memory"), plan, Sharding("none"), 7, Path("runs/x"))
    assert isinstance(failure, RunFailedError)
    text = str(failure)
    assert "out of memory at step 7" in text
    savings, before = plan.milder(Sharding("none")), plan.estimate(Sharding("none")).peak
    assert len(savings) == 3
    assert before is not None
    for saving in savings:
        assert f"rmtrain train --resume runs/x {str(saving).partition('  ')[0]}" in text
        assert all(key in FREE[section] for section, key in (name.split(".") for name in saving.changes))
        changed = plan.under(saving.changes)
        assert changed is not None
        after = changed.estimate(Sharding("none")).peak
        assert after is not None
        assert after < 0.95 * before  # a setting that saves next to nothing would run out again
        assert set(saving.changes) <= {
            "optim.gradient_checkpointing",
            "optim.tokens_per_microbatch",
            "optim.activation_offloading",
        }
        assert str(saving) in text


def test_out_of_memory_where_little_can_be_saved_names_no_setting_that_would_not_fit() -> None:
    small = planned(1, lora=None, load=TokenLoad((), 64, 64, 64))  # next to the weights, activations are nothing
    assert small.milder(Sharding("none")) == []
    failure = memory_failure(torch.OutOfMemoryError("CUDA out of memory"), small, Sharding("none"), 7, Path("runs/x"))
    assert failure is not None
    assert failure.hint == "resume on a machine with more memory: rmtrain train --resume runs/x"


def test_the_hosts_memory_is_no_more_than_the_jobs_own(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")

    assert cgroup_limits(tmp_path) == []
    write("proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/slice/job\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "5000\n")
    write("sys/fs/cgroup/slice/memory.max", "4000\n")
    write("sys/fs/cgroup/slice/job/memory.max", "max\n")
    assert sorted(cgroup_limits(tmp_path)) == [4000, 5000, 9223372036854771712]
    assert host_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_other_errors_are_left_alone() -> None:
    assert memory_failure(RuntimeError("shapes differ"), planned(1), Sharding("none"), 1, Path("x")) is None


def shipped(name: str, load: TokenLoad, free: int = HUGE) -> MemoryPlan:
    recipe = load_recipe(Path(__file__).parents[2] / "configs" / f"{name}.yaml", []).recipe
    if recipe.optim.gradient_checkpointing == "auto":
        recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"gradient_checkpointing": "none"})})
    return MemoryPlan(recipe, make_config("mistral", **MISTRAL), load, 1, free)


def test_mistral_qlora_is_predicted_to_fit_16_gb() -> None:
    """One group of 2,048 tokens at a time, and micro-batches as the recipe has them."""
    plan = shipped("mistral_qlora", TokenLoad((), 2_048, 2_048, 2_048))
    peak = plan.peak()
    assert peak is not None
    assert peak < 16e9
    limit = plan.recipe.optim.tokens_per_microbatch
    assert limit is not None
    largest = shipped("mistral_qlora", TokenLoad((), max(limit, 2_048), 2_048, 2_048)).peak()
    assert largest is not None
    assert largest < 16e9


def test_mistral_lora_is_predicted_to_fit_a_24_gb_card_with_the_overrides_it_names() -> None:
    free = int(23.5e9)
    plan = shipped("mistral_lora", TokenLoad((), 8_192, 2_048, 16_384), free)
    if (plan.peak() or 0) > free:
        assert plan.suggestions(free)
