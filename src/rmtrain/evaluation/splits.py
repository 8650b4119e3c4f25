"""Evaluation of a scorer on splits, benchmarks or the rows of a comparison: rows, figures and their files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rmtrain.data.benchmarks.definition import Benchmark
from rmtrain.data.benchmarks.load import BenchmarkRows
from rmtrain.data.split_data import SplitData
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.documents import Result
from rmtrain.evaluation.benchmarks import benchmark_result
from rmtrain.evaluation.compare import Target
from rmtrain.evaluation.disagreement import ensemble_fields
from rmtrain.evaluation.flat_results import flat_form
from rmtrain.evaluation.results import ScoredRow, read_rows, scored_row, summarise, write_rows
from rmtrain.evaluation.rows_files import ROWS_SUFFIX
from rmtrain.files import write_json, writing
from rmtrain.json_values import JsonObject
from rmtrain.model.devices import process_state
from rmtrain.scoring.partial import Partials
from rmtrain.scoring.scorer import Scorer, ScoringTask, short_digest

if TYPE_CHECKING:
    from rmtrain.evaluation.parity import Parity


def score_rows(
    scorer: Scorer,
    name: str,
    groups: Sequence[PreferenceGroup],
    tokens_per_batch: int,
    path: Path,
    display: Display,
    split: SplitData | None = None,
    drops: bool = False,
) -> list[ScoredRow]:
    """Score groups and write their rows file atomically; an interrupted scoring continues where it stopped.

    Args:
        groups: what to score; long ones are truncated.
        split: the split that the groups are of; messages say where its rows are.
        drops: leave out groups that the chat template refuses, up to a fifth of all.

    Returns:
        The rows, on every process.

    Raises:
        InputError: the chat template refuses a group, or with `drops` too many.
        RunFailedError: the processes have read different rows or weights, or as in `Scorer.score`.
        WriteError: the file can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    partials = Partials(path, display)
    place = split.place if split is not None else "group {}".format
    with partials.kept():
        scores = scorer.score(ScoringTask(name, groups, tokens_per_batch, partials, display, place, drops))
        rows = [scored_row(group, score) for group, score in zip(groups, scores, strict=True) if score is not None]
        if process_state().is_main_process:
            write_rows(path, rows)
    if process_state().is_main_process:
        partials.remove()
    return rows


class RowsOnce(NamedTuple):
    """The rows of a split scored by one scorer, and their file."""

    rows: list[ScoredRow]
    path: Path


def score_once(
    scorer: Scorer, name: str, split: SplitData, tokens_per_batch: int | None, folder: Path, display: Display
) -> RowsOnce:
    """Rows of a split in a file named after scorer and data; an existing one is reused. Refused groups are left out."""
    what = f"{scorer.info.fingerprint} {split.fingerprint} {split.read_as} {len(split.groups)}"
    path = folder / f"{_file_name(name)}-{short_digest(what)}{ROWS_SUFFIX}"
    if (rows := _written(path, split.groups)) is not None:
        display.note(f"{name}: already scored in {path}")
        return RowsOnce(rows, path)
    budget = tokens_per_batch or scorer.info.tokens_per_batch
    return RowsOnce(score_rows(scorer, name, split.groups, budget, path, display, split=split, drops=True), path)


def _file_name(name: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in name)
    return kept[-60:].strip("-") or short_digest(name)


def _written(path: Path, groups: Iterable[PreferenceGroup]) -> list[ScoredRow] | None:
    """The rows of a finished file, if they belong to these groups."""
    if not path.is_file():
        return None
    pairs = {group.id: tuple((p.better, p.worse) for p in group.preferences) for group in groups}
    rows = read_rows(path)
    return rows if all(pairs.get(row.id) == row.preferences for row in rows) else None


def evaluate_splits(
    scorer: Scorer, splits: Mapping[str, SplitData], tokens_per_batch: int, folder: Path, display: Display
) -> list[Result]:
    """Evaluate each split; its key names the result."""
    return [evaluate_split(scorer, name, split, tokens_per_batch, folder, display) for name, split in splits.items()]


def evaluate_split(
    scorer: Scorer, name: str, split: SplitData, tokens_per_batch: int, folder: Path, display: Display
) -> Result:
    """Ranking accuracy on a split and on each entry of a mixture, as in `eval --json`.

    Writes `<name>.json` and `<name>.rows.jsonl`.
    """
    path = folder / f"{name}{ROWS_SUFFIX}"
    rows = score_rows(scorer, name, split.groups, tokens_per_batch, path, display, split=split, drops=True)
    result: JsonObject = {
        "ckpt": scorer.info.where,
        "split": name,
        **asdict(summarise(rows)),
        **_by_entry(split, rows),
        "rows": str(path),
        "refused": len(split.groups) - len(rows),
        **scorer.info.record(),
        **ensemble_fields(scorer.info, rows, display.note),
        "data": split.origin,
    }
    if process_state().is_main_process:
        write_json(folder / f"{name}.json", result)
    return cast(Result, result)


def _by_entry(split: SplitData, rows: Sequence[ScoredRow]) -> JsonObject:
    """Figures of each entry of a mixture, and the mean of their accuracies; nothing for a single source."""
    if not split.mixed:
        return {}
    entry_of = {group.id: part.entry.name for part, groups in split.by_part() for group in groups}
    own: dict[str, list[ScoredRow]] = {part.entry.name: [] for part in split.parts}
    for row in rows:
        own[entry_of[row.id]].append(row)
    figures = {name: summarise(of_entry) for name, of_entry in own.items() if of_entry}
    accuracies = [each.accuracy for each in figures.values() if each.accuracy is not None]
    by_entry = {
        name: {
            "n": each.n,
            "groups": each.groups,
            "accuracy": each.accuracy,
            "low": each.accuracy_low,
            "high": each.accuracy_high,
            "loss": each.loss,
            "length_baseline": each.length_baseline,
        }
        for name, each in figures.items()
    }
    return {"mean_accuracy": sum(accuracies) / len(accuracies) if accuracies else None, "by_entry": by_entry}


def evaluate_benchmark(
    scorer: Scorer,
    benchmark: Benchmark,
    rows: BenchmarkRows,
    tokens_per_batch: int,
    folder: Path,
    display: Display,
    parity: "Parity | None" = None,
    beside: Mapping[str, Any] | None = None,
) -> Result:
    """The result of a benchmark, as in `rewardbench --json`; writes the result, its flat form and its rows.

    These rows complete `parity`, the steps from the leaderboard's runner; `beside` are further fields of the result.
    """
    path = folder / f"{benchmark.name}{ROWS_SUFFIX}"
    scored = score_rows(scorer, benchmark.name, rows.groups, tokens_per_batch, path, display)
    prior = list[ScoredRow]()
    if rows.prior:
        prior_path = folder / f"{benchmark.name}-prior{ROWS_SUFFIX}"
        prior = score_rows(scorer, "prior sets", rows.prior, tokens_per_batch, prior_path, display)
    result: JsonObject = {
        **benchmark_result(benchmark, scored, prior, scorer.info.where).to_json(),
        "rows": str(path),
        **scorer.info.record(),
        **ensemble_fields(scorer.info, scored, display.note),
        **(beside or {}),
        "data": rows.origin,
        "prior_data": rows.prior_origins or None,
        "rendering": scorer.info.rendering,
    }
    if process_state().is_main_process:
        if parity is not None:
            result["parity"] = parity.finish(scored, prior)
        write_json(folder / f"{benchmark.name}.json", result)
        write_json(folder / f"{benchmark.name}.flat.json", flat_form([result]))
    return cast(Result, result)


def score_target(scorer: Scorer, target: Target, path: Path, tokens_per_batch: int, display: Display) -> None:
    """Score the rows of a comparison and write them, with a result that identifies rows and scorer."""
    score_rows(scorer, target.name, target.groups, tokens_per_batch, path, display)
    if process_state().is_main_process:
        write_beside(scorer, path, target.name, target.origin, target.benchmark)


def write_beside(
    scorer: Scorer, path: Path, name: str, origin: Mapping[str, Any], benchmark: str | None = None
) -> None:
    """Write the result, without figures, that identifies the rows and the scorer of a rows file."""
    what = {"benchmark": benchmark} if benchmark is not None else {"split": name}
    result = {"ckpt": scorer.info.where, **what, **scorer.info.record(), "data": dict(origin), "rows": str(path)}
    write_json(path.with_name(f"{path.name.removesuffix(ROWS_SUFFIX)}.json"), result)
