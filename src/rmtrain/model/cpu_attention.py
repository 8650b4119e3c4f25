"""Causal attention in bfloat16 on a CPU, from matrix products: torch's kernel is no faster there than in float32.

Scores and probabilities are rounded to bfloat16, as where transformers computes attention without a fused kernel; sums
are float32. A block of queries at a time keeps them in the cache, and leaves out the keys that none of the block sees.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

_BLOCK = 64  # queries
_LEAST = 6_000  # queries times keys from which it is faster than torch's kernel; measured on a Zen 5


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of matrices in bfloat16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def is_faster(queries: int, keys: int) -> bool:
    """Whether `causal_attention` pays for a segment."""
    return queries * keys >= _LEAST and multiplies_bfloat16()


def causal_attention(
    query: Float[Tensor, "1 heads Q D"],
    key: Float[Tensor, "1 key_heads K D"],
    value: Float[Tensor, "1 key_heads K V"],
    scaling: float | None = None,
) -> Float[Tensor, "1 heads Q V"]:
    """Attention in which the last query sees all keys, and each before it one less.

    Args:
        query: float32, with the values of bfloat16, as key and value.
        scaling: factor of the scores; None is 1/sqrt(D).

    Returns:
        float32; so are the gradients, since those of a prompt's keys are summed over its completions.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return cast(Tensor, _CausalAttention.apply(query, key, value, scale))  # type: ignore[no-untyped-call]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The output; probabilities are not kept, but computed again for the gradient."""
        k, v = key[0].bfloat16(), value[0].bfloat16()
        q = query[0].bfloat16().view(len(k), -1, *query.shape[2:])
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        outputs = [
            (probabilities @ v[:, :seen]).view(*q.shape[:2], -1, v.shape[2])
            for _, seen, _, probabilities in _blocks(q, k, scale)
        ]
        return torch.cat(outputs, dim=2).flatten(0, 1)[None].float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of query, key and value."""
        q, k, v = ctx.saved_tensors
        of_output = gradient.bfloat16().view(*q.shape[:3], -1)
        dq, dk, dv = (torch.zeros(rows.shape) for rows in (q, k, v))
        for block, seen, queries, probabilities in _blocks(q, k, ctx.scale):
            upstream = of_output[:, :, block].flatten(1, 2)
            dv[:, :seen] += probabilities.transpose(1, 2) @ upstream
            of_probabilities = upstream @ v[:, :seen].transpose(1, 2)
            of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, q.dtype)
            dk[:, :seen] += of_scores.transpose(1, 2) @ queries
            dq[:, :, block] = (of_scores @ k[:, :seen]).view(*q.shape[:2], -1, q.shape[3]).float()
        return dq.mul_(ctx.scale).flatten(0, 1)[None], dk.mul_(ctx.scale)[None], dv[None], None


def _blocks(
    query: BFloat16[Tensor, "key_heads shared Q D"], key: BFloat16[Tensor, "key_heads K D"], scale: float
) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
    """Of each block of queries: its place, the number of keys that its last one sees, its queries, and probabilities.

    Queries that share a key head lie one after another: [key_heads, shared * block, D or keys seen].
    """
    for start in range(0, query.shape[2], _BLOCK):
        block = slice(start, min(start + _BLOCK, query.shape[2]))
        size, seen = block.stop - start, key.shape[1] - query.shape[2] + block.stop
        queries = query[:, :, block].flatten(1, 2)
        unused = queries.new_empty(len(key), queries.shape[1], seen)
        # beta 0 leaves `unused` out, and alpha scales the scores before they are rounded
        scores = torch.baddbmm(unused, queries, key[:, :seen].transpose(1, 2), beta=0, alpha=scale)
        scores = scores.view(*query.shape[:2], size, seen)
        scores[..., seen - size :] += torch.full((size, size), -torch.inf, dtype=scores.dtype).triu(1)
        yield block, seen, queries, torch.softmax(scores, -1).flatten(1, 2)
