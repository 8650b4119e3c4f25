"""Scoring as RewardBench's runner did (scripts/run_rm.py of allenai/reward-bench), and the steps from there to here.

The runner renders a dialogue to text and tokenises that with special tokens, which doubles a template's BOS; cuts the
front at 2,048 tokens; pads batches of 64 rows in dataset order, chosen and rejected apart; and runs the head in the
model's own dtype. Its default pipeline takes the score where transformers does: until early 2025 before the first pad
id, since then at the rightmost other id; since August 2024 the first of two BOS is masked. Some published models have
pipelines of their own, which did neither, and prompts other than those of their cards.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaTokenizer

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.data.types import Conversation, PreferenceGroup
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.model.devices import process_state
from rmtrain.model.forward import HEAD
from rmtrain.model.published.layouts import LAYOUTS, PLAIN
from rmtrain.model.published.prompts import with_prompt
from rmtrain.model.quantization import is_quantised
from rmtrain.scoring.batches import Progress, Rewards
from rmtrain.scoring.partial import append_partial, read_partial

BATCH = 64  # rows
MAX_LENGTH = 2048  # tokens

Sequences = list[list[list[int]]]  # token ids of every completion of every group


@dataclass(frozen=True)
class Habits:
    """What the runner does; where one is false, it is done as rmtrain does it.

    `reads` is the token whose score is taken: the one before the first id that pooling looks for (`before_pad`), the
    rightmost other id (`by_pad`), or the row's last, which is rmtrain's.
    """

    reads: Literal["before_pad", "by_pad", "last"]
    runner_prompt: bool = False  # another than the card's
    mask_bos: bool = False  # the first of two
    retokenise: bool = True  # from text, with special tokens; else once, with one BOS
    cut_front: bool = True  # of the tokens, at 2,048; else rmtrain's rule and the checkpoint's own limit
    half_head: bool = True  # the head in the model's dtype; else in float32
    batches: bool = True  # 64 padded rows; else one at a time


@dataclass(frozen=True)
class PadIds:
    """The token that fills a batch, and the one that pooling looks for; the end token where neither is set."""

    fill: int
    skip: int
    side: str  # of the padding: the tokenizer's default

    @classmethod
    def of(cls, tokenizer: Any, config_pad: int | None) -> "PadIds":
        """As the runner finds them, of a tokenizer and of the pad id in the model's config."""
        fill = tokenizer.pad_token_id
        if fill is None:
            return cls(tokenizer.eos_token_id, tokenizer.eos_token_id, tokenizer.padding_side)
        return cls(fill, fill if config_pad is None else config_pad, tokenizer.padding_side)

    @classmethod
    def of_unk(cls, tokenizer: Any) -> "PadIds":
        """As Starling's pipelines have them: what they look for is BOS where the tokenizer puts one before its unk."""
        unk = tokenizer.unk_token
        found = tokenizer.convert_tokens_to_ids(unk)
        return cls(found, tokenizer(unk)["input_ids"][0], tokenizer.padding_side)


class OfficialScorer:
    """A checkpoint, loaded in the runner's precision, scored with or without each of its habits.

    Args:
        checkpoint: a reward model loaded with `packing="none"`.
        groups: what to score; all of one K.
        tokenized: the same by rmtrain's own rules.
        own_prompt: take the runner's prompt where the model has one of its own; else the checkpoint's throughout.
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
        self._model = getattr(module, "get_base_model", lambda: module)()
        if self._model is module:  # the runner has no autocast; float32 adapters beside a half-precision base need it
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

    def ladder(self) -> list[tuple[str, Habits]]:
        """All habits, then one less at each rung, with the words for what takes its place."""
        reads = self._layout.runner_reads
        habits = Habits("last" if reads == "mask" else "before_pad", runner_prompt=self._runner_renderer is not None)
        steps: list[tuple[str, dict[str, Any]]] = []
        if reads == "pad":
            steps.append(("first of two BOS masked (since 2024-08)", {"mask_bos": True}))
            steps.append(("read at the last id but the pad id (since 2025)", {"reads": "by_pad"}))
        if habits.runner_prompt:
            steps.append(("the prompt of its card", {"runner_prompt": False}))
        steps.append(("tokenised once, one BOS", {"retokenise": False, "mask_bos": False}))
        steps.append(("rmtrain's truncation", {"cut_front": False}))
        if reads != "mask":
            steps.append(("read at the last token", {"reads": "last"}))
        steps.append(("score head in float32", {"half_head": False}))
        steps.append(("one sequence at a time", {"batches": False}))
        rungs = [("run_rm.py in March 2024", habits)]
        for words, change in steps:
            rungs.append((words, replace(rungs[-1][1], **change)))
        return rungs

    def sequences(self, habits: Habits) -> Sequences:
        """Token ids of every completion of every group."""
        if not habits.cut_front:
            return [
                [[*g.prefix.tolist(), *suffix.tolist()] for suffix in g.spread(g.suffixes)] for g in self._tokenized
            ]
        renderer = self._runner_renderer if habits.runner_prompt and self._runner_renderer else self._renderer
        whole = [[group.prompt + completion for completion in group.completions] for group in self._groups]
        if not habits.retokenise:
            return [[ids[-MAX_LENGTH:] for ids in renderer.tokenize(conversations)] for conversations in whole]
        tokenizer = copy.deepcopy(renderer.tokenizer)
        tokenizer.truncation_side = "left"
        if self.prompt is not None and renderer.append_eos and _is_llamas(tokenizer):
            tokenizer.add_eos_token = True  # set with every prompt of FastChat; others than Llama's take no notice
        texts = [[renderer.render(_in_turn(conversation)) for conversation in conversations] for conversations in whole]
        return [tokenizer(of_one, truncation=True, max_length=MAX_LENGTH)["input_ids"] for of_one in texts]

    def doubled(self, ids: Sequence[int]) -> bool:
        """Whether a sequence starts with two BOS."""
        bos = self._renderer.tokenizer.bos_token_id
        return bos is not None and list(ids[:2]) == [bos, bos]

    def score(
        self, rungs: Sequence[Habits], partial: Path | None = None, progress: Progress = lambda done, total: None
    ) -> list[list[Rewards]]:
        """Rewards of all completions with each rung's habits, in the order of the groups, on every process.

        Neighbouring rungs whose rows and batches are the same, such as those that differ in where the score is read,
        share their passes.

        Args:
            rungs: of habits.
            partial: beginning of the paths to which finished batches are written; those found there are not run again.
            progress: called with the batches done of the rung.
        """

        def pass_of(habits: Habits) -> tuple[Sequences, bool, bool]:
            sequences = self.sequences(habits)
            masks = habits.mask_bos and any(self.doubled(ids) for group in sequences for ids in group)
            return sequences, masks, habits.batches

        found: list[list[Rewards]] = []
        for (sequences, *_), shared in groupby(rungs, key=pass_of):
            found += self._run(sequences, list(shared), partial, progress)
        return found

    def _run(
        self, sequences: Sequences, readings: list[Habits], partial: Path | None, progress: Progress
    ) -> list[list[Rewards]]:
        """Rewards of all groups by each of several habits that differ in the reading alone."""
        state, size = process_state(), BATCH if readings[0].batches else 1
        batches = [range(start, min(start + size, len(sequences))) for start in range(0, len(sequences), size)]
        digest = hashlib.sha256(repr((self._name, self.pads, readings, sequences)).encode()).hexdigest()[:16]
        path = partial.with_name(f"{partial.name}-{digest}.partial") if partial is not None else None
        found = read_partial(path, _parse_line)  # by batch: by row, by reading
        todo = [index for index in range(len(batches)) if index not in found]
        for start in range(0, len(todo), state.num_processes):
            index = todo[min(start + state.process_index, len(todo) - 1)]
            columns = zip(*(sequences[row] for row in batches[index]), strict=True)  # chosen and rejected apart
            scores = [self._forward(list(column), readings) for column in columns]  # by completion, reading, row
            by_row = [
                [tuple(of_one[reading][row] for of_one in scores) for reading in range(len(readings))]
                for row in range(len(batches[index]))
            ]
            new = dict(gather_object([(index, by_row)]))
            found.update(new)
            append_partial(path, [[place, rows] for place, rows in sorted(new.items())])
            progress(len(found), len(batches))
        return [
            [rewards[reading] for index in range(len(batches)) for rewards in found[index]]
            for reading in range(len(readings))
        ]

    @torch.no_grad()
    def _forward(self, sequences: list[list[int]], readings: Sequence[Habits]) -> list[list[float]]:
        """The rewards of padded rows by each reading."""
        ids, mask = _padded(sequences, self.pads)
        ends = [_place(ids, mask, self.pads.skip, habits.reads) for habits in readings]
        for row, sequence in enumerate(sequences):
            if readings[0].mask_bos and self.doubled(sequence):
                mask[row, mask[row].argmax()] = 0
        device = self._model.device
        states = self._model.packed_states(ids.to(device), mask.to(device), None, None)
        rewards = []
        for habits, last in zip(readings, ends, strict=True):
            # on every token, as the runner's: a product of another shape may round in another way
            of_all = self._half_head(states.to(self._model.dtype)) if habits.half_head else self._head(states.float())
            places = (torch.arange(len(ids)) * ids.shape[1] + last).to(device)
            rewards.append(of_all.float().squeeze(-1).index_select(0, places).tolist())
        return rewards


def _in_turn(conversation: Conversation) -> Conversation:
    """The roles as the runner gives them: user and assistant in turn, whatever they were."""
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
    return ((ids == pad).int().argmax(1) - 1) % ids.shape[1]  # the last column where there is none, or it comes first


def _padded(sequences: list[list[int]], pads: PadIds) -> tuple[Tensor, Tensor]:
    """[n, L] ids and mask."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pads.fill, padding_side=pads.side)
    return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=pads.side)


def _parse_line(line: Any) -> dict[int, list[list[Rewards]]]:
    """A finished batch of a partial file: its number, and by row and reading the rewards."""
    index, rows = line
    return {index: [[tuple(rewards) for rewards in row] for row in rows]}


def remove_partials(partial: Path) -> None:
    """Take away what `OfficialScorer.score` has written to paths that begin so."""
    for left in partial.parent.glob(f"{partial.name}-*.partial"):
        left.unlink()
