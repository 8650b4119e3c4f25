"""What a recipe's model takes in memory, from its config alone: no weights are loaded.

Parameters, gradients and optimiser state are counted tensor by tensor on the meta device. Activations are what autograd
keeps for the backward pass, by the formula of `LayerShape`.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from rmtrain.model.adapters import wrap
from rmtrain.model.config_check import model_without_weights
from rmtrain.model.forward import HEAD
from rmtrain.model.layer_shape import LayerShape, shape_of
from rmtrain.model.reward_model import reward_model_class
from rmtrain.recipe.schema import LoraSection, ModelSection

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MASTER_BYTES = 4  # of whatever is trained: adapters, score head, or the whole model, and of its gradients
_PAGED_FROM = 100_000  # elements: bitsandbytes pages the state of larger tensors only
_EIGHT_BIT_FROM = 4096  # elements: it holds the state of smaller ones in 32 bits
_SCALE_BLOCK = 256  # elements a scale of 8-bit state, and scales a scale of nf4's own
_NF4_BLOCK = 64  # weights a scale of nf4
_STASH = 5  # tensors that TRL's activation offloading leaves on the device while they travel


class Trained(NamedTuple):
    """A tensor that is trained."""

    numel: int
    embedding: bool  # bitsandbytes leaves the state of these in 32 bits
    rows: int = 1  # its first dimension, which FSDP2 cuts


class Census(NamedTuple):
    """A recipe's model in numbers.

    Attributes:
        frozen_bytes: of what is not trained, as it is stored.
        trained: the tensors that are.
        layer: None where the architecture is not known well enough to predict activations.
        layers: how many of them.
        compute_bytes: of an element of the backbone's arithmetic.
        whole: the backbone itself is trained.
        elements: of all parameters.
        quantized: the base is nf4 or int8.
        outside_bytes: of the embedding and all else that is in no layer.
    """

    frozen_bytes: int
    trained: tuple[Trained, ...]
    layer: LayerShape | None
    layers: int
    compute_bytes: int
    whole: bool
    elements: int
    quantized: bool
    outside_bytes: int

    @property
    def trained_bytes(self) -> int:
        """Of the trained parameters; their gradients take as much."""
        return MASTER_BYTES * sum(tensor.numel for tensor in self.trained)

    @property
    def layer_bytes(self) -> int:
        """Of one layer's parameters, as they are stored."""
        return (self.frozen_bytes + self.trained_bytes - self.outside_bytes) // self.layers


def meta_model(config: PretrainedConfig, lora: LoraSection | None) -> Any:
    """The model with its adapters, without weights."""
    module = model_without_weights(reward_model_class(config), config)
    if lora is not None:
        with torch.device("meta"):
            module = wrap(module, lora)
    return module


def count_parameters(config: PretrainedConfig, lora: LoraSection | None) -> dict[str, int]:
    """Parameters in all, trained, and of the score head.

    Args:
        config: of the backbone.
        lora: the recipe's section; None trains everything.
    """
    parameters = dict(meta_model(config, lora).named_parameters())
    return {
        "parameters": sum(p.numel() for n, p in parameters.items() if ".original_module." not in n),
        "parameters_trained": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "parameters_of_score_head": sum(
            p.numel() for n, p in parameters.items() if f"{HEAD}." in n and p.requires_grad
        ),
    }


def take_census(config: PretrainedConfig, model: ModelSection, lora: LoraSection | None) -> Census:
    """Count a recipe's model.

    Args:
        config: of the backbone.
        model: the recipe's section: dtype and quantisation.
        lora: the recipe's section; None trains everything.

    Raises:
        InputError: transformers has no sequence-classification head for the architecture, or no layer is a target.
    """
    module = meta_model(config, lora)
    plain = DTYPE_BYTES[model.dtype]
    trained, frozen, outside = [], 0, 0
    stack = _decoder_layers(module, int(config.get_text_config().num_hidden_layers))
    inside = {id(p) for layer in stack for p in layer.parameters()}
    for owner_name, owner in module.named_modules():
        for parameter in owner.parameters(recurse=False):
            if parameter.requires_grad:
                trained.append(Trained(parameter.numel(), isinstance(owner, nn.Embedding), parameter.shape[0]))
                size = MASTER_BYTES * parameter.numel()
            elif f".{HEAD}." in f".{owner_name}.":  # PEFT keeps the head that it copied
                size = MASTER_BYTES * parameter.numel()
                frozen += size
            else:
                size = _stored_bytes(owner, parameter, model.quantization, plain)
                frozen += size
            outside += 0 if id(parameter) in inside else size
    shape = shape_of(stack[0], config, lora, plain != MASTER_BYTES) if stack else None
    return Census(
        frozen_bytes=frozen,
        trained=tuple(trained),
        layer=shape,
        layers=max(len(stack), 1),
        compute_bytes=plain,
        whole=lora is None,
        elements=sum(p.numel() for p in module.parameters()),
        quantized=model.quantization != "none",
        outside_bytes=outside,
    )


def _decoder_layers(module: nn.Module, number: int) -> list[nn.Module]:
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


def optimizer_bytes(trained: tuple[Trained, ...], optimizer: str) -> tuple[int, int]:
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


class Activations(NamedTuple):
    """Bytes that one micro-batch takes on its device."""

    kept: int  # by autograd, from the forward pass to the backward pass
    working: int  # beside that, in the layer that is being computed
    offloaded: int  # kept in the host's memory instead


def activation_bytes(census: Census, tokens: int, checkpointing: str, offloading: bool) -> Activations | None:
    """What one micro-batch takes; None for an architecture that can't be predicted.

    Args:
        census: of the model.
        tokens: through the backbone at once.
        checkpointing: none, full (a layer keeps its input) or selective (and its products).
        offloading: what is kept goes to the host.
    """
    shape = census.layer
    if shape is None:
        return None
    b, whole = census.compute_bytes, census.whole
    stream = 4 if whole else b  # the residual stream has the type of the weights
    attended = b * (2 * shape.queries + 2 * shape.keys) + 4 * shape.heads
    normalised = 2 * MASTER_BYTES if whole else MASTER_BYTES
    dropped = (b + 1) * shape.dropped
    layer = normalised * shape.norms + attended + b * shape.inputs + b * shape.gate + b * shape.ranks + dropped
    kept = {
        "none": layer,
        "selective": stream * shape.hidden + b * (shape.outputs + shape.queries + shape.ranks) + 4 * shape.heads,
        "full": stream * shape.hidden,
    }[checkpointing]
    # the gradients of the feed-forward block and its activation, and a norm in float32
    working = 4 * b * shape.inner + 3 * 4 * shape.hidden
    if checkpointing != "none":
        working += layer
    casts = 0 if b == MASTER_BYTES else b * sum(t.numel for t in census.trained)  # autocast's copies of trained weights
    dense = (2 if census.quantized else 0) * shape.largest  # the weight that is dequantised
    ends = tokens * (2 * MASTER_BYTES * shape.hidden if whole else MASTER_BYTES * shape.hidden)  # of the last norm
    kept_bytes = census.layers * tokens * kept + ends
    moved = 0
    if offloading:
        moved = kept_bytes - min(kept_bytes, _STASH * tokens * b * max(shape.inner, 2 * shape.hidden))
    return Activations(kept_bytes - moved + casts, tokens * working + dense, moved)
