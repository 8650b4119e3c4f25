"""Examples of dropped rows for any cause, each beside the row that it repeats, contradicts or overlaps with."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from rmtrain.data.curate import Candidate, CuratedRows, content_digest
from rmtrain.data.decontaminate import Check, Overlap, passages_of
from rmtrain.data.mixture import CONTRADICTION, CONTRADICTION_ELSEWHERE, DUPLICATE, DUPLICATE_ELSEWHERE
from rmtrain.data.near_duplicates import similarities
from rmtrain.data.ngrams import words_of
from rmtrain.data.prepare import ReadyData
from rmtrain.data.splits import LEAK, leak_key
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
        for each in curation.candidates:
            causes |= dict.fromkeys(_causes(each))
    return list(causes)


def matching(asked: str, causes: Iterable[str]) -> list[str]:
    """The requested causes: the cause of exactly this name, otherwise all whose names contain it.

    Raises:
        InputError: there is no such cause.
    """
    known, part = dict.fromkeys(causes), asked.replace("_", " ").casefold()
    found = [cause for cause in known if cause.casefold() == part] or [c for c in known if part in c.casefold()]
    if not found:
        hint = f"the causes are: {', '.join(known)}" if known else "nothing was dropped"
        raise InputError(f"--show {asked}: nothing was dropped for such a cause", hint)
    return found


def examples_of(rows: Sequence[CuratedRows], cause: str, most: int) -> list[Example]:
    """The first examples of a cause, at most `most` per source."""
    return [example for each in rows for example in islice(_examples(each, cause, rows), most)]


def token_examples(ready: ReadyData, cause: str) -> list[Example]:
    """The first row of each split that tokenisation dropped for a cause."""
    found = []
    for name, split in ready.splits.items():
        if (lost := split.tokens.dropped.get(cause)) is not None:
            group = next(group for group in split.data.groups if group.id == lost.first)
            found.append(Example(name, cause, Side(split.data.place(group.id), _text(group)), lost.why))
    return found


def _causes(candidate: Candidate) -> list[str]:
    dropped = [] if candidate.drop_cause is None else [candidate.drop_cause]
    return [*dropped, *candidate.lost_completions, *candidate.lost_preferences]


def _examples(own: CuratedRows, cause: str, rows: Sequence[CuratedRows]) -> Iterator[Example]:
    split, parsed, curation = own
    where = parsed.source.where
    for fault in curation.unusable:
        if fault.cause == cause:
            text = "\n".join(f"{name}: {value}" for name, value in parsed.source.rows[fault.row].items())
            yield Example(split, cause, Side(where(fault.row), text), "" if fault.detail == cause else fault.detail)
    as_read = dict(parsed.rows)
    for each in curation.candidates:
        if cause in _causes(each):
            row = as_read[each.row]
            whole = each.group._replace(completions=row.completions, preferences=row.stated or (), scores=None)
            scores = row.scores or (None,) * len(row.completions)
            why, other, text = _partner(each, cause, own, rows)
            yield Example(split, cause, Side(where(each.row), text or _text(whole, scores)), why, other)


class _Partner(NamedTuple):
    """What a dropped row repeats, contradicts, leaks into or overlaps with."""

    why: str = ""
    other: Side | None = None
    text: str = ""  # of the dropped row, if a part of it suffices


def _partner(each: Candidate, cause: str, own: CuratedRows, rows: Sequence[CuratedRows]) -> _Partner:
    for check in own.curation.checks:
        if check.cause == cause and (overlap := next((o for o in check.overlaps if o.id == each.group.id), None)):
            return _overlap(each, check, overlap)
    if each.repeats and cause == each.drop_cause:
        return _near(each, own.split, rows)
    for split, parsed, curation in rows:
        for other in curation.candidates if cause in (*_REPEATS, *_CONTRADICTIONS, LEAK) else ():
            same = split == own.split
            if other is not each and (
                (cause in _REPEATS and same and content_digest(other.group) == content_digest(each.group))
                or (cause in _CONTRADICTIONS and same and _contradicts(other, each))
                or (cause == LEAK and not same and leak_key(other.group.prompt) == leak_key(each.group.prompt))
            ):
                return _Partner("", Side(f"{split}: {parsed.source.where(other.row)}", _text(other.group)))
    return _Partner()


def _near(each: Candidate, split: str, rows: Sequence[CuratedRows]) -> _Partner:
    """The row that a row nearly repeats, and how similar the two are."""
    of_split = ((parsed, other) for name, parsed, own in rows if name == split for other in own.candidates)
    parsed, other = next((parsed, other) for parsed, other in of_split if other.group.id == each.repeats)
    shares = zip(("prompts", "preferred answers", "other answers"), similarities(each.group, other.group), strict=True)
    why = ", ".join(f"{what} {share:.0%} the same" for what, share in shares)
    return _Partner(why, Side(f"{split}: {parsed.source.where(other.row)}", _text(other.group)))


def _overlap(each: Candidate, check: Check, found: Overlap) -> _Partner:
    """The text of the row, and the benchmark's text with which it overlaps."""
    passages = passages_of(each.group.id, each.group.prompt, each.group.completions)
    text = next((p.text for p in passages if p.part == found.part and found.phrase in " ".join(words_of(p.text))), "")
    why = f"{found.share:.0%} of the words of the benchmark's {found.benchmark_part}, first {found.phrase!r}"
    side = Side(f"{check.compared.name} {found.benchmark_row}", f"[{found.benchmark_part}] {found.text}")
    return _Partner(why, side, f"[{found.part}] {text}")


def _contradicts(one: Candidate, other: Candidate) -> bool:
    shared = {*one.group.completions} & {*other.group.completions}
    return one.drop_cause not in _REPEATS and one.group.prompt == other.group.prompt and len(shared) > 1


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
