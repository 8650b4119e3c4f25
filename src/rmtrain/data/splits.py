"""Splits: hold-outs drawn by prompt, prompts that occur in several splits (leaks), and limits."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.digests import SIZE, Digests
from rmtrain.data.types import Conversation
from rmtrain.errors import DataError

HELD_OUT = "held out"
LEAK = "leak"
LIMIT = "limit"


class Leak(NamedTuple):
    """Prompts that two splits share, apart from white space and case."""

    first: str
    second: str
    prompts: int
    rows: int  # groups of the first split that have such a prompt
    dropped: bool  # whether those rows were dropped from the first split


def leak_key(prompt: Conversation) -> bytes:
    """A digest of a prompt's text and tool calls that ignores white space, case and system messages."""
    turns = (" ".join(m.content.split()).casefold() + m.calls for m in prompt if m.role != "system")
    return hashlib.blake2b("\n".join(turns).encode(errors="surrogatepass"), digest_size=SIZE).digest()


def hold_out(keys: Digests, shares: Mapping[str, int | float], seed: int) -> list[str | None]:
    """Assign rows to held-out splits by the keys of their prompts; None stays in training.

    Prompts are taken in the order of SHA-256 over seed and key, so the draw depends on the prompts alone and all rows
    of a prompt get the same assignment. A split is full once it has its rows (an integer) or its share of all rows (a
    fraction): exactly that many if prompts are unique, otherwise as few more as whole prompts allow.

    Raises:
        DataError: a share leaves no training rows, or holds out none.
    """
    prompts, number, rows = np.unique(keys, return_inverse=True, return_counts=True)
    ranks = bytearray()
    for key in prompts:
        ranks += hashlib.sha256(b"%d:%b" % (seed, key.tobytes())).digest()
    remaining = map(int, np.argsort(np.frombuffer(ranks, "V32")))
    of_prompt: list[str | None] = [None] * len(prompts)
    taken = 0
    for split, share in shares.items():
        target = share if isinstance(share, int) else round(share * len(keys))
        if isinstance(share, float) and not target:
            raise DataError(
                f"data.holdout.{split} = {share} holds out no row: the source has {len(keys)} rows in all",
                "hold out more",
            )
        filled = 0
        while filled < target and (prompt := next(remaining, None)) is not None:
            of_prompt[prompt] = split
            filled += int(rows[prompt])
        taken += filled
        if filled < target or taken == len(keys):
            raise DataError(
                f"data.holdout.{split} = {share} leaves no training rows: the source has {len(keys)} rows in all",
                "hold out fewer",
            )
    return [of_prompt[prompt] for prompt in number]


def find_leaks(keys: Mapping[str, Digests], drop: bool) -> list[Leak]:
    """The prompts that each two splits share, by leak keys; `drop`: `train` loses the rows that have one."""
    leaks = []
    for first, second in combinations(keys, 2):
        shared = np.isin(keys[first], keys[second])
        if shared.any():
            prompts = len(np.unique(keys[first][shared]))
            leaks.append(Leak(first, second, prompts, int(shared.sum()), drop and first == "train"))
    return leaks


def mark_leaks(keys: Digests, others: Sequence[Digests]) -> NDArray[np.bool_]:
    """For each leak key, whether any of the other splits has it too."""
    return np.isin(keys, np.concatenate([keys[:0], *others]))


def mark_beyond_limit(count: int, limit: int, seed: int | str) -> list[bool]:
    """For each of `count` groups, whether a seeded draw of `limit` groups leaves it out."""
    kept = set(random.Random(seed).sample(range(count), min(limit, count)))
    return [index not in kept for index in range(count)]
