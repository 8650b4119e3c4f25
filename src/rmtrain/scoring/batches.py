"""Groups → rewards: token-budget batches, dealt to all processes, order restored, resumable."""

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object, send_to_device

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import RunFailedError
from rmtrain.model.batch import GroupSize, Packing, batch_tokens, plan_batches
from rmtrain.model.devices import is_out_of_memory, process_state
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.rotation import require_fixed_rotation
from rmtrain.scoring.partial import append_partial, read_partial
from rmtrain.scoring.room import CPU_PASS, room_of, shrink_room

Rewards = tuple[float, ...]  # K float32 values
Progress = Callable[[int, int], None]  # groups done, groups in all


class Piece(NamedTuple):
    """Distinct completions of one group that go through the model together with its prompt."""

    place: int  # of the group
    completions: tuple[int, ...]  # indices of its suffixes
    group: TokenizedGroup  # these alone


def score_groups(
    model: RewardModel,
    groups: Sequence[TokenizedGroup],
    pad_id: int,
    tokens_per_batch: int,
    partial: Path | None = None,
    progress: Progress = lambda done, total: None,
    notify: Callable[[str], None] = lambda line: None,
    alone: bool = False,
) -> list[Rewards]:
    """Rewards of every completion, in the order of the groups, on every process.

    Batches are planned once, from the lengths alone, and then dealt out; a reward depends neither on the number of
    processes nor on the order of the groups. A group of more tokens than a batch takes is cut between completions.
    Completions of a group with the same tokens are scored once, and have the same reward to the last bit.

    Args:
        model: a reward model; its module may be wrapped for data-parallel or sharded execution.
        groups: what to score.
        pad_id: fills padded rows.
        tokens_per_batch: most tokens that go through the backbone at once; fewer where the free memory has no room
            for them, or where so many did not fit, of which `notify` is told once, unless the weights are sharded.
        partial: file to which finished batches are written; completions found there, of the same groups, are not run
            again, whatever the tokens of a batch were.
        progress: called after every round, on every process.
        notify: takes one line for the user.
        alone: this process scores the groups by itself, whatever the other processes of a run do.

    Raises:
        InputError: rows so long that rewards would depend on the batch.
        RunFailedError: one completion alone, or a batch under sharded weights, does not fit the memory, or a reward
            is not finite; on all processes.
    """
    state = process_state()
    processes, rank = (1, 0) if alone else (state.num_processes, state.process_index)
    if groups and not model.sharded:
        require_fixed_rotation(model.module.config, max(max(group.lengths) for group in groups))
    done = {} if alone else read_partial(partial, functools.partial(_parse_line, groups))
    pieces = cut_pieces(groups, done.keys(), model.packing, tokens_per_batch)
    batches = plan_batches([GroupSize.of(piece.group) for piece in pieces], model.packing, tokens_per_batch)
    left = Counter(piece.place for piece in pieces)
    limit, told = _Limit(model, tokens_per_batch), False
    was_training = model.module.training
    model.module.eval()
    with contextlib.ExitStack() as stack:
        stack.callback(model.module.train, was_training)
        for start in range(0, len(batches), processes):
            # a process without a batch of its own repeats the last one: sharded weights are gathered by all together
            index = min(start + rank, len(batches) - 1)
            mine = _batch_or_error(model, [pieces[i].group for i in batches[index]], pad_id, limit)
            answers = [(index, mine, limit.line)]
            answers = answers if alone else gather_object(answers)
            if not told and (lines := [line for *_, line in answers if line]):
                told = True
                notify(lines[0])
            for place, rewards in sorted({place: rewards for place, rewards, _ in answers}.items()):
                if isinstance(rewards, RunFailedError):
                    raise rewards
                members = [pieces[i] for i in batches[place]]
                for piece, values in zip(members, rewards, strict=True):
                    done.update(zip([(piece.place, k) for k in piece.completions], values, strict=True))
                left.subtract(piece.place for piece in members)
                append_partial(partial, [[[[piece.place, piece.completions] for piece in members], rewards]])
            progress(len(groups) - sum(count > 0 for count in left.values()), len(groups))
    return [group.spread([done[i, k] for k in range(len(group.suffixes))]) for i, group in enumerate(groups)]


def cut_pieces(
    groups: Sequence[TokenizedGroup], done: Container[tuple[int, int]], packing: Packing, max_tokens: int
) -> list[Piece]:
    """What is left to score: each group's completions that are not done, as many together as `max_tokens` take."""
    pieces = []
    for index, group in enumerate(groups):
        parts: list[list[int]] = []
        for k in range(len(group.suffixes)):
            if (index, k) in done:
                continue
            longer = [*parts[-1], k] if parts else []
            size = GroupSize(len(group.prefix), tuple(len(group.suffixes[j]) for j in longer))
            if longer and batch_tokens([size], packing) <= max_tokens:
                parts[-1] = longer
            else:
                parts.append([k])
        pieces += [Piece(index, tuple(part), _only(group, part)) for part in parts]
    return pieces


def _only(group: TokenizedGroup, completions: Sequence[int]) -> TokenizedGroup:
    """A group with some of its completions, and no preferences between them."""
    suffixes = tuple(group.suffixes[k] for k in completions)
    starts = tuple(group.starts[k] for k in completions) if group.starts else ()
    return group._replace(suffixes=suffixes, starts=starts, preferences=(), suffix_of=())


class _Limit:
    """Most tokens at once: what was asked for, or what the memory has room for where that is less.

    `line` says where it first fell short; empty until then.
    """

    def __init__(self, model: RewardModel, asked: int) -> None:
        self.model, self.line = model, ""
        # the processes that share sharded weights must run the same passes, whatever is free on each
        room = None if model.sharded else room_of(model)
        self.tokens = asked if room is None else min(asked, room)
        if self.tokens < asked:
            self._say(f"the free memory has room for about {self.tokens:,} tokens at once, not {asked:,}")
        if model.device.type == "cpu":
            self.tokens = min(self.tokens, CPU_PASS)

    def lower(self, tokens: int) -> None:
        """Remember that so many did not fit."""
        self.tokens = shrink_room(self.model, tokens)
        self._say(f"out of memory at {tokens:,} tokens at once: {self.tokens:,} from now on")

    def _say(self, line: str) -> None:
        self.line = self.line or f"{line}; lower tokens_per_batch to avoid this"


def _batch_or_error(
    model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int, limit: _Limit
) -> list[Rewards] | RunFailedError:
    """Rewards of a planned batch, or what ends the command, which all processes must hear of."""
    try:
        return _score_batch(model, groups, pad_id, limit)
    except RunFailedError as error:
        if model.sharded:  # the others wait in the middle of a pass, and hear nothing
            raise
        return error


def _score_batch(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int, limit: _Limit) -> list[Rewards]:
    """Rewards of a planned batch, which goes through the model in the parts that the memory has room for."""
    sizes = [GroupSize.of(group) for group in groups]
    found: dict[int, Rewards] = {}
    while left := [i for i in range(len(groups)) if i not in found]:
        part = [left[i] for i in plan_batches([sizes[i] for i in left], model.packing, limit.tokens)[0]]
        rewards = _score_part(model, [groups[i] for i in part], pad_id)
        if rewards is None:  # outside the handler, so that the failed pass's tensors are free
            torch.cuda.empty_cache()
            limit.lower(batch_tokens([sizes[i] for i in part], model.packing))
            if len(part) == 1:
                group, completions = groups[part[0]], range(len(groups[part[0]].suffixes))
                halves = [completions[: len(completions) // 2], completions[len(completions) // 2 :]]
                parts = [_score_batch(model, [_only(group, half)], pad_id, limit)[0] for half in halves]
                found[part[0]] = parts[0] + parts[1]
        else:
            found.update(zip(part, rewards, strict=True))
    return [found[i] for i in range(len(groups))]


def _score_part(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[Rewards] | None:
    """Rewards of one pass; None where it did not fit and can be made smaller."""
    try:
        flat = _forward(model, groups, pad_id)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(groups) == 1 and len(groups[0].suffixes) == 1:
            raise RunFailedError(
                f"a completion of group {groups[0].id} alone ({groups[0].lengths[0]} tokens with its prompt) does not "
                "fit the device's memory",
                "lower data.max_length, or score on a larger device",
            ) from error
        if model.sharded:  # the other processes would wait for good for a pass that only this one runs
            raise RunFailedError(
                f"out of memory while scoring {len(groups)} groups at once", "lower evaluation.tokens_per_batch"
            ) from error
        return None
    rewards, position = [], 0
    for group in groups:
        rewards.append(tuple(flat[position : position + len(group.suffixes)]))
        position += len(group.suffixes)
        if not all(map(math.isfinite, rewards[-1])):
            raise RunFailedError(
                f"group {group.id}: a reward is not finite", "check the checkpoint; try float32 as model.dtype"
            )
    return rewards


@torch.no_grad()
def _forward(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
    batch: dict[str, Any] = send_to_device(model.batch(groups, pad_id), model.device)
    return model.module(**batch).logits.tolist()  # type: ignore[no-any-return]


def _parse_line(groups: Sequence[TokenizedGroup], line: Any) -> dict[tuple[int, int], float] | None:
    """Rewards by group and completion of a line of a partial file; None if they are not of these groups."""
    places, rewards = line
    found = {
        (index, k): float(value)
        for (index, completions), values in zip(places, rewards, strict=True)
        for k, value in zip(completions, values, strict=True)
    }
    known = all(0 <= i < len(groups) and 0 <= k < len(groups[i].suffixes) for i, k in found)
    return found if known else None
