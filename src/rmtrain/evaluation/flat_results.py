"""Files of published accuracies by subset (the leaderboards' flat form) → results without a model, and back."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtrain.data.benchmarks.definition import Benchmark
from rmtrain.documents import Result, checked
from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks import BenchmarkResult
from rmtrain.evaluation.subsets import Subset
from rmtrain.json_values import JsonObject, read_json

_FORMS = 'expected {"subset": accuracy, …}, or {"model": {"subsets": {…}, "prior_sets": {…}}, …}'
_DESCRIPTION = ("model_type", "ref_model", "log_probabilities", "chat_template")  # what flat files say of the model


@dataclass(frozen=True)
class PublishedModel:
    """The entries of files for one model: accuracies by subset and prior set, among other keys.

    `rows` are the file's own numbers of rows, and `where` is the model's place, for messages.
    """

    name: str | None
    values: Mapping[str, Any]
    where: str
    rows: Mapping[str, int] = field(default_factory=dict)
    description: Mapping[str, str | None] = field(default_factory=dict)

    def joined(self, other: "PublishedModel") -> "PublishedModel":
        """This model with the entries of another file; a number in both must be equal."""
        for name in self.values.keys() & other.values.keys():
            first, second = self.values[name], other.values[name]
            if _is_number(first) and _is_number(second) and first != second:
                message = f"{other.where}: {name} is {second:g}, but {first:g} in an earlier file"
                raise DataError(message, "leave out one of the files")
        return PublishedModel(
            self.name,
            {**other.values, **self.values},
            f"{self.where} and {other.where}",
            {**self.rows, **other.rows},
            {**other.description, **self.description},
        )


@dataclass(frozen=True)
class PublishedResult(BenchmarkResult):
    """A result from published accuracies, with unknown numeric keys and the model's description."""

    others: Sequence[str] = ()
    description: Mapping[str, str | None] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """The result as in `rewardbench --results --json`."""
        result = {**super().to_json(), "unknown_subsets": list(self.others), "rows": None}
        return {**result, "description": dict(self.description)}


def published_results(paths: Iterable[Path], benchmark: Benchmark) -> list[PublishedResult]:
    """Score files of published accuracies, a result for each model in them.

    A file holds the flat form of the leaderboards, `{"subset": accuracy, …}` with further keys such as `model` beside
    it, or `{"subsets": {…}, "prior_sets": {…}}`, or several of either by model; or it is a result of `rewardbench`.
    Prior sets may be among the subsets. Several files may hold parts of one model. Intervals follow from the numbers of
    rows: the file's own `rows`, `{"subset": number, …}`, as `flat_form` writes them, otherwise the benchmark's.
    RM-Bench and JudgeBench publish none.

    Raises:
        DataError: a file can't be read, holds no known subset, contradicts another, or an accuracy is not within 0..1.
    """
    models: dict[str | None, PublishedModel] = {}
    for path in paths:
        for model in _models_in(path, benchmark):
            models[model.name] = models[model.name].joined(model) if model.name in models else model
    return [published_result(benchmark, model) for model in models.values()]


def flat_form(results: Sequence[Mapping[str, Any]]) -> JsonObject:
    """Results, as JSON, in the leaderboard's flat form: one, or several by model; `published_results` reads both.

    Prior sets are beside the subsets. `chat_template` is `tokenizer`, the prompt's name, its template's path, or
    PairRM.
    """
    if len(results) != 1:
        return {str(result["ckpt"]): flat_form([result]) for result in results}
    (result,) = results
    subsets = {**result["subsets"], **(result.get("prior_sets") or {}).get("subsets", {})}
    return {
        "model": result["ckpt"],
        **(result["description"] if "description" in result else _description(result)),
        **{name: figures["accuracy"] for name, figures in subsets.items()},
        "rows": {name: figures["n"] for name, figures in subsets.items()},
    }


def _description(result: Mapping[str, Any]) -> dict[str, str | None]:
    """The kind of a scored model, in the terms of the leaderboard's files."""
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


def _models_in(path: Path, benchmark: Benchmark) -> list[PublishedModel]:
    value = read_json(path, _FORMS, odd=float)  # messages show invalid numbers
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: holds no accuracies", _FORMS)
    if isinstance(value.get("benchmark"), str) and isinstance(value.get("scores"), dict):
        result = checked(value, Result, path, _FORMS)
        if result["benchmark"] != benchmark.name:
            raise DataError(f"{path}: a result of {result['benchmark']}", f"add --benchmark {result['benchmark']}")
        if not {"ckpt", "subsets"} <= result.keys():
            raise DataError(f"{path}: a result without ckpt or subsets", _FORMS)
        return [published_model(result["ckpt"], flat_form([result]), str(path))]
    if "subsets" not in value and all(isinstance(entry, dict) for entry in value.values()):
        return [published_model(name, entry, f"{path}: {name}") for name, entry in value.items()]
    return [published_model(value.get("model"), value, str(path))]


def published_model(name: Any, entry: Mapping[str, Any], where: str) -> PublishedModel:
    """A model's entry in a file."""
    parts = [entry[key] for key in ("subsets", "prior_sets") if key in entry]
    if not all(isinstance(part, dict) for part in parts):
        raise DataError(f"{where}: subsets or prior_sets is not an object", _FORMS)
    rows = entry.get("rows")
    return PublishedModel(
        name if isinstance(name, str) else None,
        {key: value for part in parts or [entry] for key, value in part.items()},
        where,
        {key: n for key, n in rows.items() if type(n) is int and n > 0} if isinstance(rows, dict) else {},
        {key: entry[key] for key in _DESCRIPTION if key in entry and isinstance(entry[key], str | None)},
    )


def published_result(benchmark: Benchmark, model: PublishedModel) -> PublishedResult:
    """The result from a model's published accuracies.

    Raises:
        DataError: as in `published_results`.
    """
    where = model.where
    sizes = {**benchmark.counts, **benchmark.prior_counts, **model.rows}
    if not sizes:
        raise DataError(
            f"{where}: {benchmark.name} does not publish numbers of rows by subset, and the file has none",
            'give them as "rows": {"subset": number, …}, or score a checkpoint',
        )
    known = {name: value for name, value in model.values.items() if name in sizes}
    if not known:
        raise DataError(f"{where}: no subset of {benchmark.name} among: {_shown(model.values, sizes)}", _FORMS)
    subsets, prior = dict[str, Subset](), dict[str, Subset]()
    for name, value in known.items():
        formula = benchmark.own_formulas.get(name)
        slack = formula.excess if formula else 0
        if not _is_number(value):
            raise DataError(f"{where}: {name} is {value!r}, not a number")
        if not -slack <= value <= 1 + slack:
            raise DataError(f"{where}: {name} is {value:g}", "accuracies are fractions, 0 to 1")
        independent = min(sizes[name], formula.prompts) if formula else sizes[name]
        (prior if name in benchmark.prior_counts else subsets)[name] = Subset(sizes[name], value, independent)
    if not subsets:
        raise DataError(
            f"{where}: holds only prior sets, and no subset of the core set",
            "give both files of the same model: --results core.json --results prior.json",
        )
    others = [name for name, value in model.values.items() if _is_number(value) and name not in known]
    return PublishedResult(benchmark, model.name, subsets, prior, others=others, description=model.description)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def _shown(values: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    names = ", ".join(list(values)[:8]) + (", …" if len(values) > 8 else "")
    near = [match for name in values for match in difflib.get_close_matches(name, sizes, 1)]
    return f"{names} (did you mean {near[0]}?)" if near else names
