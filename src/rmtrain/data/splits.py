"""Splits: hold-outs drawn by prompt, prompts that leak from one split into another, and limits."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rmtrain.data.types import Conversation, PreferenceGroup
from rmtrain.errors import DataError

HELD_OUT = "held out"
LEAK = "leak"
LIMIT = "limit"


class Leak(NamedTuple):
    """Prompts that two splits share, but for white space and case."""

    first: str
    second: str
    prompts: int
    rows: int  # groups of the first split that have such a prompt
    dropped: bool  # whether those rows were taken out of the first split


def prompt_key(prompt: Conversation) -> bytes:
    """A digest of a prompt's text and tool calls that does not change with white space, case or a system message."""
    turns = (" ".join(m.content.split()).casefold() + m.calls for m in prompt if m.role != "system")
    return hashlib.blake2b("\n".join(turns).encode(errors="surrogatepass"), digest_size=16).digest()


def hold_out(keys: Sequence[bytes], shares: Mapping[str, int | float], seed: int) -> list[str | None]:
    """Assign rows to held-out splits by their prompt keys; None stays in training.

    Prompts are taken in the order of SHA-256 over seed and key, so the draw depends on the prompts alone and all rows
    of a prompt go to the same side. A split is full once it has its rows (an integer) or its share of all rows (a
    fraction): exactly so many where prompts are unique, else as few more as whole prompts allow.

    Raises:
        DataError: the shares leave nothing to train on.
    """
    rows: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        rows.setdefault(key, []).append(index)
    order = sorted(rows, key=lambda key: hashlib.sha256(b"%d:%b" % (seed, key)).digest())
    sides: list[str | None] = [None] * len(keys)
    remaining = iter(order)
    taken = 0
    for split, share in shares.items():
        target = share if isinstance(share, int) else round(share * len(keys))
        filled = 0
        while filled < target and (mine := rows.get(next(remaining, b""))):
            for index in mine:
                sides[index] = split
            filled += len(mine)
        taken += filled
        if filled < target or taken == len(keys):
            raise DataError(
                f"data.holdout.{split} = {share} leaves no training rows: there are {len(keys)} rows in all",
                "hold out less",
            )
    return sides


def find_leaks(splits: Mapping[str, Sequence[PreferenceGroup]], drop: bool) -> list[Leak]:
    """The prompts that each two of the splits share; `drop` says whether those of `train` will be dropped."""
    keys = {name: [prompt_key(group.prompt) for group in groups] for name, groups in splits.items()}
    names = list(splits)
    leaks = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            shared = set(keys[first]) & set(keys[second])
            if shared:
                rows = sum(key in shared for key in keys[first])
                leaks.append(Leak(first, second, len(shared), rows, drop and first == "train"))
    return leaks


def mark_leaks(groups: Sequence[PreferenceGroup], others: Sequence[Sequence[PreferenceGroup]]) -> list[bool]:
    """For each group, whether its prompt is in any of the other splits."""
    elsewhere = {prompt_key(group.prompt) for other in others for group in other}
    return [prompt_key(group.prompt) in elsewhere for group in groups]


def mark_beyond_limit(count: int, limit: int, seed: int) -> list[bool]:
    """For each of `count` groups, whether a seeded draw of `limit` of them leaves it out."""
    kept = set(random.Random(seed).sample(range(count), min(limit, count)))
    return [index not in kept for index in range(count)]
