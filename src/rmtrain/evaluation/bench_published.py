"""Published accuracies → results with no model, and results → the leaderboard's flat form."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtrain.documents import Result, checked, read_json
from rmtrain.errors import DataError
from rmtrain.evaluation.bench_figures import Subset
from rmtrain.evaluation.benchmarks import BENCHMARKS

_FORMS = 'expected {"subset": accuracy, …}, or {"model": {"subsets": {…}, "prior_sets": {…}}, …}'
_DESCRIPTION = ("model_type", "ref_model", "log_probabilities", "chat_template")  # of the model, in flat files
_TIES_PROMPTS = 51  # the Ties subset has both forms of so many prompts


def results_from_published(paths: Path | Sequence[Path], benchmark: str = "rewardbench-1") -> list[dict[str, Any]]:
    """Re-score files of published accuracies, a result for each model in them.

    A file holds the flat form of the leaderboards, `{"subset": accuracy, …}` with further keys such as `model` beside
    it, or `{"subsets": {…}, "prior_sets": {…}}`, or several of either by model; or it is a result of `rewardbench`.
    Prior sets may stand among the subsets. What several files hold of one model is taken together. The number of rows,
    and from it the intervals, are those of the file's own `rows`, `{"subset": number, …}`, as `to_flat` writes it, else
    the benchmark's; RM-Bench and JudgeBench publish none.

    Raises:
        DataError: a file can't be read, holds no known subset, contradicts another, or an accuracy is not within 0..1.
    """
    models: dict[str | None, dict[str, Any]] = {}
    places: dict[str | None, list[str]] = {}
    for path in [paths] if isinstance(paths, Path) else paths:
        for name, flat, where in _models_in(path, benchmark):
            models[name] = _joined(models[name], flat, where) if name in models else flat
            places.setdefault(name, []).append(where)
    return [published_result(benchmark, name, flat, " and ".join(places[name])) for name, flat in models.items()]


def to_flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result in the leaderboard's flat form; prior sets stand beside the subsets.

    `chat_template` is `tokenizer`, the name of the prompt or the path of its template, or PairRM, which has its own.
    """
    subsets = {**result["subsets"], **(result.get("prior_sets") or {}).get("subsets", {})}
    return {
        "model": result["ckpt"],
        **(result["description"] if "description" in result else _description(result)),
        **{name: figures["accuracy"] for name, figures in subsets.items()},
        "rows": {name: figures["n"] for name, figures in subsets.items()},
    }


def _description(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model that was scored here, in the words of the leaderboard's files."""
    policy, published = result.get("policy"), result.get("published") or {}
    if policy is not None:
        return {
            "model_type": "DPO Ref. Free" if policy["reference"] is None else "DPO",
            "ref_model": policy["reference"],
            "log_probabilities": policy["log_probabilities"],
            "chat_template": policy.get("prompt") or "tokenizer",
        }
    if published.get("layout") == "PairRM":
        return {"model_type": "Custom Classifier", "chat_template": "PairRM"}
    return {"model_type": "Seq. Classifier", "chat_template": published.get("prompt") or "tokenizer"}


def flat_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result in the flat form, or several by model; `results_from_published` reads both."""
    flat = [to_flat(result) for result in results]
    return flat[0] if len(flat) == 1 else {str(entry["model"]): entry for entry in flat}


def _models_in(path: Path, benchmark: str) -> list[tuple[str | None, dict[str, Any], str]]:
    """Name, flat form and place of each model in a file."""
    value = read_json(path, _FORMS, odd=float)  # messages show it
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: holds no accuracies", _FORMS)
    if isinstance(value.get("benchmark"), str) and isinstance(value.get("scores"), dict):
        result = checked(value, Result, path, _FORMS)
        if result["benchmark"] != benchmark:
            raise DataError(f"{path}: a result of {result['benchmark']}", f"add --benchmark {result['benchmark']}")
        if not {"ckpt", "subsets"} <= result.keys():
            raise DataError(f"{path}: a result without ckpt or subsets", _FORMS)
        return [(result["ckpt"], to_flat(result), str(path))]
    several = "subsets" not in value and all(isinstance(entry, dict) for entry in value.values())
    entries = [(f"{path}: {name}", name, entry) for name, entry in value.items()] if several else []
    return [
        (name if isinstance(name, str) else None, _flat(entry, where), where)
        for where, name, entry in entries or [(str(path), value.get("model"), value)]
    ]


def _joined(one: Mapping[str, Any], other: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Both; what is a number in both must be the same."""
    for name in one.keys() & other.keys():
        if _is_number(one[name]) and _is_number(other[name]) and one[name] != other[name]:
            raise DataError(
                f"{where}: {name} is {other[name]:g}, and {one[name]:g} in a file before it", "leave one of them out"
            )
    rows = {name: n for part in (one, other) if isinstance(part.get("rows"), dict) for name, n in part["rows"].items()}
    return {**other, **one, **({"rows": rows} if rows else {})}


def _flat(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    parts = [entry[key] for key in ("subsets", "prior_sets") if key in entry]
    if not all(isinstance(part, dict) for part in parts):
        raise DataError(f"{where}: subsets or prior_sets is not an object", _FORMS)
    beside = {key: entry[key] for key in ("rows", *_DESCRIPTION) if key in entry}
    return {name: value for part in [*(parts or [entry]), beside] for name, value in part.items()}


def published_result(benchmark: str, model: str | None, flat: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The result of a model in the flat form; `where` is its place, for messages.

    Raises:
        DataError: as `results_from_published` says.
    """
    definition = BENCHMARKS[benchmark]
    given = flat.get("rows")
    own = {name: n for name, n in given.items() if type(n) is int and n > 0} if isinstance(given, dict) else {}
    sizes = {**definition.counts, **definition.prior_counts, **own}
    if not sizes:
        raise DataError(
            f"{where}: {benchmark} publishes no number of rows by subset, and the file has none",
            'give them as "rows": {"subset": number, …}, or score a checkpoint',
        )
    known = {name: value for name, value in flat.items() if name in sizes}
    if not known:
        raise DataError(f"{where}: no subset of {benchmark} among: {_shown(flat, sizes)}", _FORMS)
    for name, value in known.items():
        if not _is_number(value):
            raise DataError(f"{where}: {name} is {value!r}, not a number")
        slack = 0.01 if name == "Ties" else 0.0  # its margin term
        if not -slack <= value <= 1 + slack:
            raise DataError(f"{where}: {name} is {value:g}", "accuracies are fractions, 0 to 1")
    every = {
        # as many independent rows, or prompts
        name: Subset(sizes[name], value, min(sizes[name], _TIES_PROMPTS) if name == "Ties" else sizes[name])
        for name, value in known.items()
    }
    prior = {name: subset for name, subset in every.items() if name in definition.prior_counts}
    subsets = {name: subset for name, subset in every.items() if name not in prior}
    if not subsets:
        raise DataError(
            f"{where}: prior sets alone, with no subset of the core set",
            "give both files, with the same model in them: --results core.json --results prior.json",
        )
    return {
        "benchmark": benchmark,
        "ckpt": model,
        **definition.of_subsets(subsets, *([prior] if prior else [])),
        "unknown_subsets": [name for name, value in flat.items() if _is_number(value) and name not in known],
        "truncated": None,
        "rows": None,
        "description": {key: flat[key] for key in _DESCRIPTION if isinstance(flat.get(key, 0), str | None)},
    }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def _shown(flat: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    names = ", ".join(list(flat)[:8]) + (", …" if len(flat) > 8 else "")
    near = [match for name in flat for match in difflib.get_close_matches(name, counts, 1)]
    return f"{names} (did you mean {near[0]}?)" if near else names
