"""A recipe's data section, or a SOURCE → curated splits: parse the rows, curate them, find leaks, limit."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rmtrain.data.curate import Curation, SplitReport, curate
from rmtrain.data.parse import ParsedRows, holdout_shares, open_recipe_source, parse_rows, parse_splits
from rmtrain.data.schemas.detect import SchemaError
from rmtrain.data.sources import RowPlaces, SourceRows
from rmtrain.data.splits import LEAK, LIMIT, Leak, find_leaks, leak_key, mark_beyond_limit, mark_leaks
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import MAPPING, DataSection

ReadAs = dict[str, Any]  # the fields of MAPPING that a recipe sets: how its rows are read


@dataclass(frozen=True)
class SplitData:
    """The groups of one split, and where they came from."""

    name: str
    groups: list[PreferenceGroup]
    report: SplitReport
    source: str  # description of the source
    revision: str | None  # commit of a hub dataset
    fingerprint: str  # SHA-256 of the source's content
    rows: tuple[int, ...]  # the source row that each group was made of, from 0
    places: RowPlaces
    source_rows: Mapping[str, Any] = field(default_factory=dict)  # how to read them again, as in `SourceRows.origin`
    read_as: ReadAs = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """What a result records of its rows: their origin in the source, and `read_as` unless it is empty."""
        recorded = {"source": self.source, "revision": self.revision, "fingerprint": self.fingerprint}
        return {**recorded, **self.source_rows, **({"read_as": self.read_as} if self.read_as else {})}

    def place(self, group_id: str) -> str:
        """The place of the row that a group was made of."""
        return next(
            self.places.of(row) for group, row in zip(self.groups, self.rows, strict=True) if group.id == group_id
        )


@dataclass(frozen=True)
class CuratedData:
    """All splits of a recipe."""

    splits: dict[str, SplitData]
    leaks: list[Leak]
    notes: list[str]


def recipe_splits(data: DataSection) -> tuple[str, ...]:
    """The splits of a recipe: those of `data.splits`, or of a `data.source` mapping, and those it holds out."""
    own = data.source if isinstance(data.source, dict) else data.splits
    names = {*own, *holdout_shares(data)}
    known = [name for name in ("train", "validation", "test") if name in names]
    return (*known, *(name for name in own if name not in known))


def load_data(data: DataSection, seed: int, splits: Sequence[str] | None = None) -> CuratedData:
    """Read, parse, curate and limit the splits of a recipe (None: all of them).

    Training splits lose every row without a preference, duplicates, contradictions and leaks, as the recipe says.
    Evaluation splits lose only what can't be scored as a preference: malformed rows, empty prompts and completions,
    identical completions, ties, rows without any preference. `min_gap` does not apply to them, and their duplicates
    are kept and noted. An evaluation split does not depend on the other splits loaded with it.

    Raises:
        DataError: a source can't be read, a split is missing, more than a fifth of a split's rows are malformed, or no
            row of a split is left.
    """
    known = recipe_splits(data)
    wanted = known if splits is None else tuple(dict.fromkeys(splits))
    if unknown := [name for name in wanted if name not in known]:
        raise DataError(f"the recipe has no split {unknown[0]!r}", f"it has: {', '.join(known)}")
    needed = known if "train" in wanted else wanted  # training rows are checked against all other splits
    parsed, notes = parse_splits(data, needed)
    curations = {name: curate(parsed[name], data, "train" if name == "train" else "evaluation") for name in needed}
    keys = {name: [leak_key(group.prompt) for group in curation.groups] for name, curation in curations.items()}
    leaks = find_leaks(keys, drop=data.leaks == "drop")
    if "train" in needed and data.leaks == "drop":
        others = [of_split for name, of_split in keys.items() if name != "train"]
        curations["train"].drop(mark_leaks(keys["train"], others), LEAK)
    result = {}
    for name in wanted:
        limit = {str(split): most for split, most in data.limit.items()}.get(name)
        if limit is not None:
            curations[name].drop(mark_beyond_limit(len(curations[name].kept), limit, seed), LIMIT)
        result[name] = _split_data(name, parsed[name], curations[name], data)
    by_note: dict[str, list[str]] = {}
    for name, split in result.items():
        for note in split.report.notes:
            by_note.setdefault(note, []).append(name)
    notes += [f"{', '.join(names)}: {note}" for note, names in by_note.items()]
    notes += [
        f"prompts in both {leak.first} and {leak.second}: {leak.prompts}; "
        f"rows of {leak.first} with one: {leak.rows}, {'dropped' if leak.dropped else 'kept'}"
        for leak in leaks
    ]
    return CuratedData(result, leaks, notes)


def mapping_of(data: DataSection) -> ReadAs:
    """How a recipe says that its rows are read, where it does not leave that to the columns."""
    return {name: value for name in MAPPING if (value := getattr(data, name)) != DataSection.model_fields[name].default}


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

    With `evaluation`, rows that can't be scored as a preference are dropped and counted, as `load_data` does. Without,
    for scoring, every row becomes a group, with all its completions and whatever preferences it has.

    Args:
        source: SOURCE, or its rows.
        split: the source's name of it.
        data: how to read it.
        evaluation: rows are to be ranked, not only scored.
        trained: mappings that checkpoints were trained with (see `mapping_of`). The first that fits the columns is
            used, and `data` if none does.
        notify: receives which of them was used.

    Raises:
        DataError: as `load_data`; for scoring, also the first row that can't be read.
    """
    data = data or DataSection(source=source if isinstance(source, str) else source.description)
    rows = open_recipe_source(source, data).read(split) if isinstance(source, str) else source
    parsed, data = _parse_as_trained(rows, data, evaluation, [mapping for mapping in trained if mapping], notify)
    if parsed.unusable and not evaluation:
        fault = parsed.unusable[0]
        raise DataError(
            f"{rows.where(fault.row)}: {fault.detail}",
            f"row schema {parsed.schema}; every row to be scored must be readable",
        )
    return _split_data(rows.split, parsed, curate(parsed, data, "evaluation" if evaluation else "scoring"), data)


def _parse_as_trained(
    rows: SourceRows, data: DataSection, evaluation: bool, trained: Sequence[ReadAs], notify: Callable[[str], None]
) -> tuple[ParsedRows, DataSection]:
    for mapping in trained:
        with contextlib.suppress(SchemaError):
            section = data.model_copy(update=mapping)
            parsed = parse_rows(rows, section, rows.split, empty_is_fault=evaluation)
            notify(f"{rows.description}: read as in training, with {_as_overrides(mapping)}")
            return parsed, section
    parsed = parse_rows(rows, data, rows.split, empty_is_fault=evaluation)
    if trained:
        mappings = " or ".join(map(_as_overrides, trained))
        notify(f"{rows.description}: the columns do not fit {mappings} of training; read as {parsed.schema} rows")
    return parsed, data


def _as_overrides(mapping: ReadAs) -> str:
    return " ".join(f"data.{name}={json.dumps(value).replace(chr(34), '')}" for name, value in mapping.items())


def _split_data(name: str, parsed: ParsedRows, curation: Curation, data: DataSection) -> SplitData:
    source = parsed.source
    report = curation.report(name, parsed.schema, parsed.total, source.where)
    if not curation.kept:
        causes = ", ".join(f"{cause} {n}" for cause, n in report.rows.dropped.items())
        raise DataError(f"{source.description}: no row of the {name} split is left ({causes})")
    return SplitData(
        name=name,
        groups=curation.groups,
        report=report,
        source=source.description,
        revision=source.revision,
        fingerprint=source.fingerprint,
        rows=tuple(candidate.row for candidate in curation.kept),
        source_rows=source.origin,
        read_as=mapping_of(data),
        places=source.places,
    )
