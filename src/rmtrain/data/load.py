"""A recipe's data section, or a SOURCE → curated splits: parse the rows, curate them, find leaks, limit."""

import contextlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmtrain.data.augment import add_other_prompts
from rmtrain.data.benchmarks.texts import drop_overlaps
from rmtrain.data.curate import CuratedRows, Purpose, curate
from rmtrain.data.curation import Curation, Keep
from rmtrain.data.entries import Entry
from rmtrain.data.group_table import IN_MEMORY, GroupStore
from rmtrain.data.mixture import drop_contradictions, drop_duplicates, limit_entries
from rmtrain.data.near_duplicates import drop_near_duplicates, require_datasketch
from rmtrain.data.notes import note_shared_prompts, notes_on
from rmtrain.data.parse import (
    MAX_MALFORMED,
    ParsedEntry,
    ParsedRows,
    holdout_shares,
    open_recipe_source,
    parse_by,
    parse_splits,
    unweighted,
)
from rmtrain.data.schemas.detect import SchemaChoice, SchemaError, choose_schema
from rmtrain.data.sources import SourceRows
from rmtrain.data.split_data import ReadAs, SplitData, SplitPart
from rmtrain.data.splits import LEAK, Leak, find_leaks, mark_leaks
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import MAPPING, DataSection

SCRATCH = "read-"  # the beginning of the names of tables with every readable row


@dataclass(frozen=True)
class CuratedData:
    """All splits of a recipe."""

    splits: dict[str, SplitData]
    leaks: list[Leak]
    notes: list[str]
    folder: Path | None = None  # in the cache, if the groups are read from there


def recipe_splits(data: DataSection) -> tuple[str, ...]:
    """The splits of a recipe: those of `data.splits` or of a `data.source` mapping, and its hold-outs."""
    own = data.source if isinstance(data.source, dict) else data.splits
    names = {*own, *holdout_shares(data)}
    known = [name for name in ("train", "validation", "test") if name in names]
    return (*known, *(name for name in own if name not in known))


def load_data(
    data: DataSection,
    seed: int,
    splits: Sequence[str] | None = None,
    keep: list[CuratedRows] | None = None,
    store: GroupStore = IN_MEMORY,
) -> CuratedData:
    """Read, parse, curate and limit the splits of a recipe (None: all of them).

    From training splits, rows without a preference, duplicates, contradictions, near duplicates and leaks are dropped,
    in this order, as the recipe says. From evaluation splits, only rows that can't be scored as a preference are
    dropped: malformed rows, empty prompts and completions, identical completions, ties, rows without any preference.
    `min_gap` does not apply to them, and their duplicates are kept and noted. An evaluation split does not depend on
    the other loaded splits. A list as `keep` receives every row and its result.

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
    if "train" in wanted and data.near_duplicates is not None:
        require_datasketch()
    needed = known if "train" in wanted else wanted  # training rows are checked against all other splits
    parsed, notes = parse_splits(data, needed)
    curations = _curations({name: parsed[name] for name in needed}, store)
    if "train" in needed:
        _drop_repeats(curations["train"], data)
    keys = {name: [curation.prompts[curation.kept] for curation in curations[name]] for name in needed}
    joined = {name: np.concatenate(own) for name, own in keys.items()}
    leaks = find_leaks(joined, drop=data.leaks == "drop")
    if "train" in needed:
        notes += note_shared_prompts([each.entry.name for each in parsed["train"]], keys["train"])
    if "train" in needed and data.leaks == "drop":
        others = [prompts for name, prompts in joined.items() if name != "train"]
        for curation, own in zip(curations["train"], keys["train"], strict=True):
            curation.drop(mark_leaks(own, others), LEAK)
    if "train" in needed:
        drop_overlaps(curations["train"], data, notes.append)
    result = {
        name: _split_data(name, parsed[name], curations[name], data, seed, partial(store.keep, str(number)))
        for number, name in enumerate(wanted)
    }
    if keep is not None:
        pairs = ((name, *each) for name in wanted for each in zip(parsed[name], curations[name], strict=True))
        keep += [CuratedRows(name, entry.parsed, curation) for name, entry, curation in pairs]
    return CuratedData(result, leaks, [*notes, *notes_on(result, leaks)])


def _curations(parsed: Mapping[str, Sequence[ParsedEntry]], store: GroupStore) -> dict[str, list[Curation]]:
    """The entries of each split, curated row by row."""
    curations: dict[str, list[Curation]] = {}
    for number, (name, entries) in enumerate(parsed.items()):
        purpose: Purpose = "train" if name == "train" else "evaluation"
        keeps = (partial(store.keep, f"{SCRATCH}{number}-{place}") for place in range(len(entries)))
        curations[name] = [curate(*each, purpose, keep) for each, keep in zip(entries, keeps, strict=True)]
    return curations


def _drop_repeats(entries: Sequence[Curation], data: DataSection) -> None:
    if data.duplicates == "drop":
        drop_duplicates(entries)
    if data.contradictions != "keep":
        drop_contradictions(entries, first_wins=data.contradictions == "first")
    if data.near_duplicates is not None:
        drop_near_duplicates(entries, data.near_duplicates)


def mapping_of(data: DataSection) -> ReadAs:
    """The keys by which a recipe says how rows are read, if it does."""
    return {name: value for name in MAPPING if (value := getattr(data, name)) != DataSection.model_fields[name].default}


def mappings_of(data: DataSection) -> list[ReadAs]:
    """All mappings of a recipe, its own and those of a mixture's entries, each once."""
    splits = data.source if isinstance(data.source, dict) else ()
    sections = [data, *(data.of_entry(entry) for split in splits for entry in data.entries(split))]
    mappings = [mapping_of(section) for section in sections]
    return [mapping for place, mapping in enumerate(mappings) if mapping and mapping not in mappings[:place]]


def read_source(
    source: str | SourceRows,
    split: str | None,
    data: DataSection | None = None,
    *,
    evaluation: bool,
    trained: Sequence[ReadAs] = (),
    notify: Callable[[str], None] = lambda line: None,
) -> SplitData:
    """Read one split of any SOURCE (None: the only one), with the schema, columns and preferences of `data`.

    With `evaluation`, rows that can't be scored as a preference are dropped and counted, as in `load_data`. Without it,
    for scoring, every row becomes a group with all its completions and preferences.

    Args:
        evaluation: rows are to be ranked, not only scored.
        trained: mappings of checkpoints' training (see `mappings_of`). The first that fits the columns is used, and
            `data` if none fits.
        notify: receives a line on the mapping that is used.

    Raises:
        DataError: as in `load_data`; for scoring, also the first row that can't be read.
    """
    data = unweighted(data or DataSection(source=source if isinstance(source, str) else source.description))
    rows = open_recipe_source(source, data).read(split) if isinstance(source, str) else source
    reading = choose_reading(rows, data, trained, notify)
    if not evaluation:
        return read_all(rows, reading)
    parsed = parse_by(reading.choice, rows, rows.split)
    return _only_part(rows, parsed, reading.data, "evaluation")


class Reading(NamedTuple):
    """How the rows of a source are read."""

    choice: SchemaChoice
    data: DataSection

    @property
    def marks(self) -> list[Any]:
        """Everything besides the row on which its groups depend."""
        return [self.choice.schema.name, mapping_of(self.data)]


def read_all(rows: SourceRows, reading: Reading, most_malformed: float = MAX_MALFORMED) -> SplitData:
    """For scoring: every row as a group with all its completions and preferences.

    Raises:
        DataError: rows can't be read; names the first, or three if they are more than `most_malformed` of all.
    """
    parsed = parse_by(reading.choice, rows, rows.split, empty_is_fault=False, most_malformed=most_malformed)
    if parsed.unusable:
        fault = parsed.unusable[0]
        raise DataError(
            f"{rows.where(fault.row)}: {fault.detail}",
            f"for scoring, every row must fit its row schema, {parsed.schema}",
        )
    return _only_part(rows, parsed, reading.data, "scoring")


def _only_part(rows: SourceRows, parsed: ParsedRows, data: DataSection, purpose: Purpose) -> SplitData:
    """A split that is not a mixture."""
    entry = Entry(data, rows.named_split or rows.split)
    curation = curate(entry, parsed, purpose)
    return SplitData(rows.split, [*curation.groups], (_part(rows.split, ParsedEntry(entry, parsed), curation),))


def choose_reading(
    rows: SourceRows, data: DataSection, trained: Sequence[ReadAs], notify: Callable[[str], None]
) -> Reading:
    """How to read rows; see `read_source`. Raises SchemaError if no mapping fits the columns."""
    mappings = [mapping for mapping in trained if mapping]
    for mapping in mappings:
        with contextlib.suppress(SchemaError):
            section = data.model_copy(update=mapping)
            reading = Reading(choose_schema(rows, section), section)
            notify(f"{rows.description}: read as in training, with {_as_overrides(mapping)}")
            return reading
    reading = Reading(choose_schema(rows, data), data)
    if mappings:
        given = " or ".join(map(_as_overrides, mappings))
        name = reading.choice.schema.name
        notify(f"{rows.description}: the columns do not fit {given}, as in training; the rows are read as {name} rows")
    return reading


def _as_overrides(mapping: ReadAs) -> str:
    return " ".join(f"data.{name}={json.dumps(value).replace(chr(34), '')}" for name, value in mapping.items())


def _split_data(
    name: str, parsed: Sequence[ParsedEntry], curations: Sequence[Curation], data: DataSection, seed: int, keep: Keep
) -> SplitData:
    """The split after all rules: applies its limits, weights and additions."""
    limit = {str(split): most for split, most in data.limit.items()}.get(name)
    for each, curation in zip(parsed, curations, strict=True):
        _require_rows(name, each, curation)
    repeated = limit_entries([each.entry for each in parsed], curations, limit, data.repeat, seed)
    if name == "train" and data.augment.other_prompts:
        add_other_prompts(curations, data.augment.other_prompts, seed)
    parts = zip(parsed, curations, repeated, strict=True)
    return SplitData(
        name,
        keep(chain.from_iterable(curation.placed for curation in curations)),
        tuple(_part(name, each, curation, most) for each, curation, most in parts),
    )


def _require_rows(name: str, each: ParsedEntry, curation: Curation) -> None:
    if not len(curation.kept):
        parsed = each.parsed
        report = curation.report(name, parsed.schema, parsed.total, parsed.source.where)
        causes = report.rows.dropped.items()
        listed = ", ".join(f"{cause} {n}, first {report.examples.get(cause, 'unknown')}" for cause, n in causes)
        of = f"{each.entry.name}: " if each.entry.name else ""
        raise DataError(
            f"{of}{parsed.source.description}: no row of the {name} split is left ({listed})",
            f"{'leave the entry out, ' if of else ''}correct these rows, or relax the rule that drops them",
        )


def _part(name: str, each: ParsedEntry, curation: Curation, repeated: int | None = None) -> SplitPart:
    entry, parsed = each
    read_as = mapping_of(entry.section)
    return SplitPart(
        entry=entry,
        report=curation.report(name, parsed.schema, parsed.total, parsed.source.where),
        rows=array("q", curation.rows.tobytes()),
        places=parsed.source.places,
        origin={**parsed.source.origin, **({"read_as": read_as} if read_as else {})},
        repeated=repeated,
    )
