"""Curation of a source's rows: groups that are kept, rows that are dropped and why, and the count of both."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

from rmtrain.data.decontaminate import Check
from rmtrain.data.entries import Entry
from rmtrain.data.ledgers import NOTHING_ADDED, Added, Ledger, SplitReport
from rmtrain.data.pairing import Mode, Pairing, make_preferences, with_gap_probability
from rmtrain.data.parse import ParsedRows, UnusableRow
from rmtrain.data.schemas.readers import RECORDING_FAULT
from rmtrain.data.schemas.rows import EMPTY_COMPLETION, ParsedRow, empty_cause, is_empty
from rmtrain.data.types import PreferenceGroup

TOO_FEW = "fewer than two usable completions"
NO_PREFERENCE = "no preference"  # the row neither states one nor has scores that imply one
NONE_LEFT = "no preference left"  # the preferences that it had were dropped for several causes

SIDE = 16  # bytes of a digest of a prompt or a completion

Purpose = Literal["train", "evaluation", "scoring"]


@dataclass(slots=True)
class Candidate:
    """The group of a readable row, with what it lost on the way; it is dropped once it has a cause."""

    row: int  # index in the source
    group: PreferenceGroup
    lost_completions: tuple[str, ...] = ()  # the cause of each
    lost_preferences: tuple[str, ...] = ()  # the cause of each
    drop_cause: str | None = None
    repeats: str = ""  # of a near duplicate, the id of the group that it nearly repeats


@dataclass
class Curation:
    """The rows of one split: each rule drops some of those still kept, for one cause."""

    candidates: list[Candidate]
    unusable: Sequence[UnusableRow] = ()
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    added: Added = NOTHING_ADDED

    @property
    def kept(self) -> list[Candidate]:
        """The rows not dropped so far."""
        return [candidate for candidate in self.candidates if candidate.drop_cause is None]

    @property
    def groups(self) -> list[PreferenceGroup]:
        """The groups of the rows not dropped so far."""
        return [candidate.group for candidate in self.kept]

    def drop(self, mask: Iterable[bool], cause: str) -> None:
        """Drop those of the kept rows that the mask marks."""
        for candidate, marked in zip(self.kept, mask, strict=True):
            if marked:
                candidate.drop_cause = cause

    def report(self, split: str, schema: str, total_rows: int, place: Callable[[int], str]) -> SplitReport:
        """Count what was kept and dropped.

        Args:
            split: its name.
            schema: of its rows.
            total_rows: that the split came with.
            place: the place of a row of the source, for messages.

        Raises:
            AssertionError: a row, completion or preference is unaccounted for: a fault of this program.
        """
        completions = Counter(chain.from_iterable(each.lost_completions for each in self.candidates))
        preferences = Counter(chain.from_iterable(each.lost_preferences for each in self.candidates))
        rows = Counter(row.cause for row in self.unusable)
        examples: dict[str, str] = {}
        for row in self.unusable:
            more = f": {row.detail.removeprefix(f'{row.cause}: ')}" if row.detail not in ("", row.cause) else ""
            if row.cause not in examples:
                examples[row.cause] = f"{place(row.row)}{more}"
        for each in self.candidates:
            if (cause := each.drop_cause) is not None:
                rows[cause] += 1
                completions[cause] += len(each.group.completions)
                if each.group.preferences:
                    preferences[cause] += len(each.group.preferences)
                if cause not in examples:
                    examples[cause] = place(each.row)
        groups = [(each.group, each) for each in self.candidates]
        return SplitReport(
            split=split,
            schema=schema,
            rows=Ledger(total_rows, len(self.kept), dict(rows)),
            completions=Ledger(
                sum(len(group.completions) + len(each.lost_completions) for group, each in groups),
                sum(len(group.completions) for group in self.groups),
                dict(completions),
            ),
            preferences=Ledger(
                sum(len(group.preferences) + len(each.lost_preferences) for group, each in groups),
                sum(len(group.preferences) for group in self.groups),
                dict(preferences),
            ),
            examples=examples,
            notes=tuple(self.notes),
            checks=tuple(self.checks),
            added=self.added,
        )


class CuratedRows(NamedTuple):
    """The rows of an entry, and what curation made of them."""

    split: str
    parsed: ParsedRows
    curation: Curation


def curate(entry: Entry, parsed: ParsedRows, purpose: Purpose) -> Curation:
    """Make the groups of an entry's rows, and drop what its purpose has no use for, row by row."""
    data = entry.section
    trains = purpose == "train"
    rules = data.preferences, data.min_gap if trains else 0.0, trains and data.tied == "half"
    curation = Curation(
        [
            make_candidate(index, row, entry.group_id(group_id), purpose, *rules)
            for (index, row), group_id in zip(parsed.rows, parsed.ids, strict=True)
        ],
        parsed.unusable,
    )
    if entry.name:
        for each in curation.candidates:
            each.group = each.group._replace(source=entry.group_source(each.group.source))
    if trains and data.gap_scale is not None:
        for each in curation.candidates:
            soft = tuple(with_gap_probability(p, data.gap_scale) for p in each.group.preferences)
            each.group = each.group._replace(preferences=soft)
    if suspect := sum(row.suspect for _, row in parsed.rows):
        what = "left out" if data.score == "overall" and purpose != "scoring" else "kept"
        curation.notes.append(
            f"completions with an {RECORDING_FAULT}, a recording fault of the source: {suspect}, {what}"
        )
    if purpose == "evaluation" and (duplicates := sum(mark_duplicates(curation.groups))):
        curation.notes.append(f"duplicates, which evaluation splits keep: {duplicates}")
    curation.notes += parsed.notes
    return curation


def make_candidate(
    row: int,
    parsed: ParsedRow,
    group_id: str,
    purpose: Purpose,
    mode: Mode = "all",
    min_gap: float = 0.0,
    keep_ties: bool = False,
) -> Candidate:
    """Make a row's group, without its unusable completions; its cause says why it can't be used, if it can't.

    For scoring, the group has every completion, usable or not, and every preference that can be made.
    """
    usable, lost = (parsed, ()) if purpose == "scoring" else drop_completions(parsed)
    pairing = make_preferences(usable, mode, min_gap, keep_ties)
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
    cause = None if purpose == "scoring" else _drop_cause(parsed, usable, lost, pairing)
    return Candidate(row, group, lost, tuple(pairing.dropped.elements()), cause)


def drop_completions(parsed: ParsedRow) -> tuple[ParsedRow, tuple[str, ...]]:
    """A row without its empty and its unrankable completions, and the cause of each that was dropped."""
    faults = parsed.faults or (None,) * len(parsed.completions)
    causes = [
        EMPTY_COMPLETION if is_empty(completion) else fault
        for completion, fault in zip(parsed.completions, faults, strict=True)
    ]
    lost = tuple(cause for cause in causes if cause is not None)
    if not lost:
        return parsed, lost
    keep = [k for k, cause in enumerate(causes) if cause is None]
    place = {old: new for new, old in enumerate(keep)}
    stated, scores = parsed.stated, parsed.scores
    if stated is not None:
        stated = tuple(
            p._replace(better=place[p.better], worse=place[p.worse])
            for p in stated
            if p.better in place and p.worse in place
        )
    usable = parsed._replace(
        completions=tuple(parsed.completions[k] for k in keep),
        stated=stated,
        scores=None if scores is None else tuple(scores[k] for k in keep),
        faults=None,
    )
    return usable, lost


def _drop_cause(row: ParsedRow, usable: ParsedRow, lost: tuple[str, ...], pairing: Pairing) -> str | None:
    """Why a row can't be a group with preferences; None if it can."""
    if empty := empty_cause(row):
        return empty
    if pairing.kept:
        return None
    if len(usable.completions) < 2:
        return lost[0] if len(set(lost)) == 1 else TOO_FEW
    causes = set(pairing.dropped or lost)
    return causes.pop() if len(causes) == 1 else NONE_LEFT if causes else NO_PREFERENCE


def mark_duplicates(groups: Iterable[PreferenceGroup]) -> list[bool]:
    """For each group, whether an earlier one has the same prompt and the same preferences, by their text."""
    seen: set[bytes] = set()
    marks = []
    for group in groups:
        digest = content_digest(group)
        marks.append(digest in seen)
        seen.add(digest)
    return marks


def content_digest(group: PreferenceGroup) -> bytes:
    """A digest of a group by the text of its prompt and its preferences: duplicates have the same."""
    return _digest(sorted({*pair_digests(group)}))


def pair_digests(group: PreferenceGroup) -> list[bytes]:
    """A digest of each preference: `SIDE` bytes of its prompt, of its better and of its worse completion.

    So that rows are compared without the texts of all of them in memory.
    """
    prompt, texts = _digest((group.prompt, group.arguments)), [_digest(text) for text in group.completions]
    return [prompt + texts[each.better] + texts[each.worse] for each in group.preferences]


def turned(digest: bytes) -> bytes:
    """The digest of a preference stated the other way round."""
    return digest[:SIDE] + digest[2 * SIDE :] + digest[SIDE : 2 * SIDE]


def _digest(texts: object) -> bytes:
    return hashlib.blake2b(repr(texts).encode("utf-8", "surrogatepass"), digest_size=SIDE).digest()
