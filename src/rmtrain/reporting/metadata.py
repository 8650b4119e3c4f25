"""The metadata of a model card for the hub: base, licence, tags, data sets and evaluation results."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from rmtrain.data.benchmarks import BENCHMARKS, benchmark_named
from rmtrain.places import name_only
from rmtrain.reporting.record import RunRecord
from rmtrain.reporting.summary import eras, mapping
from rmtrain.reporting.text import count, interval, is_figure, plain

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_OWN = ("validation", "test")  # the splits of a recipe that are scored
_FILE = re.compile(r"\.(jsonl|jsonl\.gz|json|parquet|csv)$")


def front_matter(record: RunRecord, base_id: str | None, adapter: bool) -> str:
    """The YAML header of a card; unknown values are left out."""
    results = [*_of_splits(record), *_of_benchmarks(record)]
    stated = mapping(mapping(record.sidecar.get("base")).get("license"))
    licence: dict[str, Any] = {key: plain(value) for key, value in stated.items() if value}
    values = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification",
        base_model=base_id,
        base_model_relation=("adapter" if adapter else "finetune") if base_id else None,
        tags=["reward-model", "trl", "reward-trainer", "rmtrain", *(["lora"] if adapter else [])],
        datasets=list(dict.fromkeys(hub_part(s) for s in sources(record) if is_dataset_id(s))) or None,
        eval_results=results or None,
        model_name=plain(record.name) if results else None,
        **licence,
    )
    return yaml.safe_dump(values.to_dict(), sort_keys=False, allow_unicode=False, width=10_000)  # type: ignore[no-untyped-call]


def sources(record: RunRecord) -> list[str]:
    """The distinct data sources of the recipe."""
    source = record.setting("data", "source")
    given = source.values() if isinstance(source, dict) else [source] if source else []
    flat = [place for value in given for place in _places(value)]
    return list(dict.fromkeys(plain(place) for place in flat))


def _places(source: Any) -> list[Any]:
    """The sources inside a source: itself, its files, or those of a mixture's entries."""
    if isinstance(source, list):
        return [place for part in source for place in _places(part)]
    return _places(source.get("source")) if isinstance(source, dict) else [source]


def is_dataset_id(source: str) -> bool:
    """Whether a source is a data set of the hub."""
    name = hub_part(source)
    return name != "demo" and bool(HUB_ID.fullmatch(name)) and not _FILE.search(name)


def hub_part(source: str) -> str:
    """A source's name without revision and configuration."""
    return re.split("[@:]", source)[0]


def _of_splits(record: RunRecord) -> Iterator[EvalResult]:
    data, planned = mapping(record.manifest.get("data")), record.setting("data", "source")
    for name, split in record.splits.items():
        stated = planned.get(name) if isinstance(planned, dict) else planned if name in _OWN else None
        read = mapping(split.get("data"))  # other rows than the recipe's say themselves where they are from
        source = plain(mapping(data.get(name)).get("source") or read.get("location") or stated or "unnamed")
        dataset = hub_part(source) if is_dataset_id(source) else _slug(name_only(source))
        yield from _result(dataset, dataset, _slug(name), split.get("accuracy"), "accuracy", split, "accuracy_")


def _of_benchmarks(record: RunRecord) -> Iterator[EvalResult]:
    for name, result in record.benchmarks.items():
        era, score = next(iter(eras(result).items()), ("", {}))
        if name in BENCHMARKS:
            value, called = score.get("mean_of_sections"), f"mean of sections, scored as {_slug(era)}"
            figures = {**score, "n": result.get("n")}
            benchmark = benchmark_named(name)
            yield from _result(benchmark.hub_id, benchmark.title, None, value, called, figures, "")


def _result(
    dataset: str, name: str, split: str | None, value: Any, called: str, figures: Mapping[str, Any], prefix: str
) -> Iterator[EvalResult]:
    if is_figure(value):
        low, high = figures.get(f"{prefix}low"), figures.get(f"{prefix}high")
        metric = f"{called} (n = {count(figures.get('n'))}; 95 % interval {interval(low, high)})"
        task = ("text-classification", dataset, name, "accuracy", value, "preference ranking")
        yield EvalResult(*task, dataset_split=split, metric_name=metric)


def _slug(text: Any) -> str:
    return re.sub(r"[^\w.-]+", "-", plain(text))[:80].strip("-") or "unnamed"
