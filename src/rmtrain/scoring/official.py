"""Scoring as RewardBench's runner did (scripts/run_rm.py of allenai/reward-bench), and the steps from there to here.

The runner renders a dialogue to text and tokenises that with special tokens, which doubles a template's BOS (the first
is masked, since August 2024); cuts the front at 2,048 tokens; pads batches of 64 rows in dataset order, chosen and
rejected apart; takes the score at the rightmost id that is not the pad id; and runs the head in the model's own dtype.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.data.types import PreferenceGroup
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.model.devices import process_state
from rmtrain.model.forward import HEAD
from rmtrain.scoring.score import Progress, Rewards

BATCH = 64  # rows
MAX_LENGTH = 2048  # tokens


@dataclass(frozen=True)
class Habits:
    """What the runner does; where one is false, it is done as rmtrain does it."""

    retokenise: bool = True  # from text, with special tokens; else once, with one BOS
    cut_front: bool = True  # of the tokens, at 2,048; else rmtrain's rule and the checkpoint's own limit
    pool_by_pad: bool = True  # the rightmost id that is not the pad id; else the last token
    half_head: bool = True  # the head in the model's dtype; else in float32
    batches: bool = True  # 64 padded rows; else one at a time


STEPS = {  # each habit that is left, and the words for what takes its place; in this order
    "retokenise": "tokenised once, one BOS",
    "cut_front": "rmtrain's truncation",
    "pool_by_pad": "read at the last token",
    "half_head": "score head in float32",
    "batches": "one sequence at a time",
}
assert list(STEPS) == [habit.name for habit in fields(Habits)]


def ladder() -> list[tuple[str, Habits]]:
    """All habits, then one less at each rung."""
    rungs = [("run_rm.py", Habits())]
    for habit, words in STEPS.items():
        rungs.append((words, replace(rungs[-1][1], **{habit: False})))
    return rungs


@dataclass(frozen=True)
class PadIds:
    """The token that fills a batch, and the one that pooling passes over; the end token where neither is set."""

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


class OfficialScorer:
    """A checkpoint, loaded in the runner's precision, scored with or without each of its habits.

    Args:
        checkpoint: a reward model loaded with `packing="none"`.
        config_pad: the pad id in its config as published.
        groups: what to score; all of one K.
        tokenized: the same by rmtrain's own rules.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config_pad: int | None,
        groups: Sequence[PreferenceGroup],
        tokenized: Sequence[TokenizedGroup],
    ) -> None:
        self._groups, self._tokenized, self._renderer = groups, tokenized, checkpoint.renderer
        module = checkpoint.model.module
        self._model = getattr(module, "get_base_model", lambda: module)()
        if self._model is module:  # the runner has no autocast; float32 adapters beside a half-precision base need it
            module.compute_dtype = torch.float32
        self._head = getattr(self._model, HEAD)
        self._half_head = copy.deepcopy(self._head).to(self._model.dtype)
        self._tokenizer = copy.deepcopy(checkpoint.renderer.tokenizer)
        self._tokenizer.truncation_side = "left"
        self.pads = PadIds.of(self._tokenizer, config_pad)

    def sequences(self, habits: Habits) -> list[list[list[int]]]:
        """Token ids of every completion of every group."""
        if not habits.cut_front:
            return [[[*g.prefix.tolist(), *suffix.tolist()] for suffix in g.suffixes] for g in self._tokenized]
        whole = [[group.prompt + completion for completion in group.completions] for group in self._groups]
        if not habits.retokenise:
            return [[ids[-MAX_LENGTH:] for ids in self._renderer.tokenize(conversations)] for conversations in whole]
        texts = [[self._renderer.render(conversation) for conversation in conversations] for conversations in whole]
        return [self._tokenizer(of_one, truncation=True, max_length=MAX_LENGTH)["input_ids"] for of_one in texts]

    def doubled(self, ids: Sequence[int]) -> bool:
        """Whether a sequence starts with two BOS."""
        bos = self._tokenizer.bos_token_id
        return bos is not None and list(ids[:2]) == [bos, bos]

    def score(self, habits: Habits, progress: Progress = lambda done, total: None) -> list[Rewards]:
        """Rewards of all completions, in the order of the groups, on every process."""
        sequences, state = self.sequences(habits), process_state()
        size = BATCH if habits.batches else 1
        batches = [range(start, min(start + size, len(sequences))) for start in range(0, len(sequences), size)]
        found: dict[int, list[Rewards]] = {}
        for start in range(0, len(batches), state.num_processes):
            index = min(start + state.process_index, len(batches) - 1)
            columns = zip(*(sequences[row] for row in batches[index]), strict=True)  # chosen and rejected apart
            scores = [self._forward(list(column), habits) for column in columns]
            found.update(dict(gather_object([(index, list(zip(*scores, strict=True)))])))
            progress(min(start + state.num_processes, len(batches)), len(batches))
        return [rewards for index in range(len(batches)) for rewards in found[index]]

    @torch.no_grad()
    def _forward(self, sequences: list[list[int]], habits: Habits) -> list[float]:
        ids, mask = _padded(sequences, self.pads)
        last = (torch.arange(ids.shape[1]) * mask).argmax(1)
        if habits.pool_by_pad:
            last = (torch.arange(ids.shape[1]) * (ids != self.pads.skip)).argmax(1)
        if habits.retokenise:
            for row, sequence in enumerate(sequences):
                if self.doubled(sequence):
                    mask[row, mask[row].argmax()] = 0
        device = self._model.device
        states = self._model.packed_states(ids.to(device), mask.to(device), None, None)
        # on every token, as the runner's: a product of another shape may round in another way
        rewards = self._half_head(states.to(self._model.dtype)) if habits.half_head else self._head(states.float())
        places = (torch.arange(len(ids)) * ids.shape[1] + last).to(device)
        return rewards.float().squeeze(-1).index_select(0, places).tolist()  # type: ignore[no-any-return]


def _padded(sequences: list[list[int]], pads: PadIds) -> tuple[Tensor, Tensor]:
    """[n, L] ids and mask."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pads.fill)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if pads.side == "left" else slice(0, len(sequence))
        ids[row, place], mask[row, place] = torch.tensor(sequence), 1
    return ids, mask
