"""Curation of a split, with every row, completion and preference that is dropped booked by its cause."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rmtrain.data.pairing import Mode, Pairing, make_preferences
from rmtrain.data.rows import EMPTY_COMPLETION, ParsedRow, empty_cause, is_empty
from rmtrain.data.types import Conversation, Preference, PreferenceGroup

TOO_FEW = "fewer than two usable completions"
NO_PREFERENCE = "no preference"  # the row neither states one nor has scores that imply one
NONE_LEFT = "no preference left"  # those it had were lost to several causes
DUPLICATE = "duplicate"
CONTRADICTION = "contradiction"

Purpose = Literal["train", "evaluation", "scoring"]
_PairKey = tuple[tuple[Conversation, str], Conversation, Conversation]  # prompt with its arguments, better, worse


@dataclass(frozen=True)
class Ledger:
    """What came in, what stayed, and what went by which cause: total = kept + sum of dropped."""

    total: int
    kept: int
    dropped: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.kept + sum(self.dropped.values()) != self.total:
            raise AssertionError(f"ledger does not balance: {self}")


@dataclass(frozen=True)
class SplitReport:
    """The books of one split.

    Completions and preferences are counted over the rows that could be read; a row that is dropped takes its
    completions and preferences with it, under the same cause.
    """

    split: str
    schema: str
    rows: Ledger
    completions: Ledger
    preferences: Ledger  # total: those possible among the usable completions, under the recipe's choice
    examples: Mapping[str, str]  # cause: the place of the first row lost to it
    notes: tuple[str, ...]


@dataclass
class _Entry:
    group: PreferenceGroup
    row: int  # index in the source
    lost: Counter[str]  # preferences dropped so far, by cause


@dataclass
class Draft:
    """A split under curation."""

    split: str
    schema: str
    where: Callable[[int], str]  # the place of a row of the source
    entries: list[_Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _rows: Counter[str] = field(default_factory=Counter)
    _completions: Counter[str] = field(default_factory=Counter)
    _preferences: Counter[str] = field(default_factory=Counter)
    _all_completions: int = 0
    _all_preferences: int = 0
    _examples: dict[str, str] = field(default_factory=dict)

    def lose_row(self, row: int, cause: str, detail: str = "") -> None:
        """Book a row that never became a group; `detail` says more of it than the cause."""
        self._rows[cause] += 1
        more = f": {detail.removeprefix(f'{cause}: ')}" if detail not in ("", cause) else ""
        self._examples.setdefault(cause, f"{self.where(row)}{more}")

    def add(self, row: int, parsed: ParsedRow, group_id: str, purpose: Purpose, mode: Mode, min_gap: float) -> None:
        """Make a row's group, without its unusable completions; book it where none can be made.

        For scoring, the group has every completion, usable or not, and every preference that can be made.
        """
        self._all_completions += len(parsed.completions)
        usable, lost = (parsed, Counter[str]()) if purpose == "scoring" else drop_completions(parsed)
        self._completions += lost
        pairing = make_preferences(usable, mode, min_gap)
        self._all_preferences += len(pairing.kept) + pairing.dropped.total()
        self._preferences += pairing.dropped
        cause = None if purpose == "scoring" else _fate(parsed, usable, lost, pairing)
        scores = tuple(score for score in usable.scores or () if score is not None)
        group = PreferenceGroup(
            id=group_id,
            prompt=usable.prompt,
            completions=usable.completions,
            preferences=pairing.kept,
            source=usable.source,
            scores=scores if len(scores) == len(usable.completions) else None,
            arguments=usable.arguments,
        )
        entry = _Entry(group, row, pairing.dropped)
        if cause is None:
            self.entries.append(entry)
        else:
            self._lose(entry, cause)

    def drop(self, doomed: Iterable[bool], cause: str) -> None:
        """Drop the groups that are marked, in their order, all for one cause."""
        kept = []
        for entry, lost in zip(self.entries, doomed, strict=True):
            if lost:
                self._lose(entry, cause)
            else:
                kept.append(entry)
        self.entries = kept

    def drop_contradictions(self) -> None:
        """Drop the preferences also stated the other way round anywhere in the split, and groups that have no other."""
        stated = {pair_key(entry.group, p) for entry in self.entries for p in entry.group.preferences}
        kept = []
        for entry in self.entries:
            group, left = entry.group, []
            for preference in group.preferences:
                prompt, better, worse = pair_key(group, preference)
                if (prompt, worse, better) not in stated:
                    left.append(preference)
            if gone := len(group.preferences) - len(left):
                self._preferences[CONTRADICTION] += gone
                entry.lost[CONTRADICTION] += gone
                entry.group = group._replace(preferences=tuple(left))
            if left or not gone:
                kept.append(entry)
            else:
                self._lose(entry, CONTRADICTION if len(entry.lost) == 1 else NONE_LEFT)
        self.entries = kept

    def report(self, total_rows: int) -> SplitReport:
        """Close the books.

        Raises:
            AssertionError: a row, completion or preference is unaccounted for: a fault of this program.
        """
        groups = [entry.group for entry in self.entries]
        return SplitReport(
            split=self.split,
            schema=self.schema,
            rows=Ledger(total_rows, len(groups), dict(self._rows)),
            completions=Ledger(self._all_completions, sum(len(g.completions) for g in groups), dict(self._completions)),
            preferences=Ledger(self._all_preferences, sum(len(g.preferences) for g in groups), dict(self._preferences)),
            examples=dict(self._examples),
            notes=tuple(self.notes),
        )

    def _lose(self, entry: _Entry, cause: str) -> None:
        self.lose_row(entry.row, cause)
        self._completions[cause] += len(entry.group.completions)
        if entry.group.preferences:
            self._preferences[cause] += len(entry.group.preferences)


def drop_completions(parsed: ParsedRow) -> tuple[ParsedRow, Counter[str]]:
    """A row without its empty and its unrankable completions, and how many went by which cause."""
    faults = parsed.faults or (None,) * len(parsed.completions)
    causes = [
        EMPTY_COMPLETION if is_empty(completion) else fault
        for completion, fault in zip(parsed.completions, faults, strict=True)
    ]
    lost = Counter(cause for cause in causes if cause is not None)
    if not lost:
        return parsed, lost
    keep = [k for k, cause in enumerate(causes) if cause is None]
    place = {old: new for new, old in enumerate(keep)}
    stated, scores = parsed.stated, parsed.scores
    if stated is not None:
        stated = tuple(
            Preference(place[p.better], place[p.worse], p.gap) for p in stated if p.better in place and p.worse in place
        )
    usable = parsed._replace(
        completions=tuple(parsed.completions[k] for k in keep),
        stated=stated,
        scores=None if scores is None else tuple(scores[k] for k in keep),
        faults=None,
    )
    return usable, lost


def mark_duplicates(draft: Draft) -> list[bool]:
    """For each group, whether an earlier one has the same prompt and the same preferences, by their text."""
    seen: set[frozenset[_PairKey]] = set()
    marks = []
    for entry in draft.entries:
        key = frozenset(pair_key(entry.group, preference) for preference in entry.group.preferences)
        marks.append(key in seen)
        seen.add(key)
    return marks


def pair_key(group: PreferenceGroup, preference: Preference) -> _PairKey:
    """A preference by its text: prompt, better and worse completion."""
    asked = group.prompt, group.arguments
    return asked, group.completions[preference.better], group.completions[preference.worse]


def unique_ids(wanted: Sequence[str]) -> list[str]:
    """The ids as wanted, but for those that were there before: these get `#2`, `#3` and so on behind them."""
    taken, given = set(wanted), set[str]()
    last: Counter[str] = Counter()  # by id: the number given last
    result = []
    for name in wanted:
        unique = name
        while unique in given or (unique != name and unique in taken):
            last[name] += 1
            unique = f"{name}#{last[name] + 1}"
        given.add(unique)
        result.append(unique)
    return result


def _fate(row: ParsedRow, usable: ParsedRow, lost: Counter[str], pairing: Pairing) -> str | None:
    """Why a row can't be a group with preferences; None: it can."""
    empty = empty_cause(row)
    if empty:
        return empty
    if pairing.kept:
        return None
    if len(usable.completions) < 2:
        return next(iter(lost)) if len(lost) == 1 else TOO_FEW
    causes = pairing.dropped or lost
    return next(iter(causes)) if len(causes) == 1 else NONE_LEFT if causes else NO_PREFERENCE
