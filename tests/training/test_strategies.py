"""The settings of each strategy, and what it refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_cases import make_recipe

from rmtrain.errors import InputError
from rmtrain.training.strategies import deepspeed_config, fsdp_config, require_strategy, strategy_of


def recipe(tmp_path: Path, **changes: Any) -> Any:
    return make_recipe(tmp_path, tmp_path, **{f"distributed__{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("strategy", "processes", "expected"),
    [
        ("auto", 1, "none"),
        ("auto", 4, "ddp"),
        ("ddp", 1, "none"),
        ("fsdp", 1, "none"),
        ("fsdp", 2, "fsdp"),
        ("zero2", 1, "zero2"),
        ("zero3", 8, "zero3"),
    ],
)
def test_the_strategy_of_a_recipe(tmp_path: Path, strategy: str, processes: int, expected: str) -> None:
    assert strategy_of(recipe(tmp_path, strategy=strategy), processes) == expected


def test_offloading_is_what_was_asked_for() -> None:
    cpu = {"device": "cpu", "pin_memory": True}
    plain = deepspeed_config("zero3", "none")["zero_optimization"]
    assert "offload_optimizer" not in plain
    assert "offload_param" not in plain
    assert deepspeed_config("zero2", "optimizer")["zero_optimization"]["offload_optimizer"] == cpu
    whole = deepspeed_config("zero3", "all")["zero_optimization"]
    assert (whole["offload_optimizer"], whole["offload_param"]) == (cpu, cpu)
    assert [fsdp_config(offload)["cpu_offload"] for offload in ("none", "all")] == [False, True]


def test_the_settings_are_those_that_transformers_reads(tmp_path: Path) -> None:
    """FSDP's own names would be passed over in silence."""
    from trl import RewardConfig

    arguments = RewardConfig(output_dir=str(tmp_path), fsdp=True, fsdp_config=fsdp_config("all"), use_cpu=True)
    assert arguments.fsdp_plugin_args["cpu_offload"] is True
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2
    assert arguments.fsdp_plugin_args["state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read"), ("{", "can't be read"), ("[]", "is not a JSON object"), ("\udcff", "can't be read")],
)
def test_a_deepspeed_file_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    path = tmp_path / "zero.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        strategy_of(recipe(tmp_path, deepspeed_config=str(path)), 1)
    assert str(path) in caught.value.message


def test_fsdp_offloading_on_one_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fsdp on a single process can't move anything"):
        require_strategy(recipe(tmp_path, strategy="fsdp", offload="all"), "none", 1)


def test_one_process_takes_one_of_the_gpus_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would give a single process all of them through DataParallel."""
    from transformers import TrainingArguments

    from rmtrain.training.build import training_arguments

    def set_up(self: Any) -> Any:
        self._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(set_up, lambda self, device: None))
    plan: Any = SimpleNamespace(processes=1, accumulation=1, steps=[0])
    assert training_arguments(recipe(tmp_path), plan, tmp_path, "none").n_gpu == 1
