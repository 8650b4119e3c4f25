"""Two models on the same rows: which rows to compare on, and which are still to be scored."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rmtrain.data.benchmarks import benchmark_named
from rmtrain.data.benchmarks.load import core_groups
from rmtrain.data.load import load_data, recipe_splits
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import CheckpointError, DataError, InputError
from rmtrain.evaluation.rows_files import ROWS_SUFFIX, result_beside, rows_of_result, scored_rows
from rmtrain.evaluation.sources import data_name, data_section, read_to_rank, section_for
from rmtrain.model.weights import fingerprint_of, local_folder
from rmtrain.recipe.recorded import read_recorded_file
from rmtrain.scoring.scorer import ScorerRequest

_SAME_ROWS = ("fingerprint", "read_as")  # keys of a result's `data` that are equal if the rows are the same

Notify = Callable[[str], None]


class ModelRef(Protocol):
    """A checkpoint as the user names it."""

    @property
    def request(self) -> ScorerRequest:
        """Opens the checkpoint."""

    @property
    def results(self) -> Path:
        """Folder for its results."""


@dataclass(frozen=True)
class Side:
    """A or B: a rows file, a checkpoint with the rows scored by it, or only such rows."""

    rows: Path | None = None
    model: ModelRef | None = None
    scored: Mapping[str, Path] | None = None  # its rows file for each split or benchmark


@dataclass(frozen=True)
class RowsRequest:
    """The rows that the user asks to compare on; by default rows that both models have scored."""

    data: str | None = None  # SOURCE
    split: str | None = None
    benchmark: str | None = None
    mapping: Mapping[str, Any] | None = None  # from --columns and --row-schema


@dataclass(frozen=True)
class Target:
    """The rows on which to score a model."""

    name: str  # split, benchmark or data
    groups: Sequence[PreferenceGroup]
    origin: Mapping[str, Any]
    benchmark: str | None = None


@dataclass(frozen=True)
class Plan:
    """The rows files to compare, and the models to score first."""

    paths: Sequence[Path]  # the files of A and of B
    target: Target | None  # rows to score; None if all are scored
    missing: Sequence[tuple[ModelRef, Path]]


def rows_named(text: str) -> Side | None:
    """The rows that A or B names: a rows file, a result file, gap.json:MODEL, RUN:split, or a folder. None for a CKPT.

    Raises:
        DataError: a file or split does not exist, or a result names no rows.
    """
    path = Path(text)
    if path.is_file():
        return Side(path if path.name.endswith(".jsonl") else rows_of_result(path))
    folder, mark, split = text.rpartition(":")
    if mark and folder.endswith(".json") and Path(folder).is_file():
        return Side(rows_of_result(Path(folder), split))
    if mark and Path(folder).is_dir() and not path.exists():
        scored = scored_rows(Path(folder))
        if split not in scored:
            hint = f"it has: {', '.join(scored)}" if scored else "score it with rmtrain eval"
            raise DataError(f"{folder}: no rows of the split {split!r}", hint)
        return Side(scored[split])
    if path.suffix in (".json", ".jsonl") and not path.exists():
        raise DataError(f"{text}: no such file", "name a .rows.jsonl file, a result .json file, RUN[:split] or a CKPT")
    scored = scored_rows(path)  # for results that were moved, or whose weights were deleted
    weights = any(path.glob("*config.json")) or (path / "final").is_dir()
    return Side(scored=scored) if scored and not weights else None


def plan(sides: Sequence[Side], request: RowsRequest, notify: Notify) -> Plan:
    """Decide on which rows A and B are compared, and which of them must be scored first.

    Raises:
        DataError: neither was scored on anything, or the rows can't be read.
        CheckpointError: a checkpoint does not exist.
        InputError: both name rows, and the request names other rows.
    """
    name = _name(sides, request)
    existing = [side.rows or _current_rows(side, name, notify) for side in sides]
    other_split = request.benchmark is not None and request.split is not None
    target = None
    if None in existing or request.data is not None or other_split:
        scored = next((rows for side in sides if (rows := side.rows or (side.scored or {}).get(name))), None)
        if scored is not None and request.data is None and not other_split:
            target = _scored_on(scored, name, notify)
        else:
            target = _requested(sides, name, request, notify)
    paths = [_rows_path(side, rows, name, target) for side, rows in zip(sides, existing, strict=True)]
    missing = [(side.model, path) for side, path in zip(sides, paths, strict=True) if not path.exists() and side.model]
    return Plan(paths, target, missing)


def _name(sides: Sequence[Side], request: RowsRequest) -> str:
    """The requested split or benchmark, else the first on which both were scored, else the first of either."""
    name = request.benchmark or (data_name(request.data, request.split) if request.data is not None else request.split)
    named = next((side.rows for side in sides if side.rows), None)
    if name is not None:
        if all(side.rows for side in sides):
            raise InputError(
                "A and B both name rows, so --data, --split and --benchmark do not apply",
                "name checkpoints, or leave these options out",
            )
        return name
    have = [name for side in sides for name in side.scored or {}]
    if named is not None:
        name = named.name.removesuffix(ROWS_SUFFIX)
        return name if name in have or not have or result_beside(named).get("data") else have[0]
    if not have:
        _require_folders(sides)
        raise DataError("neither A nor B has been scored yet", "name rows with --data or --benchmark")
    return next((name for name in sides[0].scored or {} if name in (sides[1].scored or {})), have[0])


def _require_folders(sides: Sequence[Side]) -> None:
    """Raise CheckpointError for names that are not local folders; they may be models on the hub."""
    wheres = [side.model.request.where for side in sides if side.model]
    if absent := [where for where in wheres if not Path(where).exists()]:
        raise CheckpointError(
            f"{' and '.join(absent)}: no such folder",
            "name folders; for hub models, name rows with --data or --benchmark",
        )


def _current_rows(side: Side, name: str, notify: Notify) -> Path | None:
    """Rows scored by a side, unless their result shows that its weights have changed since."""
    rows = (side.scored or {}).get(name)
    recorded = result_beside(rows).get("weights_fingerprint") if rows is not None else None
    if side.model is None or recorded is None:
        return rows
    try:
        weights = _weights(side.model)
    except CheckpointError as error:
        notify(f"{rows} is used unchecked, since the weights can't be read: {error.message}")
        return rows
    if recorded == weights:
        return rows
    notify(f"{side.model.request.where}: its weights have changed since {rows} was written")
    return None


def _weights(model: ModelRef) -> str:
    """Digest of the weights' files of a checkpoint and of its reference, as in results; does not load the model."""
    names = [name for name in (model.request.where, model.request.options.reference) if name is not None]
    return fingerprint_of(*map(local_folder, names))


def _scored_on(rows: Path, name: str, notify: Notify) -> Target:
    """The data of scored rows, read again in the same way: a run's split by its recipe."""
    result, section = result_beside(rows), None
    data: Mapping[str, Any] = result.get("data") or {}
    if not data:
        raise DataError(f"{rows}: no result beside it names the data", "name the data with --data or --benchmark")
    location, split = data.get("location"), data.get("split")
    if location is None:  # a result of version 0.1 has only a description, such as `pairs.json (test)`
        described = re.fullmatch(r"(.+?)(?: \((\S+)\))?", data["source"])
        location, split = described.groups() if described else (data["source"], None)
    recipe = rows.parent.parent / "recipe.yaml"
    if recipe.exists():
        recorded = read_recorded_file(recipe)
        section = recorded.data
        if name in recipe_splits(section):
            own = load_data(section, recorded.seed, [name]).splits[name]
            if own.fingerprint == data["fingerprint"]:
                return Target(name, own.groups, data)
    if "entries" in data:
        hint = "name other rows with --data, or evaluate both checkpoints on the split"
        raise DataError(f"{rows}: scored on {data['source']}, which can't be read again in the same way", hint)
    if benchmark := result.get("benchmark"):
        return _of_benchmark(benchmark, location, split, notify)
    section, trained = section_for(location, section, data.get("read_as"))
    own = read_to_rank(location, split, section, trained, notify)
    return Target(name, own.groups, own.origin)


def _requested(sides: Sequence[Side], name: str, request: RowsRequest, notify: Notify) -> Target:
    if request.benchmark is not None:
        return _of_benchmark(request.benchmark, request.data, request.split, notify)
    if request.data is None:
        raise DataError(f"neither A nor B was scored on {name!r} yet", "name its rows with --data")
    trained = [data_section(side.model.request.where, notify) for side in sides if side.model]
    section, mappings = section_for(request.data, None, request.mapping, trained)
    rows = read_to_rank(request.data, request.split, section, mappings, notify)
    return Target(name, rows.groups, rows.origin)


def _of_benchmark(name: str, data: str | None, split: str | None, notify: Notify) -> Target:
    return Target(name, *core_groups(benchmark_named(name), data, split, notify), name)


def _rows_path(side: Side, existing: Path | None, name: str, target: Target | None) -> Path:
    """The file of the target's rows, or the path for new ones, which depends on rows and weights."""
    if side.rows is not None:
        return side.rows
    if existing is not None:
        data = result_beside(existing).get("data", {})
        if target is None or all(data.get(key) == target.origin.get(key) for key in _SAME_ROWS):
            return existing
    if side.model is None:
        files = ", ".join(map(str, (side.scored or {}).values()))
        raise DataError(f"no rows of {name!r} on this data among {files}", "name a CKPT")
    assert target is not None
    digest = hashlib.sha256(f"{_weights(side.model)} {target.groups}".encode()).hexdigest()
    return side.model.results / "compare" / f"{name}-{digest[:12]}{ROWS_SUFFIX}"
