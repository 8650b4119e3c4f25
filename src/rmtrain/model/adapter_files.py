"""A LoRA adapter's files: attached to its base, and where its config, dtype and tokenizer are."""

import warnings
from pathlib import Path
from typing import Any

import torch

from rmtrain.errors import CheckpointError
from rmtrain.model.adapters import prepare_adapters
from rmtrain.model.config_check import require_bounded
from rmtrain.model.devices import is_out_of_memory
from rmtrain.model.reward_model import load_config
from rmtrain.model.weights import ADAPTER, download, read_object, read_tensors

_OTHER = "the checkpoint is damaged or of another model"


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
    expected = set(get_peft_model_state_dict(module, save_embedding_layers=False))
    found = {name for _, name, _ in read_tensors(folder)}
    if missing := sorted(expected - found):
        raise CheckpointError(f"{folder}: the adapter's file lacks {', '.join(missing[:5])}", _OTHER)
    if surplus := sorted(name for name in found - expected if "lora_" in name):
        raise CheckpointError(
            f"{folder}: weights that its base {base} lacks a layer for: {', '.join(surplus[:5])}", _OTHER
        )
    prepare_adapters(module)
    return module


def check_finite(module: Any, where: str) -> None:
    """Refuse weights that are not finite, and name them."""
    for name, parameter in module.named_parameters():
        # summing finds such a weight in a tenth of the time, but a sum can also overflow without one
        if (
            parameter.is_floating_point()
            and not parameter.detach().sum(dtype=torch.float32).isfinite()
            and not parameter.isfinite().all()
        ):
            raise CheckpointError(f"{where}: {name} is not finite", "the weights are damaged; use another checkpoint")


def dtype_in_config(folder: Path, adapter: dict[str, Any] | None) -> str:
    """The dtype in the config of a model, or in that of an adapter's base."""
    dtype = str(load_config(*config_place(folder, adapter)).dtype).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def config_place(folder: Path, adapter: dict[str, Any] | None) -> tuple[str, str | None]:
    """Folder or hub id of a checkpoint's config, and its revision; only earlier versions wrote one beside adapters."""
    if adapter is not None and not (folder / "config.json").exists():
        return adapter["base_model_name_or_path"], adapter.get("revision")
    return str(folder), None


def tokenizer_place(folder: Path, adapter: dict[str, Any] | None) -> Path:
    """The folder of the tokenizer: its own, or for an adapter without one that of its base."""
    if adapter is None or any(folder.glob("tokenizer*")):
        return folder
    base = adapter["base_model_name_or_path"]
    return Path(base) if Path(base).is_dir() else download(base, adapter.get("revision"), weights=False)
