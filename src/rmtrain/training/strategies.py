"""The configuration of each strategy, from the recipe: DDP, DeepSpeed ZeRO or FSDP2."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from rmtrain.errors import InputError
from rmtrain.files import read_text
from rmtrain.json_values import JsonObject
from rmtrain.recipe.check import with_changes
from rmtrain.recipe.schema import Recipe

REDUCE_BUCKET = 50_000_000  # gradients that DeepSpeed reduces at once; its own default takes 2 GB in float32
ZERO3_LIVE = 1_000_000_000  # parameters that ZeRO-3 holds gathered at most; DeepSpeed's default
_BY_TRAINER = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def strategy_of(recipe: Recipe, processes: int) -> str:
    """The strategy that a recipe names; auto is ddp on several processes and none on one, where fsdp too is none."""
    strategy = recipe.distributed.strategy
    if recipe.distributed.deepspeed_config is not None:
        stage = read_deepspeed_config(Path(recipe.distributed.deepspeed_config))["zero_optimization"]["stage"]
        return "zero3" if stage == 3 else "zero2"
    if processes == 1 and strategy in ("auto", "ddp", "fsdp"):
        return "none"
    return "ddp" if strategy == "auto" else strategy


def strategy_configs(recipe: Recipe) -> dict[str, JsonObject]:
    """The configuration by strategy; for auto, of every strategy that it may choose."""
    strategy, offload = recipe.distributed.strategy, recipe.distributed.offload
    if recipe.distributed.deepspeed_config is not None:
        return {"deepspeed": read_deepspeed_config(Path(recipe.distributed.deepspeed_config))}
    configs: dict[str, JsonObject] = {
        "ddp": _ddp_arguments(recipe),
        "zero2": deepspeed_config("zero2", offload),
        "zero3": deepspeed_config("zero3", offload),
        "fsdp": {"fsdp": True, "fsdp_config": fsdp_config(offload)},
    }
    if strategy != "auto":
        return {strategy: configs[strategy]}
    return {name: configs[name] for name in configs if with_changes(recipe, {"distributed.strategy": name}) is not None}


def strategy_arguments(recipe: Recipe, strategy: str, processes: int) -> JsonObject:
    """The Trainer's arguments for the recipe's own strategy, or for the one that auto chose.

    Raises:
        InputError: the recipe's DeepSpeed file can't be used.
    """
    import torch

    configs = strategy_configs(recipe)
    arguments = _ddp_arguments(recipe)
    if processes > 1 and not torch.cuda.is_available():
        arguments["ddp_backend"] = "gloo"
    if strategy == "fsdp":
        arguments |= configs["fsdp"]
    elif strategy in ("zero2", "zero3"):
        arguments["deepspeed"] = configs.get("deepspeed") or configs[strategy]
        if "RANK" not in os.environ:
            _launch_alone()
    return arguments


def leave_zero3() -> None:
    """End the mode in which transformers divides each new model among the processes: the next one is to score."""
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def _ddp_arguments(recipe: Recipe) -> JsonObject:
    return {"ddp_find_unused_parameters": False, "ddp_timeout": int(recipe.distributed.timeout_minutes * 60)}


def _launch_alone() -> None:
    """Set a launcher's variables: without them, DeepSpeed looks for MPI even for a single process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(names, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def require_strategy(recipe: Recipe, strategy: str, processes: int) -> None:
    """Refuse FSDP where accelerate would silently run plain data parallelism (arguments as of `strategy_arguments`)."""
    import torch
    from accelerate.utils import DistributedType

    from rmtrain.model.devices import process_state

    if "fsdp" not in (strategy, recipe.distributed.strategy):
        return
    planned = processes > 1 and process_state().num_processes == 1 and not torch.cuda.is_available()  # a dry run
    if planned or process_state().distributed_type == DistributedType.MULTI_CPU:
        raise InputError("distributed.strategy: fsdp needs GPUs", "set distributed.strategy to ddp, zero2 or zero3")
    if processes == 1 and recipe.distributed.offload != "none":
        raise InputError(
            "distributed.offload: fsdp on a single process can't move anything to the host",
            "set distributed.strategy to zero2 or zero3",
        )


def deepspeed_config(strategy: str, offload: str) -> JsonObject:
    """A DeepSpeed configuration; `auto` values are filled in by the Trainer."""
    stage = {"zero2": 2, "zero3": 3}[strategy]
    zero: JsonObject = {"stage": stage, "reduce_bucket_size": REDUCE_BUCKET}
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        zero["stage3_max_live_parameters"] = ZERO3_LIVE
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if offload == "all":
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }


def fsdp_config(offload: str) -> JsonObject:
    """FSDP2: each decoder layer is a unit; checkpoints are gathered.

    Its own activation checkpointing renames the layers, so that PEFT finds no adapters to save; the Trainer's is used.
    """
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_offload": offload == "all",
        "reshard_after_forward": True,
    }


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """The content of a user's DeepSpeed JSON file, with `auto` for what it leaves to the recipe.

    Raises:
        InputError: it can't be read, or asks for what the recipe decides; names every fault.
    """
    try:
        value = json.loads(read_text(path))
    except (InputError, ValueError, RecursionError) as error:
        reason = str(getattr(error, "message", error)).removeprefix(f"{path}: ")
        raise InputError(f"distributed.deepspeed_config: {path} can't be read: {reason}", "give a JSON file") from error
    if not isinstance(value, dict):
        raise InputError(f"distributed.deepspeed_config: {path} is not a JSON object", "give a JSON object")
    if faults := _deepspeed_faults(value):
        raise InputError(f"distributed.deepspeed_config: {path}:\n  " + "\n  ".join(faults), "mend the file")
    return {**dict.fromkeys(_BY_TRAINER, "auto"), **value}  # DeepSpeed's own defaults: no clipping, no accumulation


def _deepspeed_faults(config: JsonObject) -> list[str]:
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    faults = [] if type(stage) is int and stage in (1, 2, 3) else ["zero_optimization.stage must be 1, 2 or 3"]
    faults += [f'{key} is set by the recipe: write "auto"' for key in _BY_TRAINER if config.get(key, "auto") != "auto"]
    faults += [
        f"{key} is set by the recipe's optim section: leave it out"
        for key in ("optimizer", "scheduler")
        if key in config
    ]
    for key in ("fp16", "bf16"):
        section = config.get(key, {})
        if section not in ({}, None) and not (isinstance(section, dict) and section.get("enabled") is False):
            faults.append(
                f"{key} would also convert the float32 score head: leave it out, since model.dtype sets the precision"
            )
    return faults
