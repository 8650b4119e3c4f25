"""The content of a run folder, for reports. A missing or damaged file gives a note, not an error."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rmtrain.documents import LogLine, Result, sound
from rmtrain.errors import DataError, RmtrainError
from rmtrain.evaluation.gap_figures import GapResult
from rmtrain.evaluation.results import ScoredRow, read_rows
from rmtrain.evaluation.rows_files import ROWS_SUFFIX
from rmtrain.files import read_bytes, read_text
from rmtrain.json_values import parse_json
from rmtrain.runs import read_manifest

_ORDER = ("validation", "test")  # other splits follow in alphabetical order


@dataclass(frozen=True)
class RunRecord:
    """A run folder as read."""

    folder: Path
    manifest: Mapping[str, Any]
    recipe: Mapping[str, Any]  # resolved, as plain values; empty if it can't be read
    sidecar: Mapping[str, Any]  # `final/rmtrain.json`; empty without a final model
    steps: list[LogLine] = field(default_factory=list)  # log lines of training, in order
    validations: list[LogLine] = field(default_factory=list)  # log lines of validation during training, in order
    splits: dict[str, Result] = field(default_factory=dict)  # results of `eval` by split
    rows: dict[str, list[ScoredRow]] = field(default_factory=dict)  # scored rows by split, if they match the result
    benchmarks: dict[str, Result] = field(default_factory=dict)  # results of `rewardbench` by benchmark
    gaps: list[GapResult] = field(default_factory=list)  # results of `gap` that judged the run's model
    notes: tuple[str, ...] = ()  # a sentence for each missing or damaged file

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.resolve().name

    def setting(self, section: str, key: str) -> Any:
        """A value of the recipe; None if the section is missing."""
        values = self.recipe.get(section)
        return values.get(key) if isinstance(values, dict) else None


def read_run(folder: Path, with_rows: bool = True) -> RunRecord:
    """Read a run folder.

    Raises:
        CheckpointError: the folder is not a run.
    """
    notes = list[str]()
    manifest = read_manifest(folder, notes)
    recipe = _read(folder, "recipe.yaml", yaml.safe_load, notes)
    sidecar = _read(folder, "final/rmtrain.json", parse_json, notes) if (folder / "final").is_dir() else {}
    if not (folder / "final").is_dir():
        notes.append("There is no final model.")
    steps, validations = _read_metrics(folder, notes)
    splits = _read_results(folder, "eval", notes)
    if not splits:
        notes.append("No split has been scored yet (rmtrain eval).")
    in_sidecar = sidecar.get("recipe")
    return RunRecord(
        folder=folder,
        manifest=manifest,
        recipe=recipe or (in_sidecar if isinstance(in_sidecar, dict) else {}),
        sidecar=sidecar,
        steps=steps,
        validations=validations,
        splits={name: {**splits[name], "split": name} for name in sorted(splits, key=_rank)},
        rows=_read_rows(folder, splits, notes) if with_rows else {},
        benchmarks=_read_results(folder, "rewardbench", notes),
        gaps=_read_gaps(folder, notes),
        notes=tuple(notes),
    )


def _rank(split: str) -> tuple[int, str]:
    return (_ORDER.index(split) if split in _ORDER else len(_ORDER), split)


def _read(folder: Path, name: str, parse: Callable[[str], Any], notes: list[str]) -> Mapping[str, Any]:
    """The mapping in a file; empty, with a note, if the file is missing or damaged."""
    path = folder / name
    if not os.path.lexists(path):
        notes.append(f"There is no {name}.")
        return {}
    try:
        value = parse(read_text(path))
    except (RmtrainError, ValueError, RecursionError, yaml.YAMLError):
        notes.append(f"{name} can't be read and is left out.")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{name} has unexpected content and is left out.")
        return {}
    return value


def _read_results(folder: Path, place: str, notes: list[str]) -> dict[str, Result]:
    """The results in a folder of the run, by file name."""
    paths = [path for path in sorted((folder / place).glob("*.json")) if not path.name.endswith(".flat.json")]
    results = {}
    for path in paths:
        if value := _read(folder, f"{place}/{path.name}", parse_json, notes):
            result, faults = sound(value, Result)
            notes += [f"{place}/{path.name}: {fault}; this figure is left out." for fault in faults]
            results[path.stem] = result
    return results


def _read_gaps(folder: Path, notes: list[str]) -> list[GapResult]:
    gaps = []
    for path in sorted((folder / "gap").glob("*.json")):
        if value := _read(folder, f"gap/{path.name}", parse_json, notes):
            try:
                gaps.append(GapResult.from_json(value))
            except DataError as error:
                notes.append(f"gap/{path.name}: {error.message}; this result is left out.")
    return gaps


def _read_metrics(folder: Path, notes: list[str]) -> tuple[list[LogLine], list[LogLine]]:
    """Log lines of training and of validation."""
    path, lines = folder / "metrics.jsonl", list[str]()
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines() if os.path.lexists(path) else []
    except RmtrainError:
        notes.append("metrics.jsonl can't be read and is left out.")
    values = [value for value in map(_parse_line, lines) if value is not None]
    if len(values) < len(lines):
        unread = len(lines) - len(values)
        notes.append(f"{unread} of {len(lines)} lines of metrics.jsonl can't be read and are left out.")
    steps = [value for value in values if "eval_accuracy" not in value]
    if not steps:
        notes.append("No training step has been logged (metrics.jsonl), so there are no training curves.")
    return steps, [value for value in values if "eval_accuracy" in value]


def _parse_line(line: str) -> LogLine | None:
    try:
        value = parse_json(line)
        return sound(value, LogLine)[0] if isinstance(value, dict) else None
    except (ValueError, DataError):
        return None


def _read_rows(folder: Path, splits: Mapping[str, Result], notes: list[str]) -> dict[str, list[ScoredRow]]:
    """Scored rows of the splits, if they can be read and match the split's result."""
    scored = {}
    for name, result in splits.items():
        path = folder / "eval" / f"{name}{ROWS_SUFFIX}"
        try:
            rows = read_rows(path) if path.exists() else None
        except (RmtrainError, OSError):
            notes.append(f"eval/{path.name} can't be read, so the figures of the split {name} are not drawn.")
            continue
        if rows is None:
            notes.append(f"There is no eval/{path.name}, so the figures of the split {name} are not drawn.")
        elif sum(len(row.preferences) for row in rows) != result.get("n"):
            notes.append(f"eval/{path.name} and eval/{name}.json differ in n, so the split's figures are not drawn.")
        else:
            scored[name] = rows
    return scored
