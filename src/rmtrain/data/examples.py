"""Examples of dropped rows for any cause, each beside the row that it repeats, contradicts or overlaps with."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from rmtrain.data.curate import CuratedRows
from rmtrain.data.curation import Places
from rmtrain.data.decontaminate import Check, Overlap, passages_of
from rmtrain.data.mixture import CONTRADICTION, CONTRADICTION_ELSEWHERE, DUPLICATE, DUPLICATE_ELSEWHERE
from rmtrain.data.near_duplicates import similarities
from rmtrain.data.ngrams import words_of
from rmtrain.data.prepare import ReadyData
from rmtrain.data.splits import LEAK
from rmtrain.data.types import Conversation, PreferenceGroup
from rmtrain.errors import InputError
from rmtrain.json_values import JsonObject

_REPEATS = (DUPLICATE, DUPLICATE_ELSEWHERE)
_CONTRADICTIONS = (CONTRADICTION, CONTRADICTION_ELSEWHERE)


class Side(NamedTuple):
    """A row, or a benchmark's text, to be shown."""

    place: str
    text: str


class Example(NamedTuple):
    """Something that was dropped."""

    split: str
    cause: str
    row: Side
    why: str = ""  # details; empty if the cause suffices
    other: Side | None = None  # what it repeats, contradicts or overlaps with

    def as_json(self) -> JsonObject:
        """What `rmtrain data --show --json` prints of it."""
        return {**self._asdict(), "row": self.row._asdict(), "other": self.other and self.other._asdict()}


def causes_of(rows: Iterable[CuratedRows]) -> list[str]:
    """Every cause for which rows, completions or preferences were dropped."""
    causes: dict[str, None] = {}
    for _, _, curation in rows:
        causes |= dict.fromkeys(row.cause for row in curation.unusable)
        causes |= dict.fromkeys(chain.from_iterable(map(curation.outcomes.causes_of, range(len(curation.prompts)))))
    return list(causes)


def matching(asked: str, causes: Iterable[str]) -> list[str]:
    """The requested causes: the cause of exactly this name, otherwise all whose names contain it.

    Raises:
        InputError: there is no such cause.
    """
    known, part = dict.fromkeys(causes), asked.replace("_", " ").casefold()
    matches = [cause for cause in known if cause.casefold() == part] or [c for c in known if part in c.casefold()]
    if not matches:
        hint = f"the causes are: {', '.join(known)}" if known else "nothing was dropped"
        raise InputError(f"--show {asked}: nothing was dropped for such a cause", hint)
    return matches


def examples_of(rows: Sequence[CuratedRows], cause: str, most: int) -> list[Example]:
    """The first examples of a cause, at most `most` per source."""
    return [example for entry in rows for example in islice(_examples(entry, cause, rows), most)]


def token_examples(ready: ReadyData, cause: str) -> list[Example]:
    """The first row of each split that tokenisation dropped for a cause."""
    examples = []
    for name, split in ready.splits.items():
        if (lost := split.tokens.report.dropped.get(cause)) is not None:
            group = next(group for group in split.data.groups if group.id == lost.first)
            examples.append(Example(name, cause, Side(split.data.place(group.id), _text(group)), lost.why))
    return examples


def _examples(entry: CuratedRows, cause: str, rows: Sequence[CuratedRows]) -> Iterator[Example]:
    split, parsed, curation = entry
    where = parsed.source.where
    for fault in curation.unusable:
        if fault.cause == cause:
            text = "\n".join(f"{name}: {value}" for name, value in parsed.source.rows[fault.row].items())
            yield Example(split, cause, Side(where(fault.row), text), "" if fault.detail == cause else fault.detail)
    outcomes, indices = curation.outcomes, curation.facts.rows
    dropped = np.array([place for place in range(len(indices)) if cause in outcomes.causes_of(place)], np.int64)
    as_read = parsed.read(np.frombuffer(indices, np.int64)[dropped])
    for place, group, (index, _, row) in zip(dropped.tolist(), curation.read(dropped), as_read, strict=True):
        whole = group._replace(completions=row.completions, preferences=row.stated or (), scores=None)
        scores = row.scores or (None,) * len(row.completions)
        partner = _partner(_Dropped(entry, place, group, cause), rows)
        side = Side(where(index), partner.text or _text(whole, scores))
        yield Example(split, cause, side, partner.why, partner.other)


class _Dropped(NamedTuple):
    """A row of which something was dropped."""

    entry: CuratedRows
    place: int
    group: PreferenceGroup
    cause: str


class _Partner(NamedTuple):
    """What a dropped row repeats, contradicts, leaks into or overlaps with."""

    why: str = ""
    other: Side | None = None
    text: str = ""  # of the dropped row, if a part of it suffices


def _partner(row: _Dropped, rows: Sequence[CuratedRows]) -> _Partner:
    curation = row.entry.curation
    for check in curation.checks:
        if check.cause == row.cause and (overlap := next((o for o in check.overlaps if o.id == row.group.id), None)):
            return _overlap(row.group, check, overlap)
    if row.place in curation.repeats and row.cause == curation.outcomes.causes[row.place]:
        return _near(row, rows)
    for entry in rows if row.cause in (*_REPEATS, *_CONTRADICTIONS, LEAK) else ():
        places = _like(row, entry)
        groups = entry.curation.as_read.take(places) if row.cause in _REPEATS else entry.curation.read(places)
        for place, group in zip(places.tolist(), groups, strict=True):
            if row.cause not in _CONTRADICTIONS or _contradicts(group, row.group):
                return _beside(entry, place, group)
    return _Partner()


def _like(row: _Dropped, entry: CuratedRows) -> Places:
    """The rows of an entry that a row may repeat, contradict or leak into."""
    curation, others = row.entry.curation, entry.curation
    if row.cause in _REPEATS:
        alike = others.facts.contents == curation.facts.contents[row.place]
    else:
        alike = others.prompts == curation.prompts[row.place]
    if row.cause in _CONTRADICTIONS:
        alike &= [cause not in _REPEATS for cause in others.outcomes.causes]
    if others is curation:
        alike[row.place] = False
    return np.flatnonzero(alike & ((entry.split == row.entry.split) != (row.cause == LEAK)))


def _beside(entry: CuratedRows, place: int, group: PreferenceGroup, why: str = "") -> _Partner:
    where = entry.parsed.source.where(entry.curation.facts.rows[place])
    return _Partner(why, Side(f"{entry.split}: {where}", _text(group)))


def _near(row: _Dropped, rows: Sequence[CuratedRows]) -> _Partner:
    """The row that a row nearly repeats, and how similar the two are."""
    first = row.entry.curation.repeats[row.place]
    entry, place, group = next(
        (entry, place, group)
        for entry in rows
        if entry.split == row.entry.split
        for place, group in enumerate(entry.curation.read(np.arange(len(entry.curation.prompts))))
        if group.id == first
    )
    shares = zip(("prompts", "preferred answers", "other answers"), similarities(row.group, group), strict=True)
    return _beside(entry, place, group, ", ".join(f"{what} {share:.0%} the same" for what, share in shares))


def _overlap(group: PreferenceGroup, check: Check, overlap: Overlap) -> _Partner:
    """The text of the row, and the benchmark's text with which it overlaps."""
    passages = [p.text for p in passages_of(group.id, group.prompt, group.completions) if p.part == overlap.part]
    text = next((text for text in passages if overlap.phrase in " ".join(words_of(text))), "")
    why = f"{overlap.share:.0%} of the words of the benchmark's {overlap.benchmark_part}, first {overlap.phrase!r}"
    side = Side(f"{check.compared.name} {overlap.benchmark_row}", f"[{overlap.benchmark_part}] {overlap.text}")
    return _Partner(why, side, f"[{overlap.part}] {text}")


def _contradicts(one: PreferenceGroup, other: PreferenceGroup) -> bool:
    return one.prompt == other.prompt and len({*one.completions} & {*other.completions}) > 1


def _text(group: PreferenceGroup, scores: Sequence[float | None] | None = None) -> str:
    """A row as text: its prompt, its completions with their scores, and the preferences that it states."""
    scores = scores or group.scores or (None,) * len(group.completions)
    lines = [*lines_of(group.prompt, "prompt")]
    for number, (completion, score) in enumerate(zip(group.completions, scores, strict=True)):
        lines += lines_of(completion, f"completion {number}" + (f", score {score:g}" if score is not None else ""))
    stated = ", ".join(f"{preference.better} over {preference.worse}" for preference in group.preferences)
    return "\n".join([*lines, *([f"[preferences] {stated}"] if stated else [])])


def lines_of(messages: Conversation, name: str) -> Iterator[str]:
    """Messages as text, each under a name, and under its role if there are several."""
    for message in messages:
        yield f"[{name}: {message.role}] {message.content}" if len(messages) > 1 else f"[{name}] {message.content}"
