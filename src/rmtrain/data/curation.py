"""Curation of the rows of one entry: their groups in a store, facts on them in arrays, and what was dropped and why."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.decontaminate import Check
from rmtrain.data.digests import Digests, digest, digests
from rmtrain.data.group_table import Groups, HeldGroups, PlacedGroup
from rmtrain.data.ledgers import NOTHING_ADDED, Added, Ledger, SplitReport
from rmtrain.data.pairing import TIED
from rmtrain.data.parse import UnusableRow
from rmtrain.data.types import Conversation, Preference, PreferenceGroup

NONE_LEFT = "no preference left"  # a row's preferences were dropped for several causes

Places = NDArray[np.int64]  # of rows, in the order in which they were read
Keep = Callable[[Iterable[PlacedGroup]], Groups]


class Candidate(NamedTuple):
    """The group of a readable row, with its dropped completions and preferences. A cause means that the row is
    dropped."""

    row: int  # index in the source
    group: PreferenceGroup
    lost_completions: tuple[str, ...] = ()  # the cause of each
    lost_preferences: tuple[str, ...] = ()  # the cause of each
    drop_cause: str | None = None


class Change(NamedTuple):
    """How a rule over all rows changes the group of a row."""

    preferences: tuple[Preference, ...]
    answer: Conversation | None = None  # to another prompt, as one more completion

    def of(self, group: PreferenceGroup) -> PreferenceGroup:
        """The changed group."""
        group = group._replace(preferences=self.preferences)
        if self.answer is None:
            return group
        return group._replace(completions=(*group.completions, self.answer), scores=None)


@dataclass(frozen=True)
class Facts:
    """N rows with P preferences, as they were read: their places in the source, and digests of their texts."""

    rows: "array[int]" = field(default_factory=partial(array, "q"))  # [N] index in the source
    _contents: bytearray = field(default_factory=bytearray)  # [N]
    _pairs: bytearray = field(default_factory=bytearray)  # [P] of prompt and both completions, whichever is better
    _directions: "array[int]" = field(default_factory=partial(array, "b"))  # [P] ±1: which is better; 0: a tie
    _ends: "array[int]" = field(default_factory=partial(array, "q"))  # [N] preferences up to the row's last one

    def add(self, group: PreferenceGroup) -> None:
        """Add the digests of the next row."""
        prompt, answers = digest((group.prompt, group.arguments)), [digest(text) for text in group.completions]
        pairs = [(answers[each.better], answers[each.worse]) for each in group.preferences]
        self._contents.extend(digest(sorted({prompt + better + worse for better, worse in pairs})))
        for (better, worse), preference in zip(pairs, group.preferences, strict=True):
            self._pairs.extend(digest((prompt, *sorted((better, worse)))))
            self._directions.append(0 if preference.probability == TIED else 1 if better < worse else -1)
        self._ends.append(len(self._directions))

    @property
    def contents(self) -> Digests:
        """[N] of a row's prompt and preferences, equal for duplicates."""
        return digests(self._contents)

    def statements(self, places: Places) -> "Statements":
        """What the preferences of rows state."""
        ends = np.frombuffer(self._ends, np.int64)
        sizes = np.diff(ends, prepend=0)
        of_rows = np.repeat(np.isin(np.arange(len(ends)), places), sizes)
        directions = np.frombuffer(self._directions, np.int8)
        return Statements(np.repeat(places, sizes[places]), digests(self._pairs)[of_rows], directions[of_rows])


class Statements(NamedTuple):
    """What P preferences of rows state, apart from their texts."""

    rows: Places  # [P] the place of its row
    pairs: Digests  # [P] of prompt and both completions, whichever is better
    directions: NDArray[np.int8]  # [P] 1 or -1: which one is better; 0 for a tie, which states nothing


@dataclass(frozen=True)
class Outcomes:
    """What became of N rows."""

    causes: list[str | None] = field(default_factory=list)  # why a row is dropped
    lost_completions: list[tuple[str, ...]] = field(default_factory=list)  # the cause of each
    lost_preferences: list[tuple[str, ...]] = field(default_factory=list)
    completions: "array[int]" = field(default_factory=partial(array, "i"))  # how many a row has now
    preferences: "array[int]" = field(default_factory=partial(array, "i"))
    _known: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)  # so that equal causes are stored once

    def add(self, each: Candidate) -> None:
        """Add the next row."""
        self.causes.append(each.drop_cause)
        self.lost_completions.append(self._known.setdefault(each.lost_completions, each.lost_completions))
        self.lost_preferences.append(self._known.setdefault(each.lost_preferences, each.lost_preferences))
        self.completions.append(len(each.group.completions))
        self.preferences.append(len(each.group.preferences))

    def causes_of(self, place: int) -> list[str]:
        """The causes for which a row, or any of its completions and preferences, was dropped."""
        dropped = [cause] if (cause := self.causes[place]) is not None else []
        return [*dropped, *self.lost_completions[place], *self.lost_preferences[place]]


@dataclass
class Curation:
    """The rows of one entry of a split. Each rule drops some of the kept rows, for one cause."""

    as_read: Groups  # the groups of every readable row
    facts: Facts
    outcomes: Outcomes
    prompts: Digests  # [N] leak keys
    unusable: Sequence[UnusableRow] = ()
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    changes: dict[int, Change] = field(default_factory=dict)  # by place
    repeats: dict[int, str] = field(default_factory=dict)  # of a near duplicate, the id of the one that comes first
    added: Added = NOTHING_ADDED

    @classmethod
    def of(
        cls, candidates: Iterable[Candidate], prompts: Digests, keep: Keep = HeldGroups.of, compared: bool = True
    ) -> "Curation":
        """Take in rows one by one. `keep` stores their groups; only with `compared` can rules compare the rows."""
        facts, outcomes = Facts(), Outcomes()

        def taken() -> Iterator[PlacedGroup]:
            for each in candidates:
                facts.rows.append(each.row)
                outcomes.add(each)
                if compared:
                    facts.add(each.group)
                yield PlacedGroup(each.row, each.group)

        return cls(keep(taken()), facts, outcomes, prompts)

    @property
    def kept(self) -> Places:
        """The rows not dropped so far."""
        return np.flatnonzero([cause is None for cause in self.outcomes.causes])

    @property
    def kept_prompts(self) -> Digests:
        """Leak keys of the rows not dropped so far."""
        return self.prompts[self.kept]

    @property
    def groups(self) -> Iterator[PreferenceGroup]:
        """The groups of the rows not dropped so far."""
        return self.read(self.kept)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The source rows not dropped so far."""
        return np.frombuffer(self.facts.rows, np.int64)[self.kept]

    @property
    def placed(self) -> Iterator[PlacedGroup]:
        """The groups of the rows not dropped so far, with the numbers of their source rows."""
        return map(PlacedGroup, self.rows.tolist(), self.groups)

    def read(self, places: Places) -> Iterator[PreferenceGroup]:
        """The groups of rows, as they are now."""
        for place, group in zip(places, self.as_read.take(places), strict=True):
            yield self.changes[place].of(group) if place in self.changes else group

    def change(self, place: int, change: Change) -> None:
        """Change the group of a row."""
        self.changes[place] = change
        self.outcomes.preferences[place] = len(change.preferences)
        self.outcomes.completions[place] += change.answer is not None

    def drop(self, mask: Iterable[bool], cause: str) -> None:
        """Drop the kept rows that the mask marks."""
        for place, marked in zip(self.kept, mask, strict=True):
            if marked:
                self.outcomes.causes[place] = cause

    def report(self, split: str, schema: str, total_rows: int, place: Callable[[int], str]) -> SplitReport:
        """Count what was kept and dropped of the source's rows.

        Raises:
            AssertionError: a row, completion or preference is unaccounted for, which is a bug.
        """
        outcomes = self.outcomes
        lost_completions = Counter(chain.from_iterable(outcomes.lost_completions))
        lost_preferences = Counter(chain.from_iterable(outcomes.lost_preferences))
        completions_total = sum(outcomes.completions) + lost_completions.total()
        preferences_total = sum(outcomes.preferences) + lost_preferences.total()
        rows = Counter(row.cause for row in self.unusable)
        examples: dict[str, str] = {}
        for row in self.unusable:
            more = f": {row.detail.removeprefix(f'{row.cause}: ')}" if row.detail not in ("", row.cause) else ""
            if row.cause not in examples:
                examples[row.cause] = f"{place(row.row)}{more}"
        sizes = zip(self.facts.rows, outcomes.causes, outcomes.completions, outcomes.preferences, strict=True)
        for index, cause, completions, preferences in sizes:
            if cause is not None:
                rows[cause] += 1
                lost_completions[cause] += completions
                if preferences:
                    lost_preferences[cause] += preferences
                if cause not in examples:
                    examples[cause] = place(index)
        completions_left, preferences_left = (
            int(np.array(now, np.int64)[self.kept].sum()) for now in (outcomes.completions, outcomes.preferences)
        )
        return SplitReport(
            split=split,
            schema=schema,
            rows=Ledger(total_rows, len(self.kept), dict(rows)),
            completions=Ledger(completions_total, completions_left, dict(lost_completions)),
            preferences=Ledger(preferences_total, preferences_left, dict(lost_preferences)),
            examples=examples,
            notes=tuple(self.notes),
            checks=tuple(self.checks),
            added=self.added,
        )
