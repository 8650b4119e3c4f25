"""Curation of a source's rows: the group of each row, and the rows, completions and preferences that can't be used."""

from array import array
from collections.abc import Iterator
from typing import Literal, NamedTuple

from rmtrain.data.curation import NONE_LEFT, Candidate, Curation, Keep
from rmtrain.data.digests import repeated_places
from rmtrain.data.group_table import HeldGroups
from rmtrain.data.ledgers import SplitReport
from rmtrain.data.pairing import Pairing, make_preferences, with_gap_probability
from rmtrain.data.parse import ParsedRows
from rmtrain.data.schemas.readers import RECORDING_FAULT
from rmtrain.data.schemas.rows import EMPTY_COMPLETION, ParsedRow, empty_cause, is_empty
from rmtrain.data.split_data import SplitPart, mapping_of
from rmtrain.data.types import PreferenceGroup
from rmtrain.recipe.data_schema import Pairs

TOO_FEW = "fewer than two usable completions"
NO_PREFERENCE = "no preference"  # the row states no preference, and its scores imply none

Purpose = Literal["train", "evaluation", "scoring"]


class CuratedRows(NamedTuple):
    """The rows of one entry of a split, and the result of their curation so far."""

    split: str
    parsed: ParsedRows
    curation: Curation

    @property
    def report(self) -> SplitReport:
        """The ledgers of the rows."""
        return self.curation.report(self.split, self.parsed.schema, self.parsed.total, self.parsed.source.where)

    def part(self, repeated: int | None = None) -> SplitPart:
        """The rows as a part of their split; `repeated` as in `SplitPart`."""
        entry, source = self.parsed.entry, self.parsed.source
        read_as = mapping_of(entry.section)
        return SplitPart(
            entry=entry,
            report=self.report,
            rows=array("q", self.curation.rows.tobytes()),
            places=source.places,
            origin={**source.origin, **({"read_as": read_as} if read_as else {})},
            repeated=repeated,
        )


def curate(split: str, parsed: ParsedRows, purpose: Purpose, keep: Keep = HeldGroups.of) -> CuratedRows:
    """Make groups from an entry's rows, which `keep` puts into a store, and drop rows that the split's purpose can't
    use."""
    curation = Curation.of(_candidates(parsed, purpose), parsed.prompts, keep, compared=purpose != "scoring")
    curation.unusable = parsed.unusable
    if suspect := int(parsed.suspects.sum()):
        left_out = parsed.entry.section.score == "overall" and purpose != "scoring"
        curation.notes.append(
            f"completions with an {RECORDING_FAULT}, a known error of the source: {suspect}, "
            f"which are {'left out' if left_out else 'kept'}"
        )
    if purpose == "evaluation" and (duplicates := len(repeated_places(curation.facts.contents[curation.kept]))):
        curation.notes.append(f"duplicates, which evaluation splits keep: {duplicates}")
    curation.notes += parsed.choice.notes
    return CuratedRows(split, parsed, curation)


def _candidates(parsed: ParsedRows, purpose: Purpose) -> Iterator[Candidate]:
    entry, trains = parsed.entry, purpose == "train"
    data = entry.section
    rules = data.preferences, data.min_gap if trains else 0.0, trains and data.tied == "half"
    for index, row_id, row in parsed.read():
        candidate = make_candidate(index, row, entry.group_id(row_id), purpose, *rules)
        group = candidate.group
        if entry.name:
            group = group._replace(source=entry.group_source(group.source))
        if trains and data.gap_scale is not None:
            soft = tuple(with_gap_probability(preference, data.gap_scale) for preference in group.preferences)
            group = group._replace(preferences=soft)
        yield candidate._replace(group=group)


def make_candidate(
    row: int,
    parsed: ParsedRow,
    group_id: str,
    purpose: Purpose,
    mode: Pairs = "all",
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
