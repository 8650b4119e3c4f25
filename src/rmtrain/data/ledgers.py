"""Ledgers of a split: the counts of total, kept and dropped by cause."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rmtrain.data.decontaminate import Check, join_checks


@dataclass(frozen=True)
class Ledger:
    """Counts of total, kept and dropped by cause, with total = kept + dropped."""

    total: int
    kept: int
    dropped: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.kept + sum(self.dropped.values()) != self.total:
            raise AssertionError(f"ledger does not balance: {self}")


class Added(NamedTuple):
    """Answers to other prompts, added as worse completions, one per group; the ledgers include them."""

    completions: int = 0
    preferences: int = 0


NOTHING_ADDED = Added()


@dataclass(frozen=True)
class SplitReport:
    """The ledgers of one split.

    Completions and preferences are counted over readable rows; those of a dropped row count as dropped for the same
    cause.
    """

    split: str
    schema: str
    rows: Ledger
    completions: Ledger
    preferences: Ledger  # total: those that the recipe's choice allows among the usable completions
    examples: Mapping[str, str]  # cause: the place of the first dropped row
    notes: tuple[str, ...]
    checks: tuple[Check, ...] = ()  # with benchmarks
    added: Added = NOTHING_ADDED


def join_reports(split: str, reports: Sequence[SplitReport]) -> SplitReport:
    """The report of a split from those of its entries."""
    if len(reports) == 1:
        return reports[0]
    examples: dict[str, str] = {}
    for report in reports:
        examples = {**report.examples, **examples}
    return SplitReport(
        split=split,
        schema=", ".join(dict.fromkeys(report.schema for report in reports)),
        rows=join_ledgers([report.rows for report in reports]),
        completions=join_ledgers([report.completions for report in reports]),
        preferences=join_ledgers([report.preferences for report in reports]),
        examples=examples,
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        checks=join_checks([report.checks for report in reports]),
        added=Added(*map(sum, zip(*(report.added for report in reports), strict=True))),
    )


def join_ledgers(ledgers: Sequence[Ledger]) -> Ledger:
    """The sum of ledgers."""
    dropped: Counter[str] = Counter()
    for ledger in ledgers:
        dropped.update(ledger.dropped)
    return Ledger(sum(ledger.total for ledger in ledgers), sum(ledger.kept for ledger in ledgers), dict(dropped))
