"""A curated split: its groups, and for each entry the origin of its rows and the report of their curation."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmtrain.data.entries import Entry
from rmtrain.data.ledgers import SplitReport, join_reports
from rmtrain.data.sources import RowPlaces
from rmtrain.data.types import PreferenceGroup
from rmtrain.json_values import JsonObject
from rmtrain.recipe.data_schema import MAPPING, DataSection

ReadAs = dict[str, Any]  # the fields of MAPPING that a recipe sets


def mapping_of(data: DataSection) -> ReadAs:
    """The keys by which a recipe says how rows are read, if it does."""
    return {name: value for name in MAPPING if (value := getattr(data, name)) != DataSection.model_fields[name].default}


@dataclass(frozen=True)
class SplitPart:
    """The rows of one entry in a split: their origin, and the report of their curation."""

    entry: Entry
    report: SplitReport
    rows: Sequence[int]  # the source row of each group, from 0
    places: RowPlaces
    origin: Mapping[str, Any]  # the record of its rows in results: how to read them again
    repeated: int | None = None  # to how many groups an epoch repeats them; None: each is taken once

    def label(self, split: str) -> str:
        """The name of its split and, in a mixture, its own name."""
        return f"{split} ({self.entry.name})" if self.entry.name else split


@dataclass(frozen=True)
class SplitData:
    """The groups of one split, entry by entry, with their origin."""

    name: str
    groups: Sequence[PreferenceGroup]
    parts: tuple[SplitPart, ...]  # at least one

    @property
    def mixed(self) -> bool:
        """Whether the split is a mixture, whose entries have names."""
        return bool(self.parts[0].entry.name)

    @property
    def report(self) -> SplitReport:
        """The ledgers over all entries."""
        return join_reports(self.name, [part.report for part in self.parts])

    @property
    def source(self) -> str:
        """A description of the rows' origin."""
        names = ", ".join(part.entry.name for part in self.parts)
        return f"a mixture of {names}" if self.mixed else str(self.parts[0].origin["source"])

    @property
    def revision(self) -> str | None:
        """Commit of a hub dataset; None for a mixture, whose entries have one each."""
        return None if self.mixed else self.parts[0].origin["revision"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source's content; for a mixture, of its entries' digests and mappings."""
        if not self.mixed:
            return str(self.parts[0].origin["fingerprint"])
        read = [[part.origin["fingerprint"], part.origin.get("read_as")] for part in self.parts]
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()

    @property
    def origin(self) -> JsonObject:
        """The record of its rows in results; for a mixture, the origin of each entry by name."""
        if not self.mixed:
            return dict(self.parts[0].origin)
        entries = {part.entry.name: dict(part.origin) for part in self.parts}
        return {"source": self.source, "revision": None, "fingerprint": self.fingerprint, "entries": entries}

    @property
    def read_as(self) -> ReadAs:
        """The mapping by which a single source was read, if one was needed."""
        return dict(self.parts[0].origin.get("read_as", {}))

    @property
    def rows(self) -> tuple[int, ...]:
        """The source row of each group, within its entry's source."""
        return tuple(row for part in self.parts for row in part.rows)

    def by_part(self) -> Iterator[tuple[SplitPart, Sequence[PreferenceGroup]]]:
        """Each entry with its groups."""
        start = 0
        for part in self.parts:
            yield part, self.groups[start : (start := start + len(part.rows))]

    def place(self, group_id: str) -> str:
        """The place of a group's row."""
        rows = ((part, group, row) for part, own in self.by_part() for group, row in zip(own, part.rows, strict=True))
        return next(part.places.of(row) for part, group, row in rows if group.id == group_id)
