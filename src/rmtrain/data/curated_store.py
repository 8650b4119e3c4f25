"""Curated data in the cache: tables of groups, and what became of the rows, made once from sources in one state."""

import contextlib
import hashlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rmtrain.data.benchmarks.texts import read_benchmark_texts
from rmtrain.data.cache_entry import cached, opened
from rmtrain.data.decontaminate import Check, Compared, Overlap
from rmtrain.data.entries import entries_of
from rmtrain.data.group_table import GroupStore, GroupTable
from rmtrain.data.ledgers import Added, Ledger, SplitReport
from rmtrain.data.load import SCRATCH, CuratedData, load_data, recipe_splits
from rmtrain.data.local_files import Shard
from rmtrain.data.sources import RowPlaces, parse_source, state_of
from rmtrain.data.split_data import SplitData, SplitPart
from rmtrain.data.splits import Leak
from rmtrain.errors import DataError, InputError
from rmtrain.json_values import JsonObject
from rmtrain.recipe.data_schema import DataSection

_LAYOUT = "1"  # raise when entries change in form
_RECORD = "record.json"  # the file with all but the groups
_NOT_CURATION = {"max_length", "over_length"}  # keys that say what is done with curated groups


def stored_data(data: DataSection, seed: int, folder: Path, notify: Callable[[str], None]) -> CuratedData:
    """The curated splits of a recipe as `load_data` gives them, with groups that are read from tables in the cache.

    They are curated if the cache has none of the same recipe, from sources in the same state, by the same code. Text
    that Arrow can't store, which is half of a surrogate pair, is kept in memory instead.

    Raises:
        DataError: as `load_data`, or a source has changed while it was read.
    """
    try:
        name = _name(data, seed)
    except (InputError, OSError):
        return load_data(data, seed)  # its error explains best what is wrong with a source

    def write(staging: Path) -> None:
        curated = load_data(data, seed, store=GroupStore(staging))
        for path in staging.glob(f"{SCRATCH}*"):
            path.unlink()
        if _name(data, seed) != name:
            raise DataError("a source of the data changed while it was read", "run the command again")
        splits = [_split_record(staging, number, split, data) for number, split in enumerate(curated.splits.values())]
        record = {"splits": splits, "leaks": curated.leaks, "notes": curated.notes}
        (staging / _RECORD).write_text(json.dumps(record))

    try:
        return cached(folder / name, "curated rows", write, lambda entry: _read(entry, data), notify)
    except UnicodeEncodeError:
        return load_data(data, seed)


def open_stored(folder: Path, data: DataSection) -> CuratedData | None:
    """The curated splits in a folder that `stored_data` made for the same recipe; None if they are damaged or gone."""
    return opened(folder, lambda entry: _read(entry, data))


def known_splits(data: DataSection, seed: int, names: Sequence[str], folder: Path) -> dict[str, SplitData]:
    """Splits of a recipe with their groups in memory: from the cache if it has them, as after training, otherwise read
    and curated without the other splits.

    With `data.decontaminate`, the cache is not used: its name depends on the texts of benchmarks.

    Raises:
        DataError: as `load_data`.
    """
    known = None
    if not data.decontaminate:
        with contextlib.suppress(InputError, OSError):
            known = open_stored(folder / _name(data, seed), data)
    if known is None or not {*names} <= {*known.splits}:
        return load_data(data, seed, names).splits
    return {name: replace(known.splits[name], groups=[*known.splits[name].groups]) for name in names}


def _name(data: DataSection, seed: int) -> str:
    """A digest of all that decides what the curated data are.

    Raises:
        InputError: a source can't be read.
    """
    keys = data.model_dump(exclude=_NOT_CURATION)
    entries = chain.from_iterable(entries_of(data, split) for split in dict.fromkeys(("train", *recipe_splits(data))))
    sources: dict[str, Any] = {str(entry.section.source): entry.section.source for entry in entries}
    states = {text: state_of(parse_source(source)) for text, source in sources.items()}
    compared = [read_benchmark_texts(each, lambda line: None).compared for each in data.decontaminate]
    marks = [_LAYOUT, _code(), keys, seed, sorted(states.items()), compared]
    return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """A digest of the files of this package, by which rows are read and curated, and from which demo rows come."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(package)} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


# --- writing


def _split_record(folder: Path, number: int, split: SplitData, data: DataSection) -> JsonObject:
    entries = entries_of(data, split.name) if split.name in recipe_splits(data) else []
    parts: list[JsonObject] = []
    for place, part in enumerate(split.parts):
        lines = [shard.lines for shard in part.places.shards if shard.lines is not None]
        np.save(folder / f"{number}-{place}-lines.npy", np.fromiter(chain.from_iterable(lines), np.int64))
        parts.append(
            {
                "entry": part.entry.name,
                "split": split.name if part.entry in entries else "train",  # a held-out split has training's entries
                "groups": len(part.rows),
                "report": asdict(part.report),
                "description": part.places.description,
                "shards": [[each.name, each.rows, each.lines is not None, each.first] for each in part.places.shards],
                "origin": part.origin,
                "repeated": part.repeated,
            }
        )
    return {"name": split.name, "parts": parts}


# --- reading


def _read(folder: Path, data: DataSection) -> CuratedData:
    record = json.loads((folder / _RECORD).read_bytes())
    splits = [_read_split(folder, number, split, data) for number, split in enumerate(record["splits"])]
    leaks = [Leak(*leak) for leak in record["leaks"]]
    return CuratedData({split.name: split for split in splits}, leaks, record["notes"], folder)


def _read_split(folder: Path, number: int, split: Mapping[str, Any], data: DataSection) -> SplitData:
    groups = GroupTable.open(folder / f"{number}.arrow", f"{folder.name} {number}")
    rows = groups.column("row").to_numpy()
    parts, start = list[SplitPart](), 0
    for place, part in enumerate(split["parts"]):
        of_part = slice(start, start := start + part["groups"])
        lines = np.load(folder / f"{number}-{place}-lines.npy")
        parts.append(
            SplitPart(
                entry=next(entry for entry in entries_of(data, part["split"]) if entry.name == part["entry"]),
                report=_report_of(part["report"]),
                rows=_numbers(rows[of_part]),
                places=RowPlaces(part["description"], _shards_of(part["shards"], lines)),
                origin=part["origin"],
                repeated=part["repeated"],
            )
        )
    return SplitData(split["name"], groups, tuple(parts))


def _shards_of(shards: Sequence[Sequence[Any]], lines: Any) -> list[Shard]:
    read, start = list[Shard](), 0
    for name, rows, has_lines, first in shards:
        end = start + rows if has_lines else start
        read.append(Shard(name, rows, _numbers(lines[start:end]) if has_lines else None, first))
        start = end
    return read


def _numbers(values: Any) -> Sequence[int]:
    return array("q", values.tobytes())


def _report_of(report: Mapping[str, Any]) -> SplitReport:
    ledgers = {name: Ledger(**report[name]) for name in ("rows", "completions", "preferences")}
    checks = tuple(
        Check(
            **{
                **check,
                "compared": Compared(*check["compared"]),
                "overlaps": tuple(Overlap(**overlap) for overlap in check["overlaps"]),
            }
        )
        for check in report["checks"]
    )
    return SplitReport(
        **{**report, **ledgers, "notes": tuple(report["notes"]), "checks": checks, "added": Added(*report["added"])}
    )
