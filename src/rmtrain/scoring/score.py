"""Groups → rewards: token-budget batches, dealt to all processes, order restored, resumable."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, send_to_device

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import RunFailedError
from rmtrain.model.batch import GroupSize, batch_tokens, plan_batches
from rmtrain.model.devices import process_state
from rmtrain.model.reward_model import RewardModel
from rmtrain.scoring.room import is_out_of_memory, room_of, shrink_room

Rewards = tuple[float, ...]  # K float32 values
Progress = Callable[[int, int], None]  # groups done, groups in all


def score_groups(
    model: RewardModel,
    groups: Sequence[TokenizedGroup],
    pad_id: int,
    tokens_per_batch: int,
    partial: Path | None = None,
    progress: Progress = lambda done, total: None,
    notify: Callable[[str], None] = lambda line: None,
) -> list[Rewards]:
    """Rewards of every completion, in the order of the groups, on every process.

    Batches are planned once, from the lengths alone, and then dealt out; a reward depends neither on the number of
    processes nor on the order of the groups.

    Args:
        model: a reward model; its module may be wrapped for data-parallel or sharded execution.
        groups: what to score.
        pad_id: fills padded rows.
        tokens_per_batch: most tokens that go through the backbone at once; fewer where the free memory has no room
            for them, or where so many did not fit, of which `notify` is told once, unless the weights are sharded.
        partial: file to which finished batches are written; batches found there are not run again.
        progress: called after every round, on every process.
        notify: takes one line for the user.

    Raises:
        RunFailedError: one group alone, or a batch under sharded weights, does not fit the memory, or a reward is
            not finite.
    """
    state = process_state()
    batches = plan_batches([GroupSize.of(group) for group in groups], model.packing, tokens_per_batch)
    found = [_read_partial(partial, batches)] if state.is_main_process else [{}]
    broadcast_object_list(found)
    done: dict[int, list[Rewards]] = found[0]
    todo = [index for index in range(len(batches)) if index not in done]
    scored = sum(len(batches[index]) for index in done)
    limit = _Limit(model, tokens_per_batch, notify)
    was_training = model.module.training
    model.module.eval()
    with contextlib.ExitStack() as stack:
        stack.callback(model.module.train, was_training)
        writes = partial is not None and state.is_main_process
        stream = stack.enter_context(open(partial, "a", encoding="utf-8")) if writes else None  # type: ignore[arg-type]
        for start in range(0, len(todo), state.num_processes):
            # a process without a batch of its own repeats the last one: sharded weights are gathered by all together
            index = todo[min(start + state.process_index, len(todo) - 1)]
            mine = _score_batch(model, [groups[i] for i in batches[index]], pad_id, limit)
            for place, rewards in sorted(dict(gather_object([(index, mine)])).items()):
                done[place] = rewards
                scored += len(rewards)
                if stream:
                    stream.write(json.dumps([place, batches[place], rewards]) + "\n")
                    stream.flush()
            progress(scored, len(groups))
    by_group = {i: reward for index, batch in enumerate(batches) for i, reward in zip(batch, done[index], strict=True)}
    return [by_group[i] for i in range(len(groups))]


class _Limit:
    """Most tokens at once: what was asked for, or what the memory has room for where that is less."""

    def __init__(self, model: RewardModel, asked: int, notify: Callable[[str], None]) -> None:
        self.model, self.notify, self.told = model, notify, False
        # the processes that share sharded weights must run the same passes, whatever is free on each
        room = None if model.sharded else room_of(model)
        self.tokens = asked if room is None else min(asked, room)
        if self.tokens < asked:
            self._tell(f"the free memory has room for about {self.tokens:,} tokens at once, not {asked:,}")

    def lower(self, tokens: int) -> None:
        """Remember that so many did not fit."""
        self.tokens = shrink_room(self.model, tokens)
        self._tell(f"out of memory at {tokens:,} tokens at once: {self.tokens:,} from now on")

    def _tell(self, line: str) -> None:
        if not self.told:
            self.notify(f"{line}; lower evaluation.tokens_per_batch to avoid this")
        self.told = True


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
        if len(groups) == 1:
            tokens = GroupSize.of(groups[0]).distinct_tokens
            raise RunFailedError(
                f"group {groups[0].id} alone ({tokens} tokens) does not fit the device's memory",
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
                f"group {group.id}: a reward is not finite", "check the checkpoint; try model.dtype: float32"
            )
    return rewards


@torch.no_grad()
def _forward(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
    batch: dict[str, Any] = send_to_device(model.batch(groups, pad_id), model.device)
    return model.module(**batch).logits.tolist()  # type: ignore[no-any-return]


def _read_partial(path: Path | None, batches: list[list[int]]) -> dict[int, list[Rewards]]:
    """Finished batches of an interrupted run over the same plan; what follows a torn or foreign line is cut off."""
    done: dict[int, list[Rewards]] = {}
    if path is None or not path.exists():
        return done
    whole = 0
    with open(path, "rb") as stream:
        for line in stream:
            try:
                index, members, rewards = json.loads(line)
                same = line.endswith(b"\n") and batches[index] == members and len(rewards) == len(members)
            except (ValueError, TypeError, IndexError):
                break
            if not same:
                break
            done[index] = [tuple(reward) for reward in rewards]
            whole += len(line)
    os.truncate(path, whole)
    return done
