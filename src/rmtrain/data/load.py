"""A recipe's data section → curated splits: parse the rows, curate them, find leaks, limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from rmtrain.data.augment import add_other_prompts
from rmtrain.data.benchmarks.texts import drop_overlaps
from rmtrain.data.curate import CuratedRows, curate
from rmtrain.data.curation import Curation, Keep
from rmtrain.data.group_table import IN_MEMORY, GroupStore
from rmtrain.data.mixture import drop_contradictions, drop_duplicates, limit_entries
from rmtrain.data.near_duplicates import drop_near_duplicates, require_datasketch
from rmtrain.data.notes import note_shared_prompts, notes_on
from rmtrain.data.parse import ParsedRows, holdout_shares, parse_splits
from rmtrain.data.split_data import SplitData
from rmtrain.data.splits import LEAK, Leak, find_leaks, mark_leaks
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

SCRATCH = "read-"  # the beginning of the names of tables with every readable row


@dataclass(frozen=True)
class CuratedData:
    """All splits of a recipe."""

    splits: dict[str, SplitData]
    leaks: list[Leak]
    notes: list[str]
    folder: Path | None = None  # in the cache, if the groups are read from there
    rows: Sequence[CuratedRows] = field(default=(), repr=False)  # every row; none if they come from the cache


def recipe_splits(data: DataSection) -> tuple[str, ...]:
    """The splits of a recipe: those of `data.splits` or of a `data.source` mapping, and its hold-outs."""
    named = data.source if isinstance(data.source, dict) else data.splits
    usual = [name for name in ("train", "validation", "test") if name in {*named, *holdout_shares(data)}]
    return (*usual, *(name for name in named if name not in usual))


def load_data(
    data: DataSection, seed: int, splits: Sequence[str] | None = None, store: GroupStore = IN_MEMORY
) -> CuratedData:
    """Read, parse, curate and limit the splits of a recipe (None: all of them).

    From training splits, rows without a preference, duplicates, contradictions, near duplicates and leaks are dropped,
    in this order, as the recipe says. From evaluation splits, only rows that can't be scored as a preference are
    dropped: malformed rows, empty prompts and completions, identical completions, ties, rows without any preference.
    `min_gap` does not apply to them, and their duplicates are kept and noted. An evaluation split does not depend on
    the other loaded splits.

    The store gets the groups of each split, under its number, and of each entry before any row is dropped, under names
    that begin with `SCRATCH`; only the former are needed afterwards.

    Raises:
        DataError: a source can't be read, a split is missing, more than a fifth of a split's rows are malformed, or no
            row of a split is left.
    """
    known = recipe_splits(data)
    wanted = known if splits is None else tuple(dict.fromkeys(splits))
    if unknown := [name for name in wanted if name not in known]:
        raise DataError(f"the recipe has no split {unknown[0]!r}", f"it has: {', '.join(known)}")
    trains = "train" in wanted
    if trains and data.near_duplicates is not None:
        require_datasketch()
    parsed, notes = parse_splits(data, known if trains else wanted)  # training rows are checked against all others
    curated = _curate_all(parsed, store)
    train = [rows.curation for rows in curated.get("train", ())]
    if trains:
        _drop_repeats(train, data)
    prompts = {name: [rows.curation.kept_prompts for rows in entries] for name, entries in curated.items()}
    joined = {name: np.concatenate(of_entries) for name, of_entries in prompts.items()}
    leaks = find_leaks(joined, drop=data.leaks == "drop")
    if trains:
        notes += note_shared_prompts([rows.entry.name for rows in parsed["train"]], prompts["train"])
        if data.leaks == "drop":
            others = [of_split for name, of_split in joined.items() if name != "train"]
            for curation, of_entry in zip(train, prompts["train"], strict=True):
                curation.drop(mark_leaks(of_entry, others), LEAK)
        drop_overlaps(train, data, notes.append)
    result = {
        name: _split_data(name, curated[name], data, seed, partial(store.keep, str(number)))
        for number, name in enumerate(wanted)
    }
    rows = [*chain.from_iterable(curated[name] for name in wanted)]
    return CuratedData(result, leaks, [*notes, *notes_on(result, leaks)], rows=rows)


def _curate_all(parsed: Mapping[str, Sequence[ParsedRows]], store: GroupStore) -> dict[str, list[CuratedRows]]:
    """The entries of each split, curated row by row."""
    return {
        name: [
            curate(name, rows, "train" if name == "train" else "evaluation", partial(store.keep, f"{SCRATCH}{n}-{k}"))
            for k, rows in enumerate(entries)
        ]
        for n, (name, entries) in enumerate(parsed.items())
    }


def _drop_repeats(entries: Sequence[Curation], data: DataSection) -> None:
    if data.duplicates == "drop":
        drop_duplicates(entries)
    if data.contradictions != "keep":
        drop_contradictions(entries, first_wins=data.contradictions == "first")
    if data.near_duplicates is not None:
        drop_near_duplicates(entries, data.near_duplicates)


def _split_data(name: str, entries: Sequence[CuratedRows], data: DataSection, seed: int, keep: Keep) -> SplitData:
    """The split after all rules: applies its limits, weights and additions."""
    for rows in entries:
        _require_rows(rows)
    limit = {str(split): most for split, most in data.limit.items()}.get(name)
    curations = [rows.curation for rows in entries]
    repeated = limit_entries([rows.parsed.entry for rows in entries], curations, limit, data.repeat, seed)
    if name == "train" and data.augment.other_prompts:
        add_other_prompts(curations, data.augment.other_prompts, seed)
    groups = keep(chain.from_iterable(curation.placed for curation in curations))
    return SplitData(name, groups, tuple(rows.part(most) for rows, most in zip(entries, repeated, strict=True)))


def _require_rows(rows: CuratedRows) -> None:
    if not len(rows.curation.kept):
        report, entry = rows.report, rows.parsed.entry.name
        listed = ", ".join(
            f"{cause} {n}, first {report.examples.get(cause, 'unknown')}" for cause, n in report.rows.dropped.items()
        )
        raise DataError(
            f"{f'{entry}: ' if entry else ''}{rows.parsed.source.description}: no row of the {rows.split} split is "
            f"left ({listed})",
            f"{'leave the entry out, ' if entry else ''}correct these rows, or relax the rule that drops them",
        )
