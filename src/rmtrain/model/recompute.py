"""Gradient checkpointing: what the backward pass computes again instead of keeping it (arXiv 1604.06174)."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
_KEPT = (
    "bitsandbytes::gemm_4bit",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)


def checkpointing_options(kind: str, rank: int, reentrant: bool = False) -> dict[str, object]:
    """Keyword arguments of torch's checkpoint function.

    Args:
        kind: full keeps a layer's input alone; selective keeps its matrix products and attention too.
        rank: of LoRA adapters, 0 without; their second products are as wide as the layer and cheap, so not kept.
        reentrant: the way that DeepSpeed's ZeRO-3 needs with adapters.
    """
    if kind == "full":
        return {"use_reentrant": reentrant}
    return {"use_reentrant": False, "context_fn": partial(create_selective_checkpoint_contexts, partial(_policy, rank))}


def _policy(rank: int, context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator in _PRODUCTS:
        inner = args[-1].shape[0]  # of [tokens, inner] x [inner, outputs]
        return CheckpointPolicy.MUST_SAVE if inner > rank else CheckpointPolicy.PREFER_RECOMPUTE
    name = getattr(getattr(operator, "_schema", None), "name", None)
    return CheckpointPolicy.MUST_SAVE if name in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
