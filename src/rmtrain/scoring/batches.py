"""Groups → rewards: token-budget batches, distributed over all processes, resumable, in the order of the groups."""

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import RunFailedError
from rmtrain.model.batch import GroupSize, Packing, batch_tokens, plan_batches
from rmtrain.model.devices import gather_values, is_out_of_memory, process_state
from rmtrain.model.positions import require_fixed_rotation
from rmtrain.model.reward_model import RewardModel
from rmtrain.scoring.partial import append_partial, read_partial
from rmtrain.scoring.token_budget import CPU_PASS, TokenLimit

Rewards = tuple[float, ...]  # K float32 values
Progress = Callable[[int, int], None]  # groups done, and all groups


class Piece(NamedTuple):
    """Distinct completions of one group that share a forward pass and its prompt."""

    group_index: int
    completions: tuple[int, ...]  # indices of its suffixes
    group: TokenizedGroup  # the group with only these completions


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

    Batches are planned once, from the lengths alone, and then distributed, so a reward depends neither on the number of
    processes nor on the order of the groups. A group with more tokens than a batch is split between completions. Equal
    completions of a group are scored once and get the same reward, bit for bit.

    Args:
        model: a reward model; its module may be wrapped for data-parallel or sharded execution.
        tokens_per_batch: maximum tokens of a forward pass; on a CPU at most 2,048, not counting a shared prompt. Unless
            weights are sharded, a batch that does not fit into memory runs in halves, and `notify` gets a line.
        partial: file of finished batches, which are not run again. With the same tokens_per_batch, a resumed run gives
            the same rewards as an uninterrupted one, bit for bit.
        progress: called after every round, on every process.
        alone: this process scores all groups without the other processes.

    Raises:
        InputError: a row is so long that its reward would depend on the batch.
        RunFailedError: on all processes: a completion (sharded: a batch) exceeds the memory, or a reward is not finite.
    """
    processes, rank = (1, 0) if alone else (process_state().num_processes, process_state().process_index)
    if groups and not model.sharded:
        require_fixed_rotation(model.module.config, max(max(group.lengths) for group in groups))
    planned = min(tokens_per_batch, CPU_PASS) if model.device.type == "cpu" else tokens_per_batch
    done = read_partial(partial, functools.partial(_parse_line, groups), alone)
    batches = _batches(groups, done.keys(), model.packing, planned, tokens_per_batch)
    waiting = Counter(piece.group_index for batch in batches for piece in batch)
    largest = max([planned, *(_tokens_of(batch, model.packing) for batch in batches)])
    limit, notified = TokenLimit(model, min(tokens_per_batch, largest)), False
    with _evaluating(model.module):
        for start in range(0, len(batches), processes):
            # a process without a batch repeats the last one, because all processes must gather sharded weights together
            number = min(start + rank, len(batches) - 1)
            rewards = _score_or_error(model, [piece.group for piece in batches[number]], pad_id, limit)
            answers = [(number, rewards, limit.note)] if alone else gather_values([(number, rewards, limit.note)])
            if not notified and (notes := [note for *_, note in answers if note]):
                notified = True
                notify(notes[0])
            for number, rewards in sorted({number: rewards for number, rewards, _ in answers}.items()):
                if isinstance(rewards, RunFailedError):
                    raise rewards
                for piece, values in zip(batches[number], rewards, strict=True):
                    done.update(zip([(piece.group_index, k) for k in piece.completions], values, strict=True))
                    waiting[piece.group_index] -= 1
                    if waiting[piece.group_index] == 0:
                        del waiting[piece.group_index]
                places = [[piece.group_index, piece.completions] for piece in batches[number]]
                append_partial(partial, [[places, rewards]], alone)
            progress(len(groups) - len(waiting), len(groups))
    return [group.spread([done[i, k] for k in range(len(group.suffixes))]) for i, group in enumerate(groups)]


def _batches(
    groups: Sequence[TokenizedGroup], done: Container[tuple[int, int]], packing: Packing, planned: int, most: int
) -> list[list[Piece]]:
    """The remaining batches. Unfinished batches of the first plan are kept, so that rewards stay the same bit for
    bit."""
    whole = _plan(cut_pieces(groups, (), packing, planned, most), packing, planned)
    marks = [[(piece.group_index, k) in done for piece in batch for k in piece.completions] for batch in whole]
    if all(len({*of_batch}) == 1 for of_batch in marks):
        return [batch for batch, of_batch in zip(whole, marks, strict=True) if not of_batch[0]]
    return _plan(cut_pieces(groups, done, packing, planned, most), packing, planned)


def _tokens_of(batch: Sequence[Piece], packing: Packing) -> int:
    return batch_tokens([GroupSize.of(piece.group) for piece in batch], packing)


def _plan(pieces: Sequence[Piece], packing: Packing, max_tokens: int) -> list[list[Piece]]:
    planned = plan_batches([GroupSize.of(piece.group) for piece in pieces], packing, max_tokens)
    return [[pieces[index] for index in batch] for batch in planned]


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def cut_pieces(
    groups: Sequence[TokenizedGroup], done: Container[tuple[int, int]], packing: Packing, planned: int, most: int
) -> list[Piece]:
    """Each group's unscored completions, as many in one piece as fit into a forward pass.

    Args:
        done: (group, completion) of scored completions.
        planned: maximum tokens of a pass, not counting the prompt that its completions share: repeating the prompt
            would cost more than a wider pass.
        most: maximum tokens of a pass, its prompt included.
    """
    pieces = []
    for index, group in enumerate(groups):
        max_tokens = min(most, planned + len(group.prefix)) if packing == "shared_prompt" else planned
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
    """A group with only some of its completions, and without preferences."""
    suffixes = tuple(group.suffixes[k] for k in completions)
    starts = tuple(group.starts[k] for k in completions) if group.starts else ()
    return group._replace(suffixes=suffixes, starts=starts, preferences=(), suffix_of=())


def _score_or_error(
    model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int, limit: TokenLimit
) -> list[Rewards] | RunFailedError:
    """Rewards of a planned batch, or the error that ends the command on all processes."""
    try:
        return _score_batch(model, groups, pad_id, limit)
    except RunFailedError as error:
        if model.sharded:  # the other processes wait inside a pass, where no error can reach them
            raise
        return error


def _score_batch(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int, limit: TokenLimit) -> list[Rewards]:
    """Rewards of a batch, which runs in halves if it does not fit into memory."""
    tokens = batch_tokens([GroupSize.of(group) for group in groups], model.packing)
    if model.sharded or tokens <= limit.tokens or (len(groups) == 1 and len(groups[0].suffixes) == 1):
        rewards = _score_part(model, groups, pad_id)
        if rewards is not None:
            return rewards
        torch.cuda.empty_cache()  # outside the handler, so that the failed pass's tensors are freed
        limit.lower(tokens)
    if len(groups) > 1:
        middle = len(groups) // 2
        parts = groups[:middle], groups[middle:]
        return [rewards for part in parts for rewards in _score_batch(model, part, pad_id, limit)]
    completions = range(len(groups[0].suffixes))
    halves = completions[: len(completions) // 2], completions[len(completions) // 2 :]
    return [sum((_score_batch(model, [_only(groups[0], half)], pad_id, limit)[0] for half in halves), ())]


def _score_part(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[Rewards] | None:
    """Rewards of one forward pass; None if it ran out of memory and can be split."""
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
        if model.sharded:  # halves would be passes that only this process runs, and the others would wait forever
            raise RunFailedError(
                f"out of memory in a forward pass over {len(groups)} groups", "lower evaluation.tokens_per_batch"
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
    batch = send_to_device(model.batch(groups, pad_id), model.device)
    return model.module(**batch).logits.tolist()  # type: ignore[no-any-return]


def _parse_line(groups: Sequence[TokenizedGroup], line: Any) -> dict[tuple[int, int], float] | None:
    """Rewards by group and completion from a line of a partial file; None if the line does not fit these groups."""
    places, rewards = line
    scored = {
        (index, k): float(value)
        for (index, completions), values in zip(places, rewards, strict=True)
        for k, value in zip(completions, values, strict=True)
    }
    known = all(0 <= i < len(groups) and 0 <= k < len(groups[i].suffixes) for i, k in scored)
    return scored if known else None
