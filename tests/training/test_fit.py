"""Which strategy is chosen as memory shrinks, and the overrides that are named where a run does not fit."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_config
from training_cases import make_recipe

from rmtrain.errors import InputError, RunFailedError
from rmtrain.recipe.load import load_recipe
from rmtrain.training import fit
from rmtrain.training.fit import Forecast, memory_failure
from rmtrain.training.memory import GIB, Layout, Workload, cgroup_limits, host_memory
from rmtrain.training.resume import FREE

WORK = Workload(largest=16_384, longest=2_048, scoring=16_384)
MISTRAL = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def forecast(processes: int = 8, work: Workload = WORK, family: str = "mistral", **changes: Any) -> Forecast:
    recipe = make_recipe(Path("base"), Path("runs"), **({"model__dtype": "bfloat16"} | changes))
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "head_dim": 128}
    return Forecast(recipe, make_config(family, vocab_size=32_000, num_attention_heads=8, **shape), work, processes)


def test_auto_takes_the_least_sharding_that_fits_as_memory_shrinks() -> None:
    found = forecast(lora=None, work=Workload(512, 256, 512))
    peaks = {name: found.need(Layout(name)).peak for name in ("ddp", "zero2", "zero3", "fsdp")}
    assert all(peak is not None for peak in peaks.values())
    rooms = sorted((int(peak * 1.1) for peak in peaks.values() if peak), reverse=True)
    chosen = []
    for room in (rooms[0] * 2, *rooms):
        layout, reason = found.choose(room)
        chosen.append(layout.strategy)
        peak = peaks[layout.strategy]
        assert peak is not None
        assert peak <= room
        assert f"{peak / GIB:.1f} GiB" in reason
        earlier = list(peaks)[: list(peaks).index(layout.strategy)]
        assert all((peaks[name] or 0) > fit._FITS * room for name in earlier)  # nothing milder would have done
    assert chosen[0] == "ddp"
    assert len(set(chosen)) > 1
    layout, reason = found.choose(GIB // 64)
    assert peaks[layout.strategy] == min(peak for peak in peaks.values() if peak)
    assert "more than" in reason


def test_auto_without_a_gpu_or_with_one_process_is_the_plain_way() -> None:
    assert forecast().choose(None)[0] == Layout("ddp")
    assert forecast(processes=1).choose(GIB)[0] == Layout("none")


def test_an_architecture_that_cannot_be_predicted_says_so() -> None:
    found = forecast(lora={"rank": 4, "dora": True})
    assert found.need(Layout("ddp")).peak is None
    layout, reason = found.choose(GIB)
    assert layout == Layout("ddp")
    assert "can't be predicted" in reason


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("lora", [{"rank": 16}, None], ids=["lora", "full"])
@pytest.mark.parametrize("processes", [1, 4])
def test_named_overrides_fit_and_save_what_they_say(share: float, lora: Any, processes: int) -> None:
    found = forecast(processes, lora=lora, optim__tokens_per_microbatch=16_384)
    before = found.peak(None)
    assert before is not None
    room = int(share * before)
    if (peak := found.peak(room)) is not None and peak <= room:
        pytest.skip("another strategy fits already")
    named = found.overrides(room)
    assert len(named) == 3 or share <= 0.1
    for saving in named:
        changed = found.under(saving.changes)
        assert changed is not None
        after = changed.peak(room)
        assert after is not None
        assert after <= room
        assert saving.bytes == (found.peak(room) or 0) - after
    with pytest.raises(InputError) as refused:
        found.require_room(room)
    for saving in named:
        assert str(saving) in str(refused.value)


def test_overrides_are_as_they_would_be_typed() -> None:
    found = forecast(1, optim__tokens_per_microbatch=16_384)
    peak = found.peak(None)
    assert peak is not None
    first = str(found.overrides(int(0.9 * peak))[0])
    assert first.startswith("optim.")
    assert " (saves " in first


def test_more_than_the_hosts_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "host_memory", lambda: 1 << 20)
    with pytest.raises(InputError, match="host's memory on 2 processes"):
        forecast(2).require_room(None)


def test_out_of_memory_names_milder_settings_of_the_same_computation() -> None:
    found = forecast(1, optim__tokens_per_microbatch=16_384)
    failure = memory_failure(torch.OutOfMemoryError("CUDA out of memory"), found, Layout("none"), 7, Path("runs/x"))
    assert isinstance(failure, RunFailedError)
    text = str(failure)
    assert "out of memory at step 7" in text
    savings, before = found.milder(Layout("none")), found.need(Layout("none")).peak
    assert len(savings) == 3
    assert before is not None
    for saving in savings:
        assert f"rmtrain train --resume runs/x {str(saving).partition('  ')[0]}" in text
        assert all(key in FREE[section] for section, key in (name.split(".") for name in saving.changes))
        changed = found.under(saving.changes)
        assert changed is not None
        after = changed.need(Layout("none")).peak
        assert after is not None
        assert after < 0.95 * before  # a setting that saves next to nothing would run out again
        assert set(saving.changes) <= {
            "optim.gradient_checkpointing",
            "optim.tokens_per_microbatch",
            "optim.activation_offloading",
        }
        assert str(saving) in text


def test_out_of_memory_where_little_can_be_saved_names_no_setting_that_would_not_fit() -> None:
    small = forecast(1, lora=None, work=Workload(64, 64, 64))  # next to the weights, activations are nothing
    assert small.milder(Layout("none")) == []
    failure = memory_failure(torch.OutOfMemoryError("CUDA out of memory"), small, Layout("none"), 7, Path("runs/x"))
    assert failure is not None
    assert failure.hint == "go on elsewhere: rmtrain train --resume runs/x"


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
    assert memory_failure(RuntimeError("shapes differ"), forecast(1), Layout("none"), 1, Path("x")) is None


def shipped(name: str, work: Workload, processes: int = 1) -> Forecast:
    loaded = load_recipe(Path(__file__).parents[2] / "configs" / f"{name}.yaml", [])
    return Forecast(loaded.recipe, make_config("mistral", **MISTRAL), work, processes)


def test_mistral_qlora_is_predicted_to_fit_16_gb() -> None:
    """One group of 2,048 tokens at a time, and micro-batches as the recipe has them."""
    found = shipped("mistral_qlora", Workload(2_048, 2_048, 2_048))
    peak = found.need(Layout("none")).peak
    assert peak is not None
    assert peak < 16e9
    limit = found.recipe.optim.tokens_per_microbatch
    assert limit is not None
    largest = shipped("mistral_qlora", Workload(max(limit, 2_048), 2_048, 2_048)).need(Layout("none")).peak
    assert largest is not None
    assert largest < 16e9


def test_mistral_lora_is_predicted_to_fit_a_24_gb_card_with_the_overrides_it_names() -> None:
    found = shipped("mistral_lora", Workload(8_192, 2_048, 16_384))
    room = int(23.5e9)
    if (found.peak(room) or 0) > room:
        assert found.overrides(room)
