"""A curated split: its groups, and of each of its entries where the rows came from and what became of them."""

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

ReadAs = dict[str, Any]  # the fields of MAPPING that a recipe sets: how its rows are read


@dataclass(frozen=True)
class SplitPart:
    """The rows of one entry in a split: where they came from, and what became of them."""

    entry: Entry
    report: SplitReport
    rows: Sequence[int]  # the source row that each of its groups was made of, from 0
    places: RowPlaces
    origin: Mapping[str, Any]  # what a result records of its rows: how to read them again
    repeated: int | None = None  # to how many groups a pass of training repeats them; None: each is taken once

    def label(self, split: str) -> str:
        """The name of its split, and its own in a mixture."""
        return f"{split} ({self.entry.name})" if self.entry.name else split


@dataclass(frozen=True)
class SplitData:
    """The groups of one split, entry by entry, and where they came from."""

    name: str
    groups: Sequence[PreferenceGroup]
    parts: tuple[SplitPart, ...]  # at least one

    @property
    def mixed(self) -> bool:
        """Whether it is a mixture, whose entries have names."""
        return bool(self.parts[0].entry.name)

    @property
    def report(self) -> SplitReport:
        """The ledgers over all entries."""
        return join_reports(self.name, [part.report for part in self.parts])

    @property
    def source(self) -> str:
        """A description of where the rows came from."""
        names = ", ".join(part.entry.name for part in self.parts)
        return f"a mixture of {names}" if self.mixed else str(self.parts[0].origin["source"])

    @property
    def revision(self) -> str | None:
        """Commit of a hub dataset; None for a mixture, whose entries have one each."""
        return None if self.mixed else self.parts[0].origin["revision"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source's content; of a mixture, over those of its entries and how they are read."""
        if not self.mixed:
            return str(self.parts[0].origin["fingerprint"])
        read = [[part.origin["fingerprint"], part.origin.get("read_as")] for part in self.parts]
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()

    @property
    def origin(self) -> JsonObject:
        """What a result records of its rows; of a mixture, the origin of each entry by name."""
        if not self.mixed:
            return dict(self.parts[0].origin)
        entries = {part.entry.name: dict(part.origin) for part in self.parts}
        return {"source": self.source, "revision": None, "fingerprint": self.fingerprint, "entries": entries}

    @property
    def read_as(self) -> ReadAs:
        """How a single source was read, unless its columns said it."""
        return dict(self.parts[0].origin.get("read_as", {}))

    @property
    def rows(self) -> tuple[int, ...]:
        """The row, in the source of its entry, that each group was made of."""
        return tuple(row for part in self.parts for row in part.rows)

    def by_part(self) -> Iterator[tuple[SplitPart, Sequence[PreferenceGroup]]]:
        """Each entry with its groups."""
        start = 0
        for part in self.parts:
            yield part, self.groups[start : (start := start + len(part.rows))]

    def place(self, group_id: str) -> str:
        """The place of the row that a group was made of."""
        rows = ((part, group, row) for part, own in self.by_part() for group, row in zip(own, part.rows, strict=True))
        return next(part.places.of(row) for part, group, row in rows if group.id == group_id)
