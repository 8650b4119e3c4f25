"""LoRA adapters beside a frozen backbone, new or from files; the score head is trained in full and saved with them."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from rmtrain.errors import CheckpointError, InputError, first_line
from rmtrain.model.config_check import require_bounded
from rmtrain.model.devices import is_out_of_memory
from rmtrain.model.forward import HEAD
from rmtrain.model.reward_model import RewardModel, load_config
from rmtrain.model.weights import ADAPTER, fetch, read_object, read_tensors
from rmtrain.recipe.schema import LoraSection

_OTHER = "the checkpoint is damaged or of another model"


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
    """Freeze the backbone and put LoRA adapters beside it; errors as of `wrap`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return replace(model, module=wrap(model.module, lora, model.commit))


def wrap(module: nn.Module, lora: LoraSection, revision: str | None = None) -> Any:
    """PEFT's model around a backbone, on the meta device or with weights.

    Raises:
        InputError: a target names no layer that can have an adapter.
    """
    from peft import get_peft_model

    _check_targets(module, lora.targets)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT sets what GPT-2's layers need
            wrapped = get_peft_model(module, adapter_config(lora, revision))
    except ValueError as error:
        raise InputError(
            f"lora.targets: {first_line(error)}", "name linear layers of the model, or all-linear"
        ) from error
    _prepare(wrapped)
    return wrapped


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


def _prepare(module: Any) -> None:
    """Hold adapters and head in float32, whatever PEFT made of them, and let autocast alone cast for the arithmetic."""
    for name, parameter in module.named_parameters():
        if "lora_" in name or f"{HEAD}." in name:
            parameter.data = parameter.data.float()
    if module.get_base_model().compute_dtype != torch.float32:
        for layer in module.modules():  # PEFT would cast the input up, only for autocast to cast it down again
            if hasattr(layer, "cast_input_dtype_enabled"):
                layer.cast_input_dtype_enabled = False


def portable_name(name: str) -> str:
    """The name under which PEFT and transformers alone both find a tensor of an adapter's file.

    PEFT writes DoRA's magnitudes without `.weight` and reads both forms. transformers reads the other form alone: it
    would compute the magnitudes anew from the base, and give other rewards.
    """
    return f"{name}.weight" if name.endswith(".lora_magnitude_vector") else name


def attach_adapter(module: Any, folder: Path, base: str, dropout: float | None = None) -> Any:
    """The PEFT model of a base and the adapter in a folder; with a dropout, to be trained further.

    Raises:
        CheckpointError: names what does not fit.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    require_bounded(read_object(folder / ADAPTER), str(folder / ADAPTER))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            config = PeftConfig.from_pretrained(folder)
            if dropout is not None:
                config.lora_dropout = dropout
            module = PeftModel.from_pretrained(module, folder, config=config, is_trainable=dropout is not None)
    except Exception as error:  # every kind of damage has its own class of error
        if is_out_of_memory(error):
            raise
        why = f"{ADAPTER} lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{folder}: the adapter does not fit its base {base}: {why}", _OTHER) from error
    expected = set(map(portable_name, get_peft_model_state_dict(module, save_embedding_layers=False)))
    stored = {portable_name(name) for _, name, _ in read_tensors(folder)}
    if missing := sorted(expected - stored):
        raise CheckpointError(f"{folder}: the adapter's file lacks {', '.join(missing[:5])}", _OTHER)
    if surplus := sorted(name for name in stored - expected if "lora_" in name):
        raise CheckpointError(
            f"{folder}: weights that its base {base} lacks a layer for: {', '.join(surplus[:5])}", _OTHER
        )
    _prepare(module)
    return module


def make_room(module: Any, shapes: Mapping[str, tuple[int, ...]], labels: int) -> None:
    """Fit a base, before PEFT wraps it, to an adapter: as many embeddings as are saved with it, and as many labels.

    `shapes` are those of the adapter's tensors, by the names in its file.
    """
    embeddings = next(name for name, layer in module.named_modules() if layer is module.get_input_embeddings())
    saved = shapes.get(f"base_model.model.{embeddings}.weight")
    if saved is not None and saved[0] != module.config.get_text_config().vocab_size:
        module.resize_token_embeddings(saved[0], mean_resizing=False)
    if labels > 1:
        head = getattr(module, HEAD)
        wider = nn.Linear(head.in_features, labels, bias=head.bias is not None, device=head.weight.device)
        setattr(module, HEAD, wider)


def keep_label(module: Any, label: int) -> None:
    """Cut a head with several labels to one of them."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and HEAD in name.split("."):
            layer.out_features = 1
            for parameter in layer.parameters():
                parameter.data = parameter.data[label : label + 1].clone()


def read_config(folder: Path, adapter: dict[str, Any] | None) -> PretrainedConfig:
    """The config of a model, or of an adapter's base; only earlier versions wrote one beside adapters."""
    if adapter is not None and not (folder / "config.json").exists():
        return load_config(adapter["base_model_name_or_path"], adapter.get("revision"))
    return load_config(str(folder), None)


def tokenizer_folder(folder: Path, adapter: dict[str, Any] | None) -> Path:
    """The folder of the tokenizer: its own, or for an adapter without one that of its base."""
    if adapter is None or any(folder.glob("tokenizer*")):
        return folder
    return fetch(adapter["base_model_name_or_path"], adapter.get("revision"), weights=False)
