"""Curation of a source's rows: kept groups, dropped rows with their cause, and the counts of both."""

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
NO_PREFERENCE = "no preference"  # the row states no preference, and its scores imply none
NONE_LEFT = "no preference left"  # its preferences were dropped for several causes

SIDE = 16  # bytes of a digest of a prompt or a completion

Purpose = Literal["train", "evaluation", "scoring"]


@dataclass(slots=True)
class Candidate:
    """The group of a readable row, with its dropped completions and preferences. A cause means that the row is
    dropped."""

    row: int  # index in the source
    group: PreferenceGroup
    lost_completions: tuple[str, ...] = ()  # the cause of each
    lost_preferences: tuple[str, ...] = ()  # the cause of each
    drop_cause: str | None = None
    repeats: str = ""  # of a near duplicate, the id of the group that it nearly repeats


@dataclass
class Curation:
    """The rows of one split. Each rule drops some of the kept rows, for one cause."""

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
        """Drop the kept rows that the mask marks."""
        for candidate, marked in zip(self.kept, mask, strict=True):
            if marked:
                candidate.drop_cause = cause

    def report(self, split: str, schema: str, total_rows: int, place: Callable[[int], str]) -> SplitReport:
        """Count what was kept and dropped.

        Args:
            split: its name.
            schema: of its rows.
            total_rows: before curation.
            place: the place of a source row, for messages.

        Raises:
            AssertionError: a row, completion or preference is unaccounted for, which is a bug.
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
    """The rows of an entry, and the result of their curation."""

    split: str
    parsed: ParsedRows
    curation: Curation


def curate(entry: Entry, parsed: ParsedRows, purpose: Purpose) -> Curation:
    """Make groups from an entry's rows, and drop rows that the split's purpose can't use."""
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
        curation.notes.append(f"completions with an {RECORDING_FAULT}, a known error of the source: {suspect}, {what}")
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
    """Make a row's group without unusable completions; its cause, if any, says why the group can't be used.

    For scoring, the group has every completion, usable or not, and every possible preference.
    """
    parsed = parsed if purpose == "train" else parsed.unweighted()
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
    """A row without its empty and unrankable completions, and the cause of each dropped completion."""
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
    """Why a row can't become a group with preferences; None if it can."""
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
    """A digest of the text of a group's prompt and preferences, equal for duplicates."""
    return _digest(sorted({*pair_digests(group)}))


def pair_digests(group: PreferenceGroup) -> list[bytes]:
    """A digest of each preference: `SIDE` bytes each for its prompt, its better and its worse completion.

    Digests let rows be compared without all texts in memory.
    """
    prompt, texts = _digest((group.prompt, group.arguments)), [_digest(text) for text in group.completions]
    return [prompt + texts[each.better] + texts[each.worse] for each in group.preferences]


def turned(digest: bytes) -> bytes:
    """The digest of the reversed preference."""
    return digest[:SIDE] + digest[2 * SIDE :] + digest[SIDE : 2 * SIDE]


def _digest(texts: object) -> bytes:
    return hashlib.blake2b(repr(texts).encode("utf-8", "surrogatepass"), digest_size=SIDE).digest()
