"""What a recipe's data holds: the books of every split, its lengths, and the prompts that splits share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rmtrain.data.load import PreparedData
from rmtrain.data.prepare import BOOKS, ReadySplit
from rmtrain.reporting.summary import mapping
from rmtrain.reporting.table import Table
from rmtrain.reporting.text import count


def describe_splits(data: PreparedData, ready: Mapping[str, ReadySplit]) -> dict[str, Any]:
    """The books of a recipe's splits, as `rmtrain data --json` gives them.

    Every book balances: `total` = `kept` + the sum of `dropped`. `lengths` are in tokens, of prompt and one completion
    together; `tokens` counts what goes through the backbone in one pass, with each prompt shared by its group or not.
    """
    return {
        "splits": {name: _describe(split) for name, split in ready.items()},
        "leaks": [leak._asdict() for leak in data.leaks],
        "notes": list(data.notes),
    }


def _describe(split: ReadySplit) -> dict[str, Any]:
    report, tokens = split.data.report, split.tokens
    sizes = tokens.lengths()
    lengths = np.array(
        [
            prefix + suffixes[place]
            for (prefix, suffixes), places in zip(sizes, tokens.table["suffix_of"], strict=True)
            for place in places
        ]
    )
    return {
        "source": split.data.source,
        "revision": split.data.revision,
        "fingerprint": split.data.fingerprint,
        "schema": report.schema,
        **{book: asdict(split.ledger(book)) for book in BOOKS},
        "first_dropped": {
            **report.examples,
            **{cause: split.data.place(lost.first) for cause, lost in tokens.dropped.items()},
        },
        "truncated": tokens.truncated,
        "identical": sum(tokens.identical.values()),
        "left_out_by_template": {what: omitted.rows for what, omitted in tokens.omitted.items()},
        "lengths": _spread(lengths),
        "tokens": {
            "prompts_shared": int(sum(prefix + sum(suffixes) for prefix, suffixes in sizes)),
            "prompts_repeated": sum(prefix + suffix for prefix, suffixes in sizes for suffix in suffixes),
        },
    }


def _spread(lengths: Any) -> dict[str, float] | None:
    """Mean, median, 95th percentile and greatest length; None without any."""
    if not len(lengths):
        return None
    median, high = np.percentile(lengths, [50, 95])
    return {"mean": float(lengths.mean()), "median": float(median), "p95": float(high), "longest": int(lengths.max())}


def ledger_tables(books: Mapping[str, Any]) -> list[Table]:
    """One table a split: total, dropped by cause, and kept; then the prompts that splits share."""
    tables = [
        ledger_table(split, BOOKS, title=_heading(name, split), notes=list(_remarks(split)))
        for name, split in books["splits"].items()
    ]
    leaks = [
        f"shared by {leak['first']} and {leak['second']}: {count(leak['prompts'])} prompts; the {count(leak['rows'])} "
        f"rows with them were {'dropped from' if leak['dropped'] else 'kept in'} {leak['first']}"
        for leak in books["leaks"]
    ]
    return [*tables, *([Table((), (), notes=leaks)] if leaks else [])]


def _heading(name: str, split: Mapping[str, Any]) -> str:
    revision = f" at {split['revision'][:12]}" if split["revision"] else ""
    return f"{name}: {split['source']}{revision}, row schema {split['schema']}"


def ledger_table(split: Mapping[str, Any], books: Sequence[str], title: str = "", notes: Sequence[str] = ()) -> Table:
    """Total, dropped by cause, and kept, with a column for each book; a figure that is missing is `n/a`."""
    ledgers = [mapping(split.get(book)) for book in books]
    dropped = [mapping(ledger.get("dropped")) for ledger in ledgers]
    rows = [
        ("total", *(count(ledger.get("total")) for ledger in ledgers)),
        *(
            (f"dropped: {cause}", *(count(causes.get(cause, 0)) for causes in dropped))
            for cause in dict.fromkeys(cause for causes in dropped for cause in causes)
        ),
        ("kept", *(count(ledger.get("kept")) for ledger in ledgers)),
    ]
    return Table(("", *books), rows, title=title, bold=[len(rows) - 1], notes=notes)


def _remarks(split: Mapping[str, Any]) -> Iterator[str]:
    """A line on lengths, and the place of the first row that each cause took."""
    if lengths := split["lengths"]:
        yield (
            f"tokens a sequence: median {count(lengths['median'])}, 95 % at most {count(lengths['p95'])}, "
            f"longest {count(lengths['longest'])}; {count(split['truncated'])} groups truncated"
        )
    yield from (f"first {cause}: {place}" for cause, place in split["first_dropped"].items())
