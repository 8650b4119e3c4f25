"""Parameters, gradients and optimiser state of a recipe's model, exactly, from its config: no weights are loaded."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from rmtrain.model.adapters import wrap
from rmtrain.model.config_check import model_without_weights
from rmtrain.model.dropout import disable_dropout
from rmtrain.model.forward import HEAD
from rmtrain.model.reward_model import reward_model_class
from rmtrain.recipe.schema import LoraSection, ModelSection

MASTER_BYTES = 4  # of a trained element (of adapters and score head, or of the whole model), and of its gradient
_PAGED_FROM = 100_000  # elements of a tensor: bitsandbytes pages the state of larger ones only
_EIGHT_BIT_FROM = 4096  # elements of a tensor: it keeps the state of smaller ones in 32 bits
_SCALE_BLOCK = 256  # elements of 8-bit state that share a scale; nf4's scales share scales as well
_NF4_BLOCK = 64  # weights of nf4 that share a scale


class TrainedTensor(NamedTuple):
    """What the memory of a trained tensor depends on."""

    numel: int
    embedding: bool  # bitsandbytes keeps the state of embeddings in 32 bits
    rows: int = 1  # its first dimension, along which FSDP2 shards it


class ModelSize(NamedTuple):
    """A recipe's model in numbers."""

    frozen_bytes: int  # bytes of the parameters that are not trained, as they are stored
    trained: tuple[TrainedTensor, ...]
    layers: int
    elements: int  # elements of all parameters
    outside_bytes: int  # bytes of the embedding and of all other parameters that belong to no layer
    dequantized_bytes: int  # bytes of the largest quantised weight in the compute type; 0 without one

    @property
    def trained_bytes(self) -> int:
        """Bytes of the trained parameters; their gradients take as much."""
        return MASTER_BYTES * sum(tensor.numel for tensor in self.trained)

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's parameters, as they are stored."""
        return (self.frozen_bytes + self.trained_bytes - self.outside_bytes) // self.layers


def meta_model(config: PretrainedConfig, lora: LoraSection | None, section: ModelSection | None = None) -> Any:
    """The model with its adapters, without weights; with a section, in its compute type and with its dropout."""
    module = model_without_weights(reward_model_class(config), config)
    if section is not None:
        module.compute_dtype = getattr(torch, section.dtype)
        if not section.dropout:
            disable_dropout(module)
    if lora is None:
        return module
    with torch.device("meta"):
        return wrap(module, lora)


def count_parameters(config: PretrainedConfig, lora: LoraSection | None) -> dict[str, int]:
    """Parameters in all, trained (all of them without a lora section), and of the score head."""
    parameters = dict(meta_model(config, lora).named_parameters())
    return {
        "parameters": sum(p.numel() for n, p in parameters.items() if ".original_module." not in n),
        "parameters_trained": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "parameters_of_score_head": sum(
            p.numel() for n, p in parameters.items() if f"{HEAD}." in n and p.requires_grad
        ),
    }


def measure_model(config: PretrainedConfig, model: ModelSection, lora: LoraSection | None) -> ModelSize:
    """The size of a recipe's model, which is trained as a whole without a lora section.

    Raises:
        InputError: transformers has no sequence-classification head for the architecture, or no layer is a target.
    """
    module = meta_model(config, lora)
    plain = getattr(torch, model.dtype).itemsize
    trained, frozen, outside = [], 0, 0
    stack = decoder_layers(module, int(config.get_text_config().num_hidden_layers))
    inside = {id(p) for layer in stack for p in layer.parameters()}
    for owner_name, owner in module.named_modules():
        for parameter in owner.parameters(recurse=False):
            if parameter.requires_grad:
                trained.append(TrainedTensor(parameter.numel(), isinstance(owner, nn.Embedding), parameter.shape[0]))
                size = MASTER_BYTES * parameter.numel()
            elif f".{HEAD}." in f".{owner_name}.":  # PEFT keeps the head that it copied
                size = MASTER_BYTES * parameter.numel()
                frozen += size
            else:
                size = _stored_bytes(owner, parameter, model.quantization, plain)
                frozen += size
            outside += 0 if id(parameter) in inside else size
    largest = max((p.numel() for layer in stack for p in layer.parameters() if p.ndim == 2), default=0)
    return ModelSize(
        frozen_bytes=frozen,
        trained=tuple(trained),
        layers=max(len(stack), 1),
        elements=sum(p.numel() for p in module.parameters()),
        outside_bytes=outside,
        dequantized_bytes=plain * largest if model.quantization != "none" else 0,
    )


def decoder_layers(module: nn.Module, number: int) -> list[nn.Module]:
    """The layers of a model that has so many; empty where its modules do not show them."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == number:
            return list(child)
    return []


def _stored_bytes(owner: nn.Module, parameter: nn.Parameter, quantization: str, plain: int) -> int:
    """Bytes of a frozen parameter with the state that its quantisation adds.

    nf4 with double quantisation (arXiv 2305.14314): half a byte a weight, a byte a block of 64 for its scale, 4 bytes
    for every 256 of these and their offset, and two look-up tables; int8: a byte a weight, 4 an output.
    """
    n = parameter.numel()
    if quantization == "none" or parameter.ndim != 2 or not isinstance(owner, (nn.Linear, Conv1D)):
        return plain * n
    if quantization == "int8":
        outputs = parameter.shape[0] if isinstance(owner, nn.Linear) else parameter.shape[1]
        return n + 4 * int(outputs)
    scales = math.ceil(n / _NF4_BLOCK)
    return math.ceil(n / 2) + scales + 4 * math.ceil(scales / _SCALE_BLOCK) + 4 + 4 * 16 + 4 * 256


def optimizer_bytes(trained: tuple[TrainedTensor, ...], optimizer: str) -> tuple[int, int]:
    """Bytes of AdamW's state in all, and of these what bitsandbytes pages: the host takes it where the GPU is full.

    torch's AdamW keeps two float32 moments and the step. In 8 bits (arXiv 2110.02861) a moment takes a byte an element
    and 4 a block of 256, and all tensors share two look-up tables; embeddings and small tensors stay in 32 bits.
    """
    total = paged = 0
    small = "8bit" in optimizer
    for numel, embedding, _ in trained:
        moments, rest = 8 * numel, 0
        if small and numel >= _EIGHT_BIT_FROM and not embedding:
            moments, rest = 2 * numel, 8 * math.ceil(numel / _SCALE_BLOCK)
        elif optimizer == "adamw":
            rest = 4
        total += moments + rest
        paged += moments if "paged" in optimizer and numel >= _PAGED_FROM else 0
    tables = any(t.numel >= _EIGHT_BIT_FROM and not t.embedding for t in trained)
    return total + (2 * 256 * 4 if small and tables else 0), paged
