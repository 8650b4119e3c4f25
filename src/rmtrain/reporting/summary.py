"""Figures of results with their names, for terminal tables, the report and the model card."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rmtrain.data.benchmarks import BENCHMARKS, benchmark_named
from rmtrain.reporting.text import count, decimal, interval, is_figure, percent


class Line(NamedTuple):
    """One labelled figure."""

    label: str
    value: str


def split_lines(result: Mapping[str, Any]) -> list[Line]:
    """The figures of a split, in the order of the table."""
    return [
        Line("accuracy", percent(result.get("accuracy"))),
        Line("95 % interval", interval(result.get("accuracy_low"), result.get("accuracy_high"))),
        Line("preferences (n)", count(result.get("n"))),
        Line("groups", count(result.get("groups"))),
        Line("accuracy, ties wrong", percent(result.get("accuracy_strict"))),
        Line("ties", count(result.get("ties"))),
        Line("ties of the same tokens", count(result.get("identical"))),
        Line("loss, nats", decimal(result.get("loss"), 4)),
        Line("accuracy of 'longer wins'", percent(result.get("length_baseline"))),
        Line("reward-length correlation", decimal(result.get("reward_length_correlation"))),
        Line("calibration error (ECE)", decimal(result.get("ece"))),
        Line("truncated groups", count(result.get("truncated"))),
    ]


def benchmark_title(name: Any) -> str:
    """A benchmark's name in tables and cards."""
    return benchmark_named(name).title if name in BENCHMARKS else str(name)


def eras(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A benchmark's scores by era, each a mapping."""
    return {name: mapping(score) for name, score in mapping(result.get("scores")).items()}


def era_sections(result: Mapping[str, Any]) -> list[str]:
    """The sections whose score differs by era."""
    return list(dict.fromkeys(name for score in eras(result).values() for name in mapping(score.get("sections"))))


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Sentences about a benchmark's rows: missing, unexpected, truncated or tied."""
    sentences = []
    if missing := _names(result.get("missing_subsets")):
        sentences.append(f"Missing subsets: {', '.join(missing)}. A section that lacks a subset has no score.")
    others = [
        f"{name} {count(mapping(sizes).get('n'))} of {count(mapping(sizes).get('expected'))}"
        for name, sizes in mapping(result.get("incomplete_subsets")).items()
    ]
    if others:
        sentences.append(f"Subsets of unexpected size: {', '.join(others)}.")
    if unknown := _names(result.get("unknown_subsets")):
        sentences.append(f"Unknown subsets, excluded from all scores: {', '.join(unknown)}.")
    if result.get("truncated"):
        sentences.append(f"Rows truncated to the model's maximum length: {count(result['truncated'])}.")
    if result.get("identical"):
        sentences.append(
            f"Preferences between completions with the same tokens, which count as ties: {count(result['identical'])}."
        )
    ties: list[Any] = [mapping(part).get("ties") for part in mapping(result.get("subsets")).values()]
    if tied := sum(n for n in ties if is_figure(n)):
        half = mapping(mapping(result.get("scores")).get("current")).get("mean_half")
        credit = f"; with ties counting 1/2, the current mean is {percent(half, 2)}" if half is not None else ""
        sentences.append(f"Ties, which count above by the benchmark's own rule: {count(tied)}{credit}.")
    return sentences + _on_training(result)


def _on_training(result: Mapping[str, Any]) -> list[str]:
    """A sentence on whether the model's training rows were compared with the benchmark."""
    check = mapping(result.get("training_check"))
    if "training_check" not in result or result.get("policy"):
        return []
    if not check:
        return ["It is not recorded whether the training rows were compared with this benchmark."]
    if not check.get("checked"):
        return ["The training rows were not compared with this benchmark (data.decontaminate)."]
    rows = f"{count(check.get('overlaps'))} of {count(check.get('rows'))}"
    ngrams = f"n-grams of {count(check.get('words'))} words"
    return [f"Training rows that overlapped with this benchmark, by {ngrams}: {rows}, dropped before training."]


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def section_size(result: Mapping[str, Any], section: str) -> int | None:
    """Number of rows of a section's subsets; None if a subset is missing."""
    name, subsets = result.get("benchmark"), mapping(result.get("subsets"))
    members = benchmark_named(name).sections({}) if name in BENCHMARKS else {}
    sizes: list[Any] = [mapping(subsets.get(subset)).get("n") for subset in members.get(section, (section,))]
    return sum(sizes) if sizes and all(is_figure(size) for size in sizes) else None
