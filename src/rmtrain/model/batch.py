"""Packed batches: each prompt once, no padding, rewards read at known positions.

One batch is one row of T tokens, `[p1 c11 c12 ... p2 c21 ...]`. Completion tokens take the positions that continue
their own prompt, so that every layer but attention sees a plain row. In attention, a prompt with its first completion
is one causal segment; each further completion is a segment of its own, whose keys are its prompt's, then its own.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rmtrain.data.tokenize import TokenizedGroup

Packing = Literal["shared_prompt", "padding_free", "none"]


class Layout(TypedDict):
    """The S segments of a packed row, for attention."""

    query_starts: Int[Tensor, " S+1"]  # the number of queries before each segment, and in all
    key_starts: Int[Tensor, " S+1"]  # the same of keys
    max_query: int  # the most queries of a segment
    max_key: int  # the most keys of a segment
    segments: list[tuple[int, int, int, int]]  # query start, query length, prompt start, prompt length
    key_index: NotRequired[Int[Tensor, " keys"]]  # the keys' flat positions; only where prompts are shared


class Targets(TypedDict, total=False):
    """R tokens of responses in a batch, whose log-probabilities are read."""

    targets: Int[Tensor, " R"]  # their ids
    predictors: Int[Tensor, " R"]  # flat positions of the tokens before them
    owners: Int[Tensor, " R"]  # the completions that they belong to, of N


class Batch(Targets):
    """What a reward model's forward takes: dicts of tensors, which data loaders pin and trainers move to the device.

    It has targets for the text loss alone.
    """

    input_ids: Int[Tensor, "rows columns"]  # one row of T tokens, or a padded row for each of N completions
    position_ids: Int[Tensor, "rows columns"]
    ends: Int[Tensor, " N"]  # flat positions at which rewards are read, group by group
    layout: Layout | None  # None where rows are padded
    attention_mask: NotRequired[Int[Tensor, "rows columns"]]  # where rows are padded


class GroupSize(NamedTuple):
    """The size of a group: the tokens of its shared prefix and of each suffix."""

    prefix: int
    suffixes: tuple[int, ...]

    @classmethod
    def of(cls, group: TokenizedGroup) -> "GroupSize":
        """The size of a tokenised group."""
        return cls(len(group.prefix), tuple(len(suffix) for suffix in group.suffixes))

    @property
    def distinct_tokens(self) -> int:
        """Tokens of the group, its prefix counted once."""
        return self.prefix + sum(self.suffixes)


def batch_tokens(sizes: Sequence[GroupSize], packing: Packing) -> int:
    """Tokens that go through the backbone for these groups, padding included."""
    if packing == "shared_prompt":
        return sum(size.distinct_tokens for size in sizes)
    lengths = [size.prefix + suffix for size in sizes for suffix in size.suffixes]
    return sum(lengths) if packing == "padding_free" else len(lengths) * max(lengths, default=0)


def pack(groups: Sequence[TokenizedGroup], packing: Packing, pad_id: int) -> Batch:
    """Lay groups out for one forward pass.

    Args:
        packing: `shared_prompt`, `padding_free` (the prompt once per completion), or `none` (padded rows).
    """
    if packing == "none":
        return _pad([sequence for group in groups for sequence in _whole(group)], pad_id)
    if packing == "padding_free":
        groups = [TokenizedGroup("", "", s[:-1], (s[-1:],), (), False) for group in groups for s in _whole(group)]
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    ends: list[int] = []
    segments: list[tuple[int, int, int, int]] = []  # query start, query length, prompt start, prompt length
    total = 0
    for group in groups:
        start, prompt = total, len(group.prefix)
        ids.append(group.prefix)
        positions.append(np.arange(prompt))
        total += prompt
        for index, suffix in enumerate(group.suffixes):
            ids.append(suffix)
            positions.append(np.arange(prompt, prompt + len(suffix)))
            # the first completion is one causal segment with its prompt, so it needs no prompt keys of its own
            segments.append((start, prompt + len(suffix), 0, 0) if index == 0 else (total, len(suffix), start, prompt))
            total += len(suffix)
            ends.append(total - 1)
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions).astype(np.int64))[None],
        "ends": torch.tensor(ends),
        "layout": _layout(segments),
    }


def target_places(groups: Sequence[TokenizedGroup], batch: Batch, packing: Packing) -> Targets:
    """Where the tokens of marked responses lie in a batch that `pack` made of the groups.

    The first token of a response is predicted by the last of its prompt; response tokens that completions share lie in
    the group's prefix, once, and are read for each of them.
    """
    ends = iter(batch["ends"].tolist())
    places: list[np.ndarray] = []
    predictors: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for group in groups:
        prompt, first = len(group.prefix), None
        for suffix, start in zip(group.suffixes, group.starts, strict=True):
            own = next(ends) + 1 - len(suffix)
            if first is None or packing != "shared_prompt":
                first = own - prompt
            sequence = np.concatenate([np.arange(first, first + prompt), np.arange(own, own + len(suffix))])
            places.append(sequence[start:])
            predictors.append(sequence[start - 1 : -1])
            owners.append(np.full(len(sequence) - start, len(owners)))
    return {
        "targets": batch["input_ids"].flatten()[torch.from_numpy(np.concatenate(places))],
        "predictors": torch.from_numpy(np.concatenate(predictors)),
        "owners": torch.from_numpy(np.concatenate(owners)),
    }


def _layout(segments: list[tuple[int, int, int, int]]) -> Layout:
    query_lengths = [length for _, length, _, _ in segments]
    key_lengths = [prompt + length for _, length, _, prompt in segments]
    layout: Layout = {
        "query_starts": torch.tensor([0, *np.cumsum(query_lengths)], dtype=torch.int32),
        "key_starts": torch.tensor([0, *np.cumsum(key_lengths)], dtype=torch.int32),
        "max_query": max(query_lengths),
        "max_key": max(key_lengths),
        "segments": segments,
    }
    if any(prompt for _, _, _, prompt in segments):
        spans: Iterable[np.ndarray] = (
            span
            for start, length, prompt_start, prompt in segments
            for span in (np.arange(prompt_start, prompt_start + prompt), np.arange(start, start + length))
        )
        layout["key_index"] = torch.from_numpy(np.concatenate(list(spans)))
    return layout


def _whole(group: TokenizedGroup) -> list[np.ndarray]:
    return [np.concatenate([group.prefix, suffix]) for suffix in group.suffixes]


def _pad(sequences: list[np.ndarray], pad_id: int) -> Batch:
    width = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    ends = [row * width + len(sequence) - 1 for row, sequence in enumerate(sequences)]
    positions = np.broadcast_to(np.arange(width, dtype=np.int64), ids.shape)
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "position_ids": torch.from_numpy(positions.copy()),
        "ends": torch.tensor(ends),
        "layout": None,
    }


def plan_batches(sizes: Sequence[GroupSize], packing: Packing, max_tokens: int) -> list[list[int]]:
    """Cut groups into batches of at most `max_tokens`, longest first; a longer group gets a batch of its own.

    The plan depends on the sizes alone, so rewards do not depend on how many processes the batches are dealt to.
    Longest first, memory is at its peak at once and padding is least.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-max(sizes[i].suffixes) - sizes[i].prefix, i))
    batches: list[list[int]] = []
    tokens = sequences = longest = 0
    for index in order:
        size = sizes[index]
        alone = batch_tokens([size], packing)
        if packing == "none":  # the first group is the longest, so the batch is padded to its width
            grown = (sequences + len(size.suffixes)) * max(longest, size.prefix + max(size.suffixes))
        else:
            grown = tokens + alone
        if not batches or grown > max_tokens:
            batches.append([])
            tokens, sequences, longest = 0, 0, size.prefix + max(size.suffixes)
        batches[-1].append(index)
        tokens += alone
        sequences += len(size.suffixes)
    return batches
