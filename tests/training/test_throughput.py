"""Figures of the log: against counts and times known beforehand, and against torch's own count of operations."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_config, make_groups
from torch.utils.flop_counter import FlopCounterMode
from training_cases import Recorder, at_step, make_recipe, make_renderer, make_splits, only_run, reward_batch, run

from rmtrain.errors import Interrupted
from rmtrain.model.batch import GroupSize, pack
from rmtrain.model.reward_model import reward_model_class
from rmtrain.training import throughput
from rmtrain.training.microbatches import MicrobatchDataset
from rmtrain.training.throughput import Meter, measure_matrix_rate, operations_per_token
from rmtrain.training.train import build_model
from rmtrain.training.trainer import GroupRewardTrainer

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its last entry."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[-1])
    return now


def fed(meter: Meter, rewards: list[float]) -> None:
    """One micro-batch of one group whose first completion is preferred to all others."""
    worse = torch.arange(1, len(rewards))
    batch = reward_batch(torch.tensor(rewards), torch.zeros_like(worse), worse)
    meter.count({"tokens": 30, "distinct_tokens": 20, "pairs": len(worse), "groups": 1})
    meter.learn(batch)


def test_figures_are_those_of_the_micro_batches_and_the_clock(clock: list[float]) -> None:
    meter = Meter(operations=1000, matrix_rate=50_000.0)
    with meter.waiting():  # for the first step: the clock does not run yet
        clock.append(130.0)
    meter.begin()
    fed(meter, [1.0, 0.0, 2.0])
    with meter.waiting():
        clock.append(130.5)
    fed(meter, [3.0, 3.0, -1.0])
    began, _ = clock[-1], clock.append(190.5)
    meter.pause(began)  # a validation
    clock.append(192.0)
    figures, added = meter.drain(CPU)
    assert added == {"tokens": 60, "distinct_tokens": 40, "pairs": 4, "groups": 2, "seconds": 2.0}
    assert figures.pop("peak_memory_bytes") > 2**20
    values = torch.tensor([1.0, 0.0, 2.0, 3.0, 3.0, -1.0])
    assert figures == pytest.approx(
        {
            "accuracy": (1 + 0 + 0.5 + 1) / 4,
            "reward_gap": (1 - 1 + 0 + 4) / 4,
            "reward_mean": values.mean().item(),
            "reward_std": values.std(correction=0).item(),
            "tokens_per_second": 30.0,
            "distinct_tokens_per_second": 20.0,
            "pairs_per_second": 2.0,
            "waiting_for_data": 0.25,
            "matrix_rate_used": 1000 * 20.0 / 50_000.0,
        }
    )
    fed(meter, [1.0, 0.0])
    clock.append(193.0)
    figures, added = meter.drain(CPU)
    assert (added["tokens"], added["seconds"], figures["waiting_for_data"]) == (30, 1.0, 0.0)


def test_without_a_gpu_there_is_no_share_of_a_matrix_rate(clock: list[float]) -> None:
    assert measure_matrix_rate(CPU, torch.float32) is None
    meter = Meter(operations=1000)
    meter.begin()
    fed(meter, [1.0, 0.0])
    clock.append(101.0)
    assert "matrix_rate_used" not in meter.drain(CPU)[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_matrix_rate_of_a_gpu_is_that_of_large_products() -> None:
    rate = measure_matrix_rate(torch.device("cuda"), torch.bfloat16)
    assert rate is not None
    assert 1e12 < rate < 1e16


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("packing", ["shared_prompt", "padding_free"])
def test_operations_are_those_that_torch_counts(base: Path, tmp_path: Path, lora: bool, packing: Any) -> None:
    recipe = make_recipe(base, tmp_path, **({} if lora else {"lora": None}), model__packing=packing)
    model = build_model(recipe, make_renderer().pad_id)
    groups = make_splits(tmp_path, make_groups(3))["train"].tokens.groups()
    batch = pack(groups, packing, 0)
    tokens = batch["input_ids"].numel()
    assert packing != "shared_prompt" or tokens == sum(GroupSize.of(group).distinct_tokens for group in groups)
    with FlopCounterMode(display=False) as counter:
        model.module(**batch).logits.sum().backward()
    ops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(count for op, count in ops.items() if op in ("aten.mm", "aten.addmm"))
    expected = operations_per_token(model.module)
    assert expected is not None
    # the first layer's input needs no gradient under LoRA, and the head is counted here
    assert counted == pytest.approx(expected * tokens, rel=0.15 if lora else 0.01)


@pytest.mark.parametrize(("family", "countable"), [("mistral", True), ("gpt2", True), ("mixtral", False)])
def test_weights_are_counted_where_all_are_linear(family: str, countable: bool) -> None:
    config = make_config("mistral", num_local_experts=2) if family == "mixtral" else make_config(family)
    if family == "mixtral":
        from transformers import MixtralConfig

        config = MixtralConfig(**{**config.to_dict(), "model_type": "mixtral", "num_labels": 1})
    with torch.device("meta"):
        module = reward_model_class(config)(config)
    linear = [
        p.numel()
        for n, p in module.named_parameters()
        if p.ndim == 2 and not any(x in n for x in ("emb", "wte", "wpe"))
    ]
    head = module.score.weight.numel()
    assert operations_per_token(module) == (6 * (sum(linear) - head) if countable else None)


def test_a_run_logs_how_fast_it_is_and_that_it_waits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = MicrobatchDataset.__getitem__

    def slow(self: Any, index: int) -> Any:
        time.sleep(0.05)
        return before(self, index)

    monkeypatch.setattr(MicrobatchDataset, "__getitem__", slow)
    display = Recorder()
    run(base, tmp_path, display=display, evaluation__every=0.0, optim__max_steps=3, model__packing="padding_free")
    for line in display.lines:
        assert line["tokens_per_second"] > line["distinct_tokens_per_second"] > line["pairs_per_second"] > 0
        assert line["peak_memory_bytes"] > 2**20
        assert "matrix_rate_used" not in line
    assert all(0.1 < line["waiting_for_data"] < 1 for line in display.lines[1:])


def test_the_peak_of_a_run_is_of_all_its_parts_and_processes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmtrain.training import train as module

    monkeypatch.setattr(GroupRewardTrainer, "compute_loss", GroupRewardTrainer.compute_loss)  # put back afterwards
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr(throughput, "peak_memory", lambda: 2**50)
        with pytest.raises(Interrupted):
            run(base, tmp_path, evaluation__every=0.0)
    assert run(base, tmp_path, resume=only_run(tmp_path), evaluation__every=0.0).peak_memory_bytes == 2**50
    monkeypatch.setattr(module, "gather_values", lambda mine: [*mine, 2**60])
    assert run(base, tmp_path, resume=only_run(tmp_path), evaluation__every=0.0).peak_memory_bytes == 2**60
