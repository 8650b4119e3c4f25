"""The data report of a recipe: kept and dropped rows of every split, its lengths, leaks and notes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.entry_figures import EntryFigures, entry_figures, token_figures
from rmtrain.data.ledgers import Ledger
from rmtrain.data.load import CuratedData
from rmtrain.data.prepare import LEDGERS, ReadySplit
from rmtrain.data.splits import Leak
from rmtrain.json_values import JsonObject
from rmtrain.reporting.summary import mapping
from rmtrain.reporting.table import Table
from rmtrain.reporting.text import count, decimal, percent


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt with one completion, over all sequences of a split."""

    mean: float
    median: float
    p95: float
    longest: int


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one forward pass over a split."""

    prompts_shared: int  # each prompt once per group
    prompts_repeated: int  # each prompt once per completion


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds; the ledgers count what curation and tokenisation dropped."""

    source: str
    revision: str | None
    fingerprint: str
    schema: str
    rows: Ledger
    completions: Ledger
    preferences: Ledger
    first_dropped: dict[str, str]  # cause → place of the first row
    truncated: int  # groups
    identical: int  # preferences between completions of the same tokens; kept as ties
    checks: list[JsonObject]  # comparison with benchmarks: what was compared, and the number of overlapping rows
    added: dict[str, int]  # answers to other prompts: completions and preferences, included in the totals
    left_out_by_template: dict[str, int]  # what the chat template leaves out → rows
    lengths: Lengths | None  # None: the split is empty
    tokens: TokenCounts
    length_baseline: float | None  # accuracy of "the longer completion wins"
    completions_per_group: float | None  # mean
    entries: dict[str, EntryFigures]  # the entries of a mixture by name


class DataReport(NamedTuple):
    """The figures of a recipe's data."""

    splits: dict[str, SplitSummary]
    leaks: Sequence[Leak]
    notes: Sequence[str]

    def as_json(self) -> JsonObject:
        """The document that `rmtrain data --json` prints."""
        return {
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "leaks": [leak._asdict() for leak in self.leaks],
            "notes": list(self.notes),
        }


def data_report(data: CuratedData, ready: Mapping[str, ReadySplit]) -> DataReport:
    """Describe the splits of a recipe."""
    return DataReport({name: _summary(split) for name, split in ready.items()}, data.leaks, data.notes)


def _summary(split: ReadySplit) -> SplitSummary:
    tokens = split.tokens
    sizes = tokens.sizes()
    lengths = sizes.sequences
    figures = token_figures(tokens)
    first_lost = {cause: split.data.place(lost.first) for cause, lost in tokens.report.dropped.items()}
    return SplitSummary(
        source=split.data.source,
        revision=split.data.revision,
        fingerprint=split.data.fingerprint,
        schema=split.data.report.schema,
        rows=split.ledger("rows"),
        completions=split.ledger("completions"),
        preferences=split.ledger("preferences"),
        first_dropped={**split.data.report.examples, **first_lost},
        truncated=tokens.report.truncated,
        identical=sum(tokens.report.identical.values()),
        checks=[check.record() for check in split.data.report.checks],
        added=split.data.report.added._asdict(),
        left_out_by_template={what: omitted.rows for what, omitted in tokens.report.omitted.items()},
        lengths=_spread(lengths) if len(lengths) else None,
        tokens=TokenCounts(sizes.tokens, sizes.tokens_repeated),
        length_baseline=figures.length_baseline,
        completions_per_group=figures.completions_per_group,
        entries=entry_figures(split),
    )


def _spread(lengths: NDArray[np.int32]) -> Lengths:
    median, high = np.percentile(lengths, [50, 95])
    return Lengths(float(np.mean(lengths)), float(median), float(high), int(lengths.max()))


def report_tables(report: DataReport) -> list[Table]:
    """One table per split: total, dropped by cause, and kept; then its entries. The report's notes name the leaks."""
    tables = []
    for name, split in report.splits.items():
        tables.append(ledger_table(asdict(split), LEDGERS, title=_heading(name, split), notes=list(_remarks(split))))
        tables += entry_tables(name, asdict(split)["entries"])
    return tables


def _heading(name: str, split: SplitSummary) -> str:
    revision = f" at {split.revision[:12]}" if split.revision else ""
    return f"{name}: {split.source}{revision}, row schema {split.schema}"


def ledger_table(split: Mapping[str, Any], ledgers: Sequence[str], title: str = "", notes: Sequence[str] = ()) -> Table:
    """Total, dropped by cause, and kept, with one column per ledger; a missing number is `n/a`.

    Where a curation only marked rows, all of them are still there: they are rejected by cause, or not.
    """
    lost, rest = ("rejected", "not rejected") if split.get("marked") else ("dropped", "kept")
    columns = [mapping(split.get(ledger)) for ledger in ledgers]
    dropped = [mapping(column.get("dropped")) for column in columns]
    added = mapping(split.get("added"))
    rows = [
        ("total", *(count(column.get("total")) for column in columns)),
        *(
            [("of these, added answers to other prompts", *(count(added.get(name, 0)) for name in ledgers))]
            if any(added.values())
            else []
        ),
        *(
            (f"{lost}: {cause}", *(count(causes.get(cause, 0)) for causes in dropped))
            for cause in dict.fromkeys(cause for causes in dropped for cause in causes)
        ),
        (rest, *(count(column.get("kept")) for column in columns)),
    ]
    return Table(("", *ledgers), rows, title=title, bold=[len(rows) - 1], notes=notes)


def used_tables(name: str, split: Mapping[str, Any]) -> list[Table]:
    """The entries of a split of the manifest, and the benchmarks with which it was compared."""
    return [*entry_tables(name, mapping(split.get("entries"))), *check_tables(split)]


def check_tables(split: Mapping[str, Any]) -> list[Table]:
    """The benchmarks with which a split's rows were compared, as in the manifest; nothing if there are none."""
    checks = [mapping(check) for check in split.get("checks") or ()]
    keys = ("benchmark_rows", "words", "rows", "overlaps")
    rows = [(check.get("name"), *(count(check.get(key)) for key in keys)) for check in checks]
    return [Table(("compared with", "its rows", "words", "rows", "overlaps"), rows)] if rows else []


def entry_tables(split: str, entries: Mapping[str, Any]) -> list[Table]:
    """The entries of a mixture, by name as in the manifest: what each adds to the split, and what it loses by which
    cause. A missing number is `n/a`."""
    known = {name: mapping(entry) for name, entry in entries.items()}
    if not known:
        return []
    rows = []
    for name, entry in known.items():
        ledger, per_group = mapping(entry.get("rows")), entry.get("completions_per_group")
        shares = [percent(entry.get(key)) for key in ("share_of_groups", "share_of_tokens", "length_baseline")]
        counts = [count(figure) for figure in (ledger.get("total"), ledger.get("kept"), entry.get("groups"))]
        rows.append((name, ", ".join(map(str, entry.get("tags") or ())), *counts, *shares, decimal(per_group, 1)))
    headings = ("tags", "rows", "kept", "groups used", "of groups", "of tokens", "longer wins", "K")
    tagged = any(row[1] for row in rows)
    if not tagged:
        rows = [(row[0], *row[2:]) for row in rows]
    dropped = {name: mapping(mapping(entry.get("rows")).get("dropped")) for name, entry in known.items()}
    causes = list(dict.fromkeys(cause for own in dropped.values() for cause in own))
    lost = [(name, *(count(own.get(cause, 0)) for cause in causes)) for name, own in dropped.items()]
    table = Table((f"{split}, by entry", *headings[not tagged :]), rows, texts=1 + tagged)
    return [table, *([Table((f"{split}, rows dropped", *causes), lost)] if causes else [])]


def _remarks(split: SplitSummary) -> Iterator[str]:
    """A line on lengths, and the place of the first row dropped for each cause."""
    if split.lengths:
        yield (
            f"tokens per sequence: median {count(split.lengths.median)}, 95 % at most {count(split.lengths.p95)}, "
            f"longest {count(split.lengths.longest)}; {count(split.truncated)} groups truncated"
        )
    if split.length_baseline is not None and split.completions_per_group is not None:
        yield (
            f"the longer completion wins {percent(split.length_baseline)} of the preferences; "
            f"{decimal(split.completions_per_group, 1)} completions per group"
        )
    yield from (f"first {cause}: {place}" for cause, place in split.first_dropped.items())
