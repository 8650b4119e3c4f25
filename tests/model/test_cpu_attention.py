"""Causal attention of matrix products in bfloat16, against an attention in float64 without blocks."""

import pytest
import torch
from torch import Tensor

from rmtrain.model.cpu_attention import _BLOCK, causal_attention

SHAPES = [  # queries, keys, heads, key heads, width, width of values, scaling
    (1, 1, 2, 2, 8, 8, None),
    (5, 5, 4, 2, 16, 16, None),
    (1, 90, 4, 1, 16, 16, 0.3),
    (_BLOCK, _BLOCK + 7, 6, 2, 16, 16, None),
    (_BLOCK + 1, 3 * _BLOCK, 6, 3, 24, 8, None),
    (2 * _BLOCK + 9, 2 * _BLOCK + 9, 3, 3, 64, 64, 0.125),
]


def tensors(queries: int, keys: int, heads: int, key_heads: int, width: int, of_values: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    shapes = [(heads, queries, width), (key_heads, keys, width), (key_heads, keys, of_values)]
    return [torch.randn(1, *shape, generator=generator).bfloat16().float() for shape in shapes]


def reference(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    query, key, value = query.double(), *(rows.double().repeat_interleave(shared, 1) for rows in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(1 + key.shape[2] - query.shape[2])
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize(("queries", "keys", "heads", "key_heads", "width", "of_values", "scaling"), SHAPES)
def test_output_and_gradients_are_those_of_attention_in_float64(
    queries: int, keys: int, heads: int, key_heads: int, width: int, of_values: int, scaling: float | None
) -> None:
    rows = tensors(queries, keys, heads, key_heads, width, of_values)
    weights = torch.randn(1, heads, queries, of_values, generator=torch.Generator().manual_seed(1))
    found = []
    for attention in (causal_attention, reference):
        leaves = [tensor.clone().requires_grad_() for tensor in rows]
        output = attention(*leaves, scaling)
        found.append([output, *torch.autograd.grad((output * weights).sum(), leaves)])
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        assert (ours - exact).norm() <= 0.01 * exact.norm() + 1e-6


def test_no_query_sees_a_later_key() -> None:
    query, key, value = tensors(_BLOCK + 20, _BLOCK + 50, 4, 2, 16, 16)
    before = causal_attention(query, key, value)
    for changed in (key, value):
        changed[:, :, -10:] += 1
    after = causal_attention(query, key, value)
    assert torch.equal(before[:, :, :-10], after[:, :, :-10])
    assert not torch.equal(before[:, :, -10:], after[:, :, -10:])
