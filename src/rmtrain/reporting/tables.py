"""Results as tables for the terminal, the report and the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rmtrain.data.benchmarks import BENCHMARKS, benchmark_named
from rmtrain.reporting.summary import benchmark_title, era_sections, eras, mapping, remarks, section_size, split_lines
from rmtrain.reporting.table import Interval, Table
from rmtrain.reporting.text import MISSING, count, dash, decimal, interval, percent, points

_SPLITS_ABREAST = 3


def split_tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Results of `eval`: one column per split, then the entries and sources of splits that have several."""
    tables = []
    for start in range(0, len(results), _SPLITS_ABREAST):
        shown = results[start : start + _SPLITS_ABREAST]
        lines = zip(*map(split_lines, shown), strict=True)
        rows = [(abreast[0].label, *(line.value for line in abreast)) for abreast in lines]
        tables.append(Table(("", *(str(result.get("split")) for result in shown)), rows, bold=[0]))
    for result in results:
        if votes := mapping(result.get("votes")):
            tables.append(votes_table(str(result.get("split")), votes))
        if by_entry := mapping(result.get("by_entry")):
            mean = f"mean over the entries: {percent(result.get('mean_accuracy'))}"
            table = share_table(f"{result.get('split')}, by entry", "accuracy", by_entry)
            tables.append(replace(table, notes=[mean]))
        if len(by_source := mapping(result.get("by_source"))) > max(1, len(by_entry)):
            tables.append(share_table(f"{result.get('split')}, by source", "accuracy", by_source))
    return tables


def votes_table(split: str, votes: Mapping[str, Any]) -> Table:
    """How rewards agree with the votes of raters."""
    headings = ("n", "agrees with the majority", "a rater agrees", "log-likelihood, nats", "best possible")
    shares = [percent(votes.get(key)) for key in ("accuracy", "raters")]
    nats = [decimal(votes.get(key), 3) for key in ("log_likelihood", "log_likelihood_best")]
    return Table(
        (f"{split}, votes of raters", *headings), [("preferences with votes", count(votes.get("n")), *shares, *nats)]
    )


def share_table(heading: str, figure: str, parts: Mapping[str, Any], digits: int = 1) -> Table:
    """Accuracies or scores of named parts, one per row, with intervals and sizes.

    Args:
        figure: key and heading of the accuracy or score.
        parts: figures by name; parts that are not mappings appear as unknown.
    """
    known = {name: mapping(part) for name, part in parts.items()}
    beside = ["length_baseline"] if any(part.get("length_baseline") is not None for part in known.values()) else []
    rows = [
        (
            name,
            percent(part.get(figure), digits),
            interval(part.get("low"), part.get("high"), digits),
            count(part.get("n")),
            *(percent(part.get(key), digits) for key in beside),
        )
        for name, part in known.items()
    ]
    intervals = [Interval(part.get("low"), part.get(figure), part.get("high")) for part in known.values()]
    return Table((heading, figure, "95 % interval", "n", *("longer wins" for _ in beside)), rows, intervals=intervals)


def benchmark_tables(result: Mapping[str, Any]) -> list[Table]:
    """Result of `rewardbench`: sections, scores by era, subsets, and remarks on missing or unusual rows."""
    name = result.get("benchmark")
    prior_sets = benchmark_named(name).prior if name in BENCHMARKS else None
    heading = f"{benchmark_title(name)} sections"
    parts = mapping(result.get("sections"))
    sections = {name: {**mapping(part), "n": section_size(result, name)} for name, part in parts.items()}
    prior = mapping(result.get("prior_sets"))
    prior_subsets = mapping(prior.get("subsets"))
    if prior_sets and prior.get("score") is not None:
        n = sum(part["n"] for name, part in prior_subsets.items() if name in prior_sets.in_score)
        sections[f"prior sets, mean of {len(prior_sets.in_score)}"] = {**prior, "n": n}
    if any(part.get("score") is not None for part in sections.values()):
        tables = [share_table(heading, "score", sections, 2)]
    else:
        tables = [Table((), (), notes=[f"{heading}: no section has a score, because each lacks a subset."])]
    tables += _era_tables(result) + _term_tables(result)
    subsets = {**mapping(result.get("subsets")), **prior_subsets}
    if own := {name: part for name, part in subsets.items() if name not in parts}:
        tables.append(share_table("subsets", "accuracy", own, 2))
    if steps := mapping(result.get("parity")).get("ladder"):
        tables.append(_parity_table(steps))
    if sentences := remarks(result):
        tables.append(Table((), (), notes=sentences))
    return tables


def ensemble_table(result: Mapping[str, Any]) -> Table:
    """An ensemble beside its members, and how far they agree."""
    figures = mapping(result["disagreement"])
    combine = mapping(result.get("ensemble")).get("combine")
    rows: list[tuple[object, ...]] = [(f"the ensemble, {combine}", percent(figures["accuracy"]), "", "", "")]
    for member in figures["members"]:
        scale = decimal(member["reward_mean"], 2), decimal(member["reward_std"], 2)
        rows.append((member["ckpt"], percent(member["accuracy"]), interval(member["low"], member["high"]), *scale))
    shares = ("split_preferences", "accuracy_split", "accuracy_agreed")
    split, right, other = (percent(figures[name]) for name in shares)
    told = f"They disagree on {split} of the {count(figures['n'])} preferences"
    told += f": on these the ensemble is right in {right}, on the others in {other}." if right != MISSING else "."
    deviation = decimal(figures["reward_deviation"])
    notes = [f"The members' rewards of a completion differ by {deviation} on average (standard deviation). {told}"]
    name = result.get("split") or result.get("benchmark")
    headings = (f"{name}, all preferences", "accuracy", "95 % interval", "mean", "deviation")
    return Table(headings, rows, bold=[0], notes=notes)


def _parity_table(steps: Sequence[Mapping[str, Any]]) -> Table:
    """The steps from the leaderboard's way of scoring to rmtrain's, one per row."""
    headings = ("one change after another, in %", "over rows", "mean of sections", "to right", "to wrong", "ties")
    rows = [
        (
            step.get("rung"),
            *(points(step.get(key)) for key in ("accuracy", "mean_of_sections")),
            *(count(step.get(key)) for key in ("to_right", "to_wrong", "ties")),
        )
        for step in steps
    ]
    return Table(headings, rows)


def _era_tables(result: Mapping[str, Any]) -> list[Table]:
    """One row per era, with the sections whose weights differ by era; then the scores with prior sets."""
    scores, names = eras(result), era_sections(result)
    if all(score.get("mean_of_sections") is None for score in scores.values()):
        return []
    parts = {era: [mapping(score.get("sections")).get(name) for name in names] for era, score in scores.items()}
    keys: tuple[str, ...] = ("mean_of_sections", "low", "high", "mean_half", "length_baseline")
    tables = [_era_table(["era, in %", *names, "mean"], scores, parts, keys)]
    known = {era: score for era, score in scores.items() if score.get("with_prior_sets") is not None}
    if known:
        parts = {era: [score.get("prior_sets")] for era, score in known.items()}
        keys = tuple(f"with_prior_{key}" for key in ("sets", "low", "high", "half", "length_baseline"))
        tables.append(_era_table(["with prior sets, in %", "prior sets", "score"], known, parts, keys))
    return tables


def _era_table(
    headings: list[str],
    scores: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, Sequence[Any]],
    keys: tuple[str, ...],
) -> Table:
    """Each era's parts and its score with interval; if rows are known, also half credit and baseline.

    Args:
        keys: the score, both ends of its interval, the score with ties counting 1/2, and its length baseline.
    """
    score_key, low, high, *optional = keys
    beside = [
        (name, key)
        for name, key in zip(("ties half", "longer wins"), optional, strict=True)
        if any(score.get(key) is not None for score in scores.values())
    ]
    rows = [
        (
            era,
            *map(points, [*parts[era], score.get(score_key)]),
            dash(score.get(low), score.get(high)),
            *(points(score.get(key)) for _, key in beside),
        )
        for era, score in scores.items()
    ]
    return Table((*headings, "95 % interval", *(name for name, _ in beside)), rows)


def _term_tables(result: Mapping[str, Any]) -> list[Table]:
    """Further figures of the sections, such as RM-Bench's by style, and the terms of RewardBench 2's Ties."""
    tables, benchmark = [], result.get("benchmark")
    levels = benchmark_named(benchmark).detail_names if benchmark in BENCHMARKS else ()
    by_style = {name: mapping(part) for name, part in mapping(result.get("sections")).items()}
    by_style["mean"] = eras(result).get("current", {})
    if any(part.get(level) is not None for part in by_style.values() for level in levels):
        rows = [(name, *(points(part.get(level)) for level in levels)) for name, part in by_style.items()]
        tables.append(Table(("by style, in %", *levels), rows))
    if terms := mapping(result.get("ties")):
        headings = [name.replace("_", " ") for name in terms]
        tables.append(Table(("terms of Ties, in %", *headings), [("", *map(points, terms.values()))]))
    return tables


def comparison_tables(result: Mapping[str, Any]) -> list[Table]:
    """Result of `compare`, with the paths of both rows files under `rows`: one row each for all rows, the benchmark's
    score, its sections and the sources; then the verdict."""
    headings = ("accuracy, in %", "n", "A", "B", "A−B", "95 % interval", "McNemar p", "detectable")
    score = {"benchmark score": result["score"]} if result["score"] else {}
    # a source that is a section already has its row, and a single source has all rows
    several = len(result["by_source"]) > 1
    by_source = {name: part for name, part in result["by_source"].items() if several and name not in result["sections"]}
    parts = {"all rows": result, **score, **result["sections"], **by_source}
    rows = [(name, *_comparison_cells(mapping(figures))) for name, figures in parts.items()]
    sentences = [result["verdict"], *([f"By the score: {result['score']['verdict']}"] if score else [])]
    unmatched = {"only in A": "only_a", "only in B": "only_b", "with the same id but different content": "not_alike"}
    if left_out := [f"{count(result[key])} {what}" for what, key in unmatched.items() if result[key]]:
        sentences.append(f"Rows left out: {', '.join(left_out)}.")
    if several:
        sentences.append(
            "Each row is a separate test: of twenty rows without a true difference, one has p < 0.05 on average."
        )
    return [Table(headings, rows), Table((), (), notes=sentences)]


def _comparison_cells(figures: Mapping[str, Any]) -> list[str]:
    a, b, least = (points(figures.get(key), 1) for key in ("a", "b", "detectable"))
    difference, low, high = (points(figures.get(key), 1, "+") for key in ("difference", "low", "high"))
    between = f"{low} to {high}" if MISSING not in (low, high) else MISSING
    p = figures.get("mcnemar_p")
    return [count(figures.get("n")), a, b, difference, between, f"{p:.2g}" if p is not None else MISSING, least]
