"""Scoring as RewardBench's runner does (scripts/run_rm.py of allenai/reward-bench), and the steps from it to rmtrain's.

The runner renders a dialogue to text and tokenises the text with special tokens, which doubles a template's BOS;
truncates sequences at the front to 2,048 tokens; pads batches of 64 rows in dataset order, chosen and rejected
separately; and runs the score head in the model's own dtype. Its default pipeline reads the score where transformers
does: until early 2025 before the first pad id, since then at the rightmost id that is not the pad id. Since August 2024
the first of two BOS is masked. Some published models have their own pipelines, which do neither, and prompts that
differ from their model cards.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaTokenizer

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.data.types import Conversation, PreferenceGroup
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.model.devices import gather_values, process_state
from rmtrain.model.forward import HEAD, unwrapped
from rmtrain.model.published.layouts import LAYOUTS, PLAIN
from rmtrain.model.published.prompts import with_prompt
from rmtrain.model.quantization import is_quantised
from rmtrain.scoring.batches import Progress, Rewards
from rmtrain.scoring.partial import append_partial, read_partial

BATCH = 64  # rows
MAX_LENGTH = 2048  # tokens

Sequences = list[list[list[int]]]  # token ids of every completion of every group


@dataclass(frozen=True)
class RunnerSettings:
    """What is done as in the runner; false means as in rmtrain.

    `reads` is the token at which the score is read: the one before the first id that pooling looks for (`before_pad`),
    the rightmost other id (`by_pad`), or the sequence's last token, as in rmtrain.
    """

    reads: Literal["before_pad", "by_pad", "last"]
    runner_prompt: bool = False  # not the prompt of the model card
    mask_bos: bool = False  # mask the first of two
    retokenise: bool = True  # from text, with special tokens; otherwise once, with one BOS
    cut_front: bool = True  # at 2,048 tokens; otherwise by rmtrain's rule and the checkpoint's own limit
    half_head: bool = True  # the score head in the model's dtype; otherwise in float32
    batches: bool = True  # 64 padded rows; otherwise one sequence at a time


@dataclass(frozen=True)
class PadIds:
    """The token that pads a batch, and the token that pooling looks for; the end token if the tokenizer has no pad."""

    fill: int
    skip: int
    side: str  # on which rows are padded, by the tokenizer's default

    @classmethod
    def of(cls, tokenizer: Any, config_pad: int | None) -> "PadIds":
        """The runner's choice for a tokenizer and the pad id in the model's config."""
        fill = tokenizer.pad_token_id
        if fill is None:
            return cls(tokenizer.eos_token_id, tokenizer.eos_token_id, tokenizer.padding_side)
        return cls(fill, fill if config_pad is None else config_pad, tokenizer.padding_side)

    @classmethod
    def of_unk(cls, tokenizer: Any) -> "PadIds":
        """The choice of Starling's pipelines, which look for BOS if the tokenizer adds one."""
        unk = tokenizer.unk_token
        return cls(tokenizer.convert_tokens_to_ids(unk), tokenizer(unk)["input_ids"][0], tokenizer.padding_side)


class RunnerScorer:
    """A checkpoint, loaded in the runner's precision, to be scored by any of the runner's settings.

    Args:
        checkpoint: a reward model loaded with `packing="none"`.
        groups: to score; all with the same K.
        tokenized: the same groups by rmtrain's rules.
        own_prompt: use the runner's prompt for models for which it has one; otherwise the checkpoint's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        groups: Sequence[PreferenceGroup],
        tokenized: Sequence[TokenizedGroup],
        own_prompt: bool = True,
    ) -> None:
        self._groups, self._tokenized, self._renderer = groups, tokenized, checkpoint.renderer
        module = checkpoint.model.module
        self._name = f"{checkpoint.fingerprint} {module.dtype} {is_quantised(module)}"
        self._model = unwrapped(module)
        if self._model is module:  # the runner has no autocast, but float32 adapters on a half-precision base need it
            module.compute_dtype = torch.float32
        self._head = getattr(self._model, HEAD)
        self._half_head = copy.deepcopy(self._head).to(self._model.dtype)
        called = checkpoint.published.get("layout")
        self._layout = next((layout for layout in LAYOUTS if layout.name == called), PLAIN)
        self.prompt: str | None = checkpoint.published.get("prompt")
        self._runner_renderer: Renderer | None = None
        if own_prompt and self.prompt == self._layout.prompt and self._layout.runner_prompt is not None:
            self.prompt = self._layout.runner_prompt
            self._runner_renderer = with_prompt(checkpoint.renderer, self._layout.runner_prompt)
        tokenizer = checkpoint.renderer.tokenizer
        by_unk = self._layout.runner_reads == "first_unk"
        self.pads = PadIds.of_unk(tokenizer) if by_unk else PadIds.of(tokenizer, checkpoint.config_pad)

    def steps(self) -> list[tuple[str, RunnerSettings]]:
        """The runner's settings, then with one change at each step, by name."""
        reads, own_prompt = self._layout.runner_reads, self._runner_renderer is not None
        changes: list[tuple[str, dict[str, Any]]] = []
        if reads == "pad":
            changes.append(("first of two BOS masked (since 2024-08)", {"mask_bos": True}))
            changes.append(("read at the last id but the pad id (since 2025)", {"reads": "by_pad"}))
        if own_prompt:
            changes.append(("the prompt of its card", {"runner_prompt": False}))
        changes.append(("tokenised once, one BOS", {"retokenise": False, "mask_bos": False}))
        changes.append(("rmtrain's truncation", {"cut_front": False}))
        if reads != "mask":
            changes.append(("read at the last token", {"reads": "last"}))
        changes.append(("score head in float32", {"half_head": False}))
        changes.append(("one sequence at a time", {"batches": False}))
        first = RunnerSettings("last" if reads == "mask" else "before_pad", runner_prompt=own_prompt)
        steps = [("run_rm.py in March 2024", first)]
        for name, change in changes:
            steps.append((name, replace(steps[-1][1], **change)))
        return steps

    def sequences(self, settings: RunnerSettings) -> Sequences:
        """Token ids of every completion of every group."""
        if not settings.cut_front:
            return [
                [[*g.prefix.tolist(), *suffix.tolist()] for suffix in g.spread(g.suffixes)] for g in self._tokenized
            ]
        renderer = self._runner_renderer if settings.runner_prompt and self._runner_renderer else self._renderer
        whole = [[group.prompt + completion for completion in group.completions] for group in self._groups]
        if not settings.retokenise:
            return [[ids[-MAX_LENGTH:] for ids in renderer.tokenize(conversations)] for conversations in whole]
        tokenizer = copy.deepcopy(renderer.tokenizer)
        tokenizer.truncation_side = "left"
        if self.prompt is not None and renderer.append_eos and _is_llamas(tokenizer):
            tokenizer.add_eos_token = True  # as the runner does with FastChat prompts; only Llama's tokenizer uses it
        texts = [[renderer.render(_in_turn(conversation)) for conversation in conversations] for conversations in whole]
        return [tokenizer(of_group, truncation=True, max_length=MAX_LENGTH)["input_ids"] for of_group in texts]

    def doubled(self, ids: Sequence[int]) -> bool:
        """Whether a sequence starts with two BOS."""
        bos = self._renderer.tokenizer.bos_token_id
        return bos is not None and list(ids[:2]) == [bos, bos]

    def score(
        self,
        steps: Sequence[RunnerSettings],
        partial: Path | None = None,
        progress: Progress = lambda done, total: None,
    ) -> list[list[Rewards]]:
        """Rewards of all completions by each step's settings, in the order of the groups, on every process.

        Consecutive steps with the same rows and batches share forward passes, for example if they differ only in where
        the score is read. `partial` begins the paths of the files that keep finished batches; `progress` takes the
        batches done and all of a step.
        """

        def pass_of(settings: RunnerSettings) -> tuple[Sequences, bool, bool]:
            sequences = self.sequences(settings)
            masks = settings.mask_bos and any(self.doubled(ids) for group in sequences for ids in group)
            return sequences, masks, settings.batches

        rewards: list[list[Rewards]] = []
        for (sequences, *_), shared in groupby(steps, key=pass_of):
            rewards += self._run(sequences, list(shared), partial, progress)
        return rewards

    def _run(
        self, sequences: Sequences, variants: list[RunnerSettings], partial: Path | None, progress: Progress
    ) -> list[list[Rewards]]:
        """Rewards of all groups by each of several settings that differ only in where and how the score is read."""
        state, size = process_state(), BATCH if variants[0].batches else 1
        batches = [range(start, min(start + size, len(sequences))) for start in range(0, len(sequences), size)]
        digest = hashlib.sha256(repr((self._name, self.pads, variants, sequences)).encode()).hexdigest()[:16]
        path = partial.with_name(f"{partial.name}-{digest}.partial") if partial is not None else None
        scored = read_partial(path, _parse_line)  # by batch: by row, by variant
        todo = [index for index in range(len(batches)) if index not in scored]
        for start in range(0, len(todo), state.num_processes):
            index = todo[min(start + state.process_index, len(todo) - 1)]
            columns = zip(*(sequences[row] for row in batches[index]), strict=True)  # chosen and rejected separately
            scores = [self._forward(list(column), variants) for column in columns]  # by completion, variant, row
            by_row = [
                [tuple(of_completion[variant][row] for of_completion in scores) for variant in range(len(variants))]
                for row in range(len(batches[index]))
            ]
            new = dict(gather_values([(index, by_row)]))
            scored.update(new)
            append_partial(path, [[place, rows] for place, rows in sorted(new.items())])
            progress(len(scored), len(batches))
        return [
            [rewards[variant] for index in range(len(batches)) for rewards in scored[index]]
            for variant in range(len(variants))
        ]

    @torch.no_grad()
    def _forward(self, sequences: list[list[int]], variants: Sequence[RunnerSettings]) -> list[list[float]]:
        """Rewards of padded rows by each of the settings."""
        ids, mask = _padded(sequences, self.pads)
        ends = [_place(ids, mask, self.pads.skip, settings.reads) for settings in variants]
        for row, sequence in enumerate(sequences):
            if variants[0].mask_bos and self.doubled(sequence):
                mask[row, mask[row].argmax()] = 0
        device = self._model.device
        states = self._model.packed_states(ids.to(device), mask.to(device), None, None)
        rewards = []
        for settings, last in zip(variants, ends, strict=True):
            # on every token, as in the runner: a product of another shape may round differently
            on_all = self._half_head(states.to(self._model.dtype)) if settings.half_head else self._head(states.float())
            places = (torch.arange(len(ids)) * ids.shape[1] + last).to(device)
            rewards.append(on_all.float().squeeze(-1).index_select(0, places).tolist())
        return rewards


def _in_turn(conversation: Conversation) -> Conversation:
    """The roles that the runner assigns: user and assistant in turn."""
    return tuple(m._replace(role=("user", "assistant")[turn % 2]) for turn, m in enumerate(conversation))


def _is_llamas(tokenizer: Any) -> bool:
    named = str(tokenizer.init_kwargs.get("tokenizer_class", ""))
    return isinstance(tokenizer, LlamaTokenizer) or named.startswith("LlamaTokenizer")


def _place(ids: Tensor, mask: Tensor, pad: int, reads: str) -> Tensor:
    """[n] column at which each row's score is read."""
    columns = torch.arange(ids.shape[1])
    if reads == "last":
        return (columns * mask).argmax(1)
    if reads == "by_pad":
        return (columns * (ids != pad)).argmax(1)
    return ((ids == pad).int().argmax(1) - 1) % ids.shape[1]  # the last column if pad is missing or first


def _padded(sequences: list[list[int]], pads: PadIds) -> tuple[Tensor, Tensor]:
    """[n, L] ids and mask."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pads.fill, padding_side=pads.side)
    return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=pads.side)


def _parse_line(line: Any) -> dict[int, list[list[Rewards]]]:
    """A finished batch of a partial file: its number, and its rewards by row and settings."""
    index, rows = line
    return {index: [[tuple(rewards) for rewards in row] for row in rows]}


def remove_partials(partial: Path) -> None:
    """Remove the files that `RunnerScorer.score` wrote to paths with this beginning."""
    for left in partial.parent.glob(f"{partial.name}-*.partial"):
        left.unlink()
