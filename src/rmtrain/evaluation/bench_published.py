"""Published accuracies → results with no model, and results → the leaderboard's flat form."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtrain.errors import DataError
from rmtrain.evaluation.bench_figures import Subset, published_subset
from rmtrain.evaluation.bench_others import judgebench_of_subsets, rewardbench2_of_subsets, rm_bench_of_subsets
from rmtrain.evaluation.bench_rewardbench1 import figures_of_subsets
from rmtrain.metrics import rewardbench, rewardbench2

_FORMS = 'expected {"subset": accuracy, …}, or {"model": {"subsets": {…}, "prior_sets": {…}}, …}'
_TIES_PROMPTS = 51  # the Ties subset has both forms of so many prompts


def results_from_published(path: Path, benchmark: str = "rewardbench-1") -> list[dict[str, Any]]:
    """Re-score a file of published accuracies, a result for each model in it.

    The file holds the flat form of the leaderboards, `{"subset": accuracy, …}` with further keys such as `model` beside
    it, or `{"subsets": {…}, "prior_sets": {…}}`, or several of either by model. Prior sets may stand among the subsets.
    The number of rows, and from it the intervals, are those of the file's own `rows`, `{"subset": number, …}`, as
    `to_flat` writes it, else the benchmark's; RM-Bench and JudgeBench publish none.

    Raises:
        DataError: the file can't be read, holds no known subset, or an accuracy is not within 0..1.
    """
    counts = {"rewardbench-1": rewardbench.COUNTS, "rewardbench-2": rewardbench2.COUNTS}.get(benchmark, {})
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as JSON: {error}", _FORMS) from error
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: holds no accuracies", _FORMS)
    models = {name: entry for name, entry in value.items() if isinstance(entry, dict)}
    if "subsets" in models or len(models) < len(value):  # one model
        name = value.get("model")
        flat = _flat(value, str(path)) if "subsets" in models else value
        return [_result(benchmark, name if isinstance(name, str) else None, flat, counts, str(path))]
    return [
        _result(benchmark, name, _flat(entry, f"{path}: {name}"), counts, f"{path}: {name}")
        for name, entry in models.items()
    ]


def to_flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result in the leaderboard's flat form; prior sets stand beside the subsets."""
    subsets = {**result["subsets"], **(result.get("prior_sets") or {}).get("subsets", {})}
    return {
        "model": result["ckpt"],
        "model_type": "DPO" if "policy" in result else "Seq. Classifier",
        "chat_template": "tokenizer",
        **{name: figures["accuracy"] for name, figures in subsets.items()},
        "rows": {name: figures["n"] for name, figures in subsets.items()},
    }


def _flat(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    parts = [entry[key] for key in ("subsets", "prior_sets") if key in entry] or [entry]
    if not all(isinstance(part, dict) for part in parts):
        raise DataError(f"{where}: subsets or prior_sets is not an object", _FORMS)
    parts += [{"rows": entry["rows"]}] if "rows" in entry else []
    return {name: value for part in parts for name, value in part.items()}


def _result(
    benchmark: str, model: str | None, flat: Mapping[str, Any], counts: Mapping[str, int], where: str
) -> dict[str, Any]:
    figures = {name: value for name, value in flat.items() if _is_number(value)}
    rows = flat.get("rows")
    own = {name: n for name, n in rows.items() if type(n) is int and n > 0} if isinstance(rows, dict) else {}
    prior_counts = rewardbench.PRIOR_COUNTS if benchmark == "rewardbench-1" else {}
    prior_counts = {name: own.get(name, n) for name, n in prior_counts.items()}
    counts = {**counts, **{name: n for name, n in own.items() if name not in prior_counts}}
    known = {name: value for name, value in figures.items() if name in counts or name in prior_counts}
    for name, value in flat.items():
        if (name in counts or name in prior_counts) and name not in known:
            raise DataError(f"{where}: {name} is {value!r}, not a number")
    if not counts:
        raise DataError(
            f"{where}: {benchmark} publishes no number of rows by subset, and the file has none",
            'give them as "rows": {"subset": number, …}, or score a checkpoint',
        )
    if not any(name in counts for name in known):
        raise DataError(f"{where}: no subset of {benchmark} among: {_shown(flat, counts)}", _FORMS)
    for name, value in known.items():
        slack = 0.01 if name == "Ties" else 0.0  # its margin term
        if not -slack <= value <= 1 + slack:
            raise DataError(f"{where}: {name} is {value:g}", "accuracies are fractions, 0 to 1")
    subsets = {name: _subset(name, value, counts[name]) for name, value in known.items() if name in counts}
    prior = {name: _subset(name, value, prior_counts[name]) for name, value in known.items() if name in prior_counts}
    result = (
        figures_of_subsets(subsets, prior)
        if benchmark == "rewardbench-1"
        else {
            "rewardbench-2": rewardbench2_of_subsets,
            "rm-bench": rm_bench_of_subsets,
            "judgebench": judgebench_of_subsets,
        }[benchmark](subsets)
    )
    unknown = [name for name in figures if name not in known]
    return {
        "benchmark": benchmark,
        "ckpt": model,
        **result,
        "unknown_subsets": unknown,
        "truncated": None,
        "rows": None,
    }


def _subset(name: str, accuracy: float, n: int) -> Subset:
    if name == "Ties":
        prompts = min(n, _TIES_PROMPTS)
        return Subset(n, accuracy, prompts, published_subset(min(1.0, max(0.0, accuracy)), prompts).interval)
    return published_subset(accuracy, n)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def _shown(flat: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    names = ", ".join(list(flat)[:8]) + (", …" if len(flat) > 8 else "")
    near = [match for name in flat for match in difflib.get_close_matches(name, counts, 1)]
    return f"{names} (did you mean {near[0]}?)" if near else names
