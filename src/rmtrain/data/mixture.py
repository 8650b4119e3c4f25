"""Rules over all entries of a split: duplicates, contradictions, and the number of groups from each entry."""

import random
from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np

from rmtrain.data.curation import NONE_LEFT, Change, Curation, Statements
from rmtrain.data.digests import first_places
from rmtrain.data.entries import Entry
from rmtrain.data.splits import LIMIT, mark_beyond_limit
from rmtrain.data.types import PreferenceGroup

DUPLICATE = "duplicate"
DUPLICATE_ELSEWHERE = "duplicate of another entry"
CONTRADICTION = "contradiction"
CONTRADICTION_ELSEWHERE = "contradiction of another entry"
WEIGHT = "beyond the weight"


def drop_duplicates(entries: Sequence[Curation]) -> None:
    """Drop each row with the same prompt and preferences as an earlier row, of its own or an earlier entry."""
    kept = [curation.kept for curation in entries]
    places, entry_of = np.concatenate(kept), np.repeat(np.arange(len(entries)), list(map(len, kept)))
    contents = [curation.facts.contents[of_entry] for curation, of_entry in zip(entries, kept, strict=True)]
    first = first_places(np.concatenate(contents))
    for row in np.flatnonzero(first != np.arange(len(first))):
        same_entry = entry_of[row] == entry_of[first[row]]
        entries[entry_of[row]].outcomes.causes[places[row]] = DUPLICATE if same_entry else DUPLICATE_ELSEWHERE


def drop_contradictions(entries: Sequence[Curation], first_wins: bool = False) -> None:
    """Drop preferences that are also stated the other way round, and rows that then have none left.

    If `first_wins` and two entries contradict each other, the preferences of the first are kept. Preferences that one
    entry states both ways are dropped anyway, and then do not contradict another entry.
    """
    contested = _contested([curation.facts.statements(curation.kept) for curation in entries])
    stated: dict[tuple[bytes, int], int] = {}  # bit mask of the entries that state it
    for number, of_rows in enumerate(contested):
        for pair in chain.from_iterable(of_rows.values()):
            stated[pair] = stated.get(pair, 0) | 1 << number

    def cause_of(pair: bytes, direction: int, entry: int) -> str | None:
        against = stated.get((pair, -direction), 0) if direction else 0
        if against & entry:
            return CONTRADICTION
        if first_wins and against:
            against &= ~stated[pair, direction] & (entry - 1)  # earlier entries that state only one direction
        return CONTRADICTION_ELSEWHERE if against else None

    for number, (curation, of_rows) in enumerate(zip(entries, contested, strict=True)):
        for (place, pairs), group in zip(of_rows.items(), curation.read(np.array([*of_rows], np.int64)), strict=True):
            _lose(curation, place, group, [cause_of(*pair, 1 << number) for pair in pairs])


def _contested(entries: Sequence[Statements]) -> list[dict[int, list[tuple[bytes, int]]]]:
    """For each entry, the rows with a preference that some row states the other way round; and what these rows state of
    each of their preferences: the digest of the pair, and the direction."""
    directions = np.concatenate([each.directions for each in entries])
    _, number = np.unique(np.concatenate([each.pairs for each in entries]), return_inverse=True)
    both = np.bincount(number, directions > 0).astype(bool) & np.bincount(number, directions < 0).astype(bool)
    ends, contested = np.cumsum([len(each.rows) for each in entries]), []
    for each, end in zip(entries, ends, strict=True):
        mask = np.isin(each.rows, each.rows[both[number[end - len(each.rows) : end]]])
        of_rows: dict[int, list[tuple[bytes, int]]] = {}
        for place, pair, direction in zip(*(values[mask].tolist() for values in each), strict=True):
            of_rows.setdefault(place, []).append((pair, direction))
        contested.append(of_rows)
    return contested


def _lose(curation: Curation, place: int, group: PreferenceGroup, causes: Sequence[str | None]) -> None:
    """Drop the preferences of a row that have a cause, and the row if none is left."""
    if not (lost := tuple(cause for cause in causes if cause is not None)):
        return
    left = tuple(pair for pair, cause in zip(group.preferences, causes, strict=True) if cause is None)
    curation.change(place, Change(left))
    outcomes = curation.outcomes
    outcomes.lost_preferences[place] += lost
    if not left:
        all_lost = {*outcomes.lost_preferences[place]}
        outcomes.causes[place] = all_lost.pop() if len(all_lost) == 1 else NONE_LEFT


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
            curation.drop(mark_beyond_limit(len(curation.kept), entry.limit, f"{seed}:{entry.name}:limit"), LIMIT)
    sizes = [len(curation.kept) for curation in curations]
    if any(entry.weight for entry in entries):
        takes = weighted([entry.weight or 0.0 for entry in entries], sizes, limit, repeat)
        for entry, curation, size, take in zip(entries, curations, sizes, takes, strict=True):
            curation.drop(mark_beyond_limit(size, take, f"{seed}:{entry.name}:weight"), WEIGHT)
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


def one_pass(kept: Sequence[int], repeated: Sequence[int | None], seed: int) -> list[int]:
    """The rows of one epoch over a split of several entries, whose rows are numbered consecutively.

    Args:
        kept: rows of each entry.
        repeated: to how many an epoch repeats them, each equally often or once more; None: each is taken once.
    """
    rows: list[int] = []
    for place, (count, most, end) in enumerate(zip(kept, repeated, accumulate(kept), strict=True)):
        of_entry = range(end - count, end)
        times, more = divmod(max(count, most or 0), max(1, count))
        rows += [*of_entry] * times
        rows += sorted(random.Random(f"{seed}:{place}:repeat").sample(of_entry, more if count else 0))
    return rows
