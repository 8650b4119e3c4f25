"""What a recipe's data holds: the books of every split, its lengths, and the prompts that splits share."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from rmtrain.data.load import PreparedData
from rmtrain.data.prepare import BOOKS, ReadySplit
from rmtrain.reporting.tables import figure_table, safe_text, spaced
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


def ledger_table(books: Mapping[str, Any]) -> Group:
    """The books as tables, one a split: total, what went by which cause, and what was kept."""
    parts = [
        Group(safe_text(_heading(name, split)), _split_table(split), *map(safe_text, _remarks(split)))
        for name, split in books["splits"].items()
    ]
    leaks = [
        f"shared by {leak['first']} and {leak['second']}: {count(leak['prompts'])} prompts; the {count(leak['rows'])} "
        f"rows with them were {'dropped from' if leak['dropped'] else 'kept in'} {leak['first']}"
        for leak in books["leaks"]
    ]
    return spaced([*parts, *([Group(*map(safe_text, leaks))] if leaks else [])])


def _heading(name: str, split: Mapping[str, Any]) -> str:
    revision = f" at {split['revision'][:12]}" if split["revision"] else ""
    return f"{name}: {split['source']}{revision}, row schema {split['schema']}"


def _split_table(split: Mapping[str, Any]) -> Table:
    causes = dict.fromkeys(cause for book in BOOKS for cause in split[book]["dropped"])
    rows = [
        ("total", *(count(split[book]["total"]) for book in BOOKS)),
        *((f"dropped: {cause}", *(count(split[book]["dropped"].get(cause, 0)) for book in BOOKS)) for cause in causes),
    ]
    table = figure_table("", *BOOKS, rows=rows)
    table.add_row("kept", *(count(split[book]["kept"]) for book in BOOKS), style="bold")
    return table


def _remarks(split: Mapping[str, Any]) -> Iterator[str]:
    """A line on lengths, and the place of the first row that each cause took."""
    if lengths := split["lengths"]:
        yield (
            f"tokens a sequence: median {count(lengths['median'])}, 95 % at most {count(lengths['p95'])}, "
            f"longest {count(lengths['longest'])}; {count(split['truncated'])} groups truncated"
        )
    yield from (f"first {cause}: {place}" for cause, place in split["first_dropped"].items())
