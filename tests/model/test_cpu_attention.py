"""Causal attention of matrix products in bfloat16, against an attention in float64 without blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rmtrain.model import attention
from rmtrain.model.attention import Pass, shared_prompt_attention
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
    for compute in (causal_attention, reference):
        leaves = [tensor.clone().requires_grad_() for tensor in rows]
        output = compute(*leaves, scaling)
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


@pytest.mark.parametrize(("window", "taken"), [(None, 4), (40, 1), (1000, 4)])
def test_segments_of_a_packed_row_have_the_attention_of_torchs_kernel(
    monkeypatch: pytest.MonkeyPatch, window: int | None, taken: int
) -> None:
    """A prompt of 70 tokens, two completions that see 60 of them, and a row of its own of 30 tokens."""
    segments = [(0, 70, 0, 0), (70, 20, 0, 60), (90, 80, 0, 60), (170, 30, 170, 0)]
    query, key, value = (tensor.bfloat16() for tensor in tensors(200, 200, 4, 2, 16, 16))
    calls: list[int] = []
    outputs = []

    def counted(*rows: Any) -> Tensor:
        calls.append(1)
        return causal_attention(*rows)

    for least in (10**9, 900):  # of none of the segments, and of all; a window of 40 hides keys of all but the last
        monkeypatch.setattr(attention, "is_faster", lambda queries, keys, least=least: queries * keys >= least)
        monkeypatch.setattr(attention, "causal_attention", counted)
        layout = Pass({"segments": segments})  # type: ignore[typeddict-item]
        rows = shared_prompt_attention(
            torch.nn.Identity(), query, key, value, None, sliding_window=window, layout=layout
        )
        outputs.append(rows[0].float())
    assert len(calls) == taken
    assert (outputs[0] - outputs[1]).norm() <= 0.01 * outputs[0].norm()
