"""From a recipe's data section, or a SOURCE on the command line, to curated preference groups with their books."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rmtrain.data.curate import DUPLICATE, Draft, Purpose, SplitReport, mark_duplicates
from rmtrain.data.parse import LayoutError, ParsedSplit, Unreadable, parse_split
from rmtrain.data.sources import MissingSplitError, Source, SourceRows, parse_source, pin_source, read_rows
from rmtrain.data.splits import (
    HELD_OUT,
    LEAK,
    LIMIT,
    Leak,
    find_leaks,
    hold_out,
    mark_beyond_limit,
    mark_leaks,
    prompt_key,
)
from rmtrain.data.types import PreferenceGroup
from rmtrain.data.ultrafeedback import RECORDING_FAULT
from rmtrain.errors import DataError
from rmtrain.recipe.schema import MAPPING, DataSection

Value = TypeVar("Value")


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
    read_as: dict[str, Any] = field(default_factory=dict)  # the mapping that the rows were read by
    where: Callable[[int], str] = "row {}".format  # the place of a source row

    @property
    def origin(self) -> dict[str, Any]:
        """What a result says of the rows."""
        read_as = {"read_as": self.read_as} if self.read_as else {}
        return {"source": self.source, "revision": self.revision, "fingerprint": self.fingerprint, **read_as}

    def place(self, group_id: str) -> str:
        """The place of the row that a group was made of."""
        return next(self.where(row) for group, row in zip(self.groups, self.rows, strict=True) if group.id == group_id)


@dataclass(frozen=True)
class PreparedData:
    """All splits of a recipe."""

    splits: dict[str, SplitData]
    leaks: list[Leak]
    notes: list[str]


def recipe_splits(data: DataSection) -> tuple[str, ...]:
    """The splits that a recipe has: those of `data.splits`, or of a `data.source` mapping, and those it holds out."""
    own = data.source if isinstance(data.source, dict) else data.splits
    names = {*own, *_shares(data)}
    known = [name for name in ("train", "validation", "test") if name in names]
    return (*known, *(name for name in own if name not in known))


def load_data(data: DataSection, seed: int, splits: Sequence[str] | None = None) -> PreparedData:
    """Read, parse, curate and limit the splits of a recipe (None: all of them).

    Training splits lose every row without a preference, duplicates, contradictions and leaks, as the recipe says.
    Evaluation splits lose only what can't be scored as a preference: malformed rows, empty prompts and completions,
    identical completions, ties, rows without any preference. `min_gap` does not thin them, and their duplicates are
    kept and noted. An evaluation split is the same whatever other splits are loaded with it.

    Raises:
        DataError: a source can't be read, a split is missing, more than a fifth of a split's rows is malformed, or no
            row of a split is left.
    """
    known = recipe_splits(data)
    wanted = known if splits is None else tuple(dict.fromkeys(splits))
    for name in wanted:
        if name not in known:
            raise DataError(f"the recipe has no split {name!r}", f"it has: {', '.join(known)}")
    needed = known if "train" in wanted else wanted  # training rows are checked against all other splits
    parsed, notes = _parse_splits(data, needed)
    drafts = {name: _curate(name, parsed[name], data, "train" if name == "train" else "evaluation") for name in needed}
    groups = {name: _groups(draft) for name, draft in drafts.items()}
    leaks = find_leaks(groups, drop=data.leaks == "drop")
    if "train" in drafts and data.leaks == "drop":
        others = [found for name, found in groups.items() if name != "train"]
        drafts["train"].drop(mark_leaks(groups["train"], others), LEAK)
    result = {}
    for name in wanted:
        limit = _by_name(data.limit).get(name)
        if limit is not None:
            drafts[name].drop(mark_beyond_limit(len(drafts[name].entries), limit, seed), LIMIT)
        result[name] = _finish(name, parsed[name], drafts[name], data)
    named: dict[str, list[str]] = {}
    for name, split in result.items():
        for note in split.report.notes:
            named.setdefault(note, []).append(name)
    notes += [f"{', '.join(names)}: {note}" for note, names in named.items()]
    notes += [_describe(leak) for leak in leaks]
    return PreparedData(result, leaks, notes)


def mapping_of(data: DataSection) -> dict[str, Any]:
    """What a recipe says of how its rows are read, where that is not left to the columns."""
    return {name: value for name in MAPPING if (value := getattr(data, name)) != DataSection.model_fields[name].default}


def read_source(
    source: str | SourceRows,
    split: str | None,
    data: DataSection | None = None,
    *,
    evaluation: bool,
    trained: Sequence[dict[str, Any]] = (),
    notify: Callable[[str], None] = lambda line: None,
) -> SplitData:
    """Read one split of any SOURCE (None: the only one), with the schema, columns and preferences of `data`.

    Rows that were read already are taken as they are.

    With `evaluation`, rows that can't be scored as a preference are dropped and counted, as `load_data` does. Without,
    for scoring, every row becomes a group, with all its completions and whatever preferences it has.

    Args:
        source: SOURCE.
        split: the source's name of it.
        data: how to read it.
        evaluation: rows are to be ranked, not only scored.
        trained: mappings that checkpoints were trained with (see `mapping_of`). The first that fits the columns is
            taken, and `data` where none does.
        notify: takes which of them was taken.

    Raises:
        DataError: as `load_data`; for scoring, also the first row that can't be read.
    """
    data = data or DataSection(source=source if isinstance(source, str) else source.description)
    found = read_rows(source, split, demo_groups=_by_name(data.demo_groups)) if isinstance(source, str) else source
    parsed, data = _parse_as_trained(found, data, evaluation, [mapping for mapping in trained if mapping], notify)
    if parsed.faults and not evaluation:
        fault = parsed.faults[0]
        raise DataError(
            f"{found.where(fault.row)}: {fault.detail}",
            f"row schema {parsed.schema}; every row to be scored must be readable",
        )
    draft = _curate(found.split, parsed, data, "evaluation" if evaluation else "scoring")
    return _finish(found.split, parsed, draft, data)


def _parse_as_trained(
    found: SourceRows,
    data: DataSection,
    evaluation: bool,
    trained: Sequence[dict[str, Any]],
    notify: Callable[[str], None],
) -> tuple[ParsedSplit, DataSection]:
    for mapping in trained:
        with contextlib.suppress(LayoutError):
            section = data.model_copy(update=mapping)
            parsed = parse_split(found, section, found.split, empty_is_fault=evaluation)
            notify(f"{found.description}: read as in training, with {_told(mapping)}")
            return parsed, section
    parsed = parse_split(found, data, found.split, empty_is_fault=evaluation)
    if trained:
        mappings = " or ".join(map(_told, trained))
        notify(f"{found.description}: the columns do not fit {mappings} of training; read as {parsed.schema} rows")
    return parsed, data


def _told(mapping: dict[str, Any]) -> str:
    """A mapping as a recipe says it."""
    return " ".join(f"data.{name}={json.dumps(value).replace(chr(34), '')}" for name, value in mapping.items())


def _by_name(values: Mapping[Any, Value]) -> dict[str, Value]:
    return {str(name): value for name, value in values.items()}


def _shares(data: DataSection) -> dict[str, int | float]:
    shares = {"validation": data.holdout.validation, "test": data.holdout.test}
    return {name: share for name, share in shares.items() if share}


def _parse_splits(data: DataSection, needed: Sequence[str]) -> tuple[dict[str, ParsedSplit], list[str]]:
    """Parse the needed splits, drawing from the training split those that the source lacks."""
    reader = _Reader(data)
    parsed: dict[str, ParsedSplit] = {}
    notes = []
    shares = _shares(data)
    if any(name in shares for name in needed) or "train" in needed:
        train = reader.read("train")
        lacking = {name: share for name, share in shares.items() if not reader.has(name, train)}
        notes = [
            f"data.holdout.{name} is not used: the source has that split" for name in shares if name not in lacking
        ]
        if "train" in needed or any(name in lacking for name in needed):
            parsed["train"] = parse_split(train, data, "train")
            sides = hold_out([prompt_key(row.prompt) for _, row in parsed["train"].rows], lacking, data.holdout.seed)
            parsed.update(_carve(parsed["train"], sides, ["train", *lacking]))
    for name in needed:
        if name not in parsed:
            parsed[name] = parse_split(reader.read(name), data, name)
    return parsed, notes


class _Reader:
    """Reads a recipe's splits, each distinct source at one commit."""

    def __init__(self, data: DataSection) -> None:
        self._data = data
        self._names_there = _by_name(data.splits)
        self._pinned: dict[str, Source] = {}

    def has(self, split: str, train: SourceRows) -> bool:
        """Whether the recipe names a split and its source has it; `train` tells what a single source has."""
        if isinstance(self._data.source, dict):
            return split in self._data.source
        return self._names_there.get(split) in train.splits

    def read(self, split: str) -> SourceRows:
        text = self._data.source.get(split) if isinstance(self._data.source, dict) else self._data.source
        if text is None:
            raise DataError(
                f"data.source has no entry for the split {split}", f"it has: {', '.join(self._data.source)}"
            )
        if str(text) not in self._pinned:
            self._pinned[str(text)] = pin_source(parse_source(text))
        source = self._pinned[str(text)]
        name_there = self._names_there.get(split, split)
        try:
            return read_rows(
                source,
                name_there,
                any_split=isinstance(self._data.source, dict),
                demo_groups=_by_name(self._data.demo_groups),
            )
        except MissingSplitError as error:
            raise MissingSplitError(
                f"{source}: no split {name_there!r}, which the recipe uses as its {split} split",
                f"{error.hint}; data.splits says which splits are used, data.holdout draws some from train",
            ) from None


def _carve(train: ParsedSplit, sides: list[str | None], names: Sequence[str]) -> dict[str, ParsedSplit]:
    """The training rows by side; rows that can't be read stay with `train`."""
    result = {}
    for name in names:
        mine = [place for place, side in enumerate(sides) if (side or "train") == name]
        rows, ids = [train.rows[place] for place in mine], [train.ids[place] for place in mine]
        result[name] = train._replace(rows=rows, ids=ids, faults=[], total=len(mine))
    away = [Unreadable(index, HELD_OUT) for (index, _), side in zip(train.rows, sides, strict=True) if side]
    result["train"] = result["train"]._replace(faults=[*train.faults, *away], total=train.total)
    return result


def _curate(name: str, parsed: ParsedSplit, data: DataSection, purpose: Purpose) -> Draft:
    draft = Draft(name, parsed.schema, parsed.source.where)
    for fault in parsed.faults:
        draft.lose_row(*fault)
    min_gap = data.min_gap if purpose == "train" else 0.0
    for (index, row), group_id in zip(parsed.rows, parsed.ids, strict=True):
        draft.add(index, row, group_id, purpose, data.preferences, min_gap)
    suspect = sum(row.suspect for _, row in parsed.rows)
    if suspect:
        fate = "left out" if data.score == "overall" and purpose != "scoring" else "kept"
        draft.notes.append(f"completions with an {RECORDING_FAULT}, a recording fault of the source: {suspect}, {fate}")
    if purpose == "evaluation" and (duplicates := sum(mark_duplicates(draft))):
        draft.notes.append(f"duplicates, which evaluation splits keep: {duplicates}")
    if purpose == "train":
        if data.duplicates == "drop":
            draft.drop(mark_duplicates(draft), DUPLICATE)
        if data.contradictions == "drop":
            draft.drop_contradictions()
    draft.notes += parsed.notes
    return draft


def _groups(draft: Draft) -> list[PreferenceGroup]:
    return [entry.group for entry in draft.entries]


def _finish(name: str, parsed: ParsedSplit, draft: Draft, data: DataSection) -> SplitData:
    report, source = draft.report(parsed.total), parsed.source
    if not draft.entries:
        causes = ", ".join(f"{cause} {n}" for cause, n in report.rows.dropped.items())
        raise DataError(f"{source.description}: no row of the {name} split is left ({causes})")
    return SplitData(
        name=name,
        groups=_groups(draft),
        report=report,
        source=source.description,
        revision=source.revision,
        fingerprint=source.fingerprint,
        rows=tuple(entry.row for entry in draft.entries),
        read_as=mapping_of(data),
        where=source.where,
    )


def _describe(leak: Leak) -> str:
    fate = "dropped" if leak.dropped else "kept"
    return (
        f"prompts in both {leak.first} and {leak.second}: {leak.prompts}; "
        f"rows of {leak.first} with one: {leak.rows}, {fate}"
    )
