"""LoRA adapters beside a frozen backbone; the score head is trained in full and saved with them."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmtrain.errors import InputError, first_line
from rmtrain.model.forward import HEAD
from rmtrain.model.reward_model import RewardModel
from rmtrain.recipe.schema import LoraSection


def adapter_config(lora: LoraSection, revision: str | None = None) -> Any:
    """PEFT's configuration of a recipe's adapters; sequence classification makes PEFT train and save the head."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        revision=revision,
    )


def add_lora(model: RewardModel, lora: LoraSection, seed: int) -> RewardModel:
    """Freeze the backbone and put LoRA adapters beside it; the score head is trained in full and saved.

    Raises:
        InputError: a target names no layer that can have an adapter.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = wrap(model.module, lora, model.commit)
    prepare_adapters(module)
    return replace(model, module=module)


def wrap(module: nn.Module, lora: LoraSection, revision: str | None = None) -> Any:
    """PEFT's model around a backbone, on the meta device or with weights; errors as of `add_lora`."""
    from peft import get_peft_model

    _check_targets(module, lora.targets)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets what GPT-2's layers need
            return get_peft_model(module, adapter_config(lora, revision))
    except ValueError as error:
        raise InputError(
            f"lora.targets: {first_line(error)}", "name linear layers of the model, or all-linear"
        ) from error


def _check_targets(module: nn.Module, targets: str | list[str]) -> None:
    """Refuse a name that no layer has (PEFT is content if one of several has), and an expression that fits none."""
    if targets == "all-linear":
        return
    names = [name for name, _ in module.named_modules() if not f"{name}.".startswith(f"{HEAD}.")]
    linear = [n for n, layer in module.named_modules() if isinstance(layer, (nn.Linear, Conv1D)) and n != HEAD]
    if isinstance(targets, str):
        if re.fullmatch(targets, HEAD):
            raise InputError(
                f"lora.targets: {targets!r} fits the score head ({HEAD}), which is trained in full",
                "write an expression that fits layers of the backbone alone",
            )
        if not any(re.fullmatch(targets, name) for name in names):
            raise InputError(
                f"lora.targets: no layer's whole name fits the regular expression {targets!r}",
                f"layers are called {', '.join(linear[:3])}; a list of names takes the last part alone, as in [q_proj]",
            )
    elif unknown := [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]:
        last = sorted({name.rpartition(".")[2] for name in linear})
        raise InputError(
            f"lora.targets: no layer beside the score head is called {', '.join(unknown)}",
            f"the model's linear layers are {', '.join(last)}" if last else "take all-linear",
        )


def prepare_adapters(module: Any) -> None:
    """Hold adapters and head in float32, whatever PEFT made of them, and let autocast alone cast for the arithmetic."""
    for name, parameter in module.named_parameters():
        if "lora_" in name or f"{HEAD}." in name:
            parameter.data = parameter.data.float()
    if module.get_base_model().compute_dtype != torch.float32:
        for layer in module.modules():  # PEFT would cast the input up, only for autocast to cast it down again
            if hasattr(layer, "cast_input_dtype_enabled"):
                layer.cast_input_dtype_enabled = False


def make_room(module: Any, shapes: Mapping[str, tuple[int, ...]], labels: int) -> None:
    """Fit a base, before PEFT wraps it, to an adapter: as many embeddings as are saved with it, and a head of as many
    labels.

    `shapes` are those of the adapter's tensors, by the names in its file.
    """
    embeddings = next(name for name, layer in module.named_modules() if layer is module.get_input_embeddings())
    saved = shapes.get(f"base_model.model.{embeddings}.weight")
    if saved is not None and saved[0] != module.config.get_text_config().vocab_size:
        module.resize_token_embeddings(saved[0], mean_resizing=False)
    if labels > 1:
        head = getattr(module, HEAD)
        setattr(
            module, HEAD, nn.Linear(head.in_features, labels, bias=head.bias is not None, device=head.weight.device)
        )


def keep_label(module: Any, label: int) -> None:
    """Cut a head with several labels to one of them."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and HEAD in name.split("."):
            layer.out_features = 1
            for parameter in layer.parameters():
                parameter.data = parameter.data[label : label + 1].clone()
