"""Rules over all entries of a split: duplicates, contradictions, and the number of groups from each entry."""

import random
from collections.abc import Sequence
from itertools import accumulate

from rmtrain.data.curate import NONE_LEFT, Candidate, Curation, content_digest, pair_digests, turned
from rmtrain.data.entries import Entry
from rmtrain.data.pairing import TIED
from rmtrain.data.splits import LIMIT, mark_beyond_limit
from rmtrain.data.types import Preference

DUPLICATE = "duplicate"
DUPLICATE_ELSEWHERE = "duplicate of another entry"
CONTRADICTION = "contradiction"
CONTRADICTION_ELSEWHERE = "contradiction of another entry"
WEIGHT = "beyond the weight"


def drop_duplicates(entries: Sequence[Curation]) -> None:
    """Drop each row with the same prompt and preferences as an earlier row, of its own or an earlier entry."""
    seen: dict[bytes, int] = {}
    for place, curation in enumerate(entries):
        for candidate in curation.kept:
            key = content_digest(candidate.group)
            if key in seen:
                candidate.drop_cause = DUPLICATE if seen[key] == place else DUPLICATE_ELSEWHERE
            else:
                seen[key] = place


def drop_contradictions(entries: Sequence[Curation], first_wins: bool = False) -> None:
    """Drop preferences that are also stated the other way round, and rows that then have none left.

    Args:
        entries: of the split, in their order.
        first_wins: if two entries contradict each other, keep the preferences of the first. Preferences that one entry
            states both ways are dropped anyway, and then do not contradict another entry.
    """
    stated: dict[bytes, int] = {}  # bit mask of the entries that state it
    for place, curation in enumerate(entries):
        for candidate in curation.kept:
            for digest in _stated(candidate):
                if digest is not None:
                    stated[digest] = stated.get(digest, 0) | 1 << place

    def cause_of(digest: bytes, own: int) -> str | None:
        against = stated.get(turned(digest), 0)
        if against & own:
            return CONTRADICTION
        if first_wins:
            against &= ~stated[digest] & (own - 1)  # earlier entries that state only one direction
        return CONTRADICTION_ELSEWHERE if against else None

    for place, curation in enumerate(entries):
        for candidate in curation.kept:
            _lose(candidate, [cause_of(digest, 1 << place) if digest else None for digest in _stated(candidate)])


def _stated(candidate: Candidate) -> list[bytes | None]:
    """The digest of each preference of a row; None for a tie."""
    group = candidate.group
    pairs = zip(group.preferences, pair_digests(group), strict=True)
    return [digest if is_stated(preference) else None for preference, digest in pairs]


def is_stated(preference: Preference) -> bool:
    """Whether a preference names a better completion, so that it can contradict another: a tie can't."""
    return preference.probability != TIED


def _lose(candidate: Candidate, causes: Sequence[str | None]) -> None:
    """Drop the preferences of a row that have a cause, and the row if none is left."""
    if not (lost := tuple(cause for cause in causes if cause is not None)):
        return
    preferences = zip(candidate.group.preferences, causes, strict=True)
    left = tuple(preference for preference, cause in preferences if cause is None)
    candidate.lost_preferences += lost
    candidate.group = candidate.group._replace(preferences=left)
    if not left:
        all_lost = {*candidate.lost_preferences}
        candidate.drop_cause = all_lost.pop() if len(all_lost) == 1 else NONE_LEFT


def limit_entries(
    entries: Sequence[Entry], curations: Sequence[Curation], limit: int | None, repeat: bool, seed: int
) -> list[int | None]:
    """Draw the groups of a split; returns to how many groups each entry is repeated (None: not repeated).

    First every entry is reduced to its own limit. Then a split without weights is reduced to `limit` as a whole. With
    weights, entry i of weight w_i gives the share w_i / sum(w). Without repetition, the total is the largest within
    `limit` for which every entry has enough groups. With repetition, it is `limit`, or else all groups, and an entry
    with fewer than its share is repeated. Each draw depends only on the seed and the entry's name.
    """
    for entry, curation in zip(entries, curations, strict=True):
        if entry.limit is not None:
            _draw(curation, entry.limit, f"{seed}:{entry.name}:limit", LIMIT)
    sizes = [len(curation.kept) for curation in curations]
    if any(entry.weight for entry in entries):
        takes = weighted([entry.weight or 0.0 for entry in entries], sizes, limit, repeat)
        for entry, curation, take in zip(entries, curations, takes, strict=True):
            _draw(curation, take, f"{seed}:{entry.name}:weight", WEIGHT)
        return [take if take > size else None for take, size in zip(takes, sizes, strict=True)]
    if limit is not None:
        marks = mark_beyond_limit(sum(sizes), limit, seed)
        for curation, end, size in zip(curations, accumulate(sizes), sizes, strict=True):
            curation.drop(marks[end - size : end], LIMIT)
    return [None] * len(entries)


def weighted(weights: Sequence[float], sizes: Sequence[int], limit: int | None, repeat: bool) -> list[int]:
    """The number of groups from each entry, at least one; see `limit_entries`."""
    shares = [weight / sum(weights) for weight in weights]
    if repeat:
        total: float = sum(sizes) if limit is None else limit
    else:
        total = min(size / share for size, share in zip(sizes, shares, strict=True))
        total = total if limit is None else min(total, limit)
    wanted = [max(1, round(total * share)) for share in shares]
    return wanted if repeat else [min(pair) for pair in zip(wanted, sizes, strict=True)]


def _draw(curation: Curation, most: int, seed: str, cause: str) -> None:
    count = len(curation.kept)
    if most < count:
        kept = {*random.Random(seed).sample(range(count), most)}
        curation.drop((index not in kept for index in range(count)), cause)


def one_pass(kept: Sequence[int], repeated: Sequence[int | None], seed: int) -> list[int]:
    """The rows of one epoch over a split of several entries, whose rows are numbered consecutively.

    Args:
        kept: rows of each entry.
        repeated: to how many an epoch repeats them, each equally often or once more; None: each is taken once.
        seed: for the draw of rows that are taken once more.
    """
    rows: list[int] = []
    for place, (count, most, end) in enumerate(zip(kept, repeated, accumulate(kept), strict=True)):
        own = range(end - count, end)
        times, more = divmod(max(count, most or 0), max(1, count))
        rows += [*own] * times
        rows += sorted(random.Random(f"{seed}:{place}:repeat").sample(own, more if count else 0))
    return rows
