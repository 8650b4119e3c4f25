"""Results as tables for the terminal: 80 columns, no boxes, so that they read the same through a pipe."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rmtrain.metrics.rewardbench import PRIOR_SETS
from rmtrain.reporting.summary import (
    BENCHMARK_NAMES,
    Share,
    eras,
    gaps_in,
    mapping,
    sections,
    sources,
    split_lines,
    subsets,
)
from rmtrain.reporting.text import count, interval, percent, plain, points

_SPLITS_ABREAST = 3


def split_table(results: Sequence[Mapping[str, Any]]) -> Group:
    """Results of `eval`, a column a split, and below them each split's sources where it has several."""
    parts: list[RenderableType] = []
    for start in range(0, len(results), _SPLITS_ABREAST):
        shown = results[start : start + _SPLITS_ABREAST]
        table = figure_table("", *(str(result.get("split")) for result in shown))
        for lines in zip(*map(split_lines, _alike(shown)), strict=True):
            table.add_row(safe_text(lines[0].label), *(safe_text(line.value) for line in lines))
        parts += [table, ""]
    for result in results:
        if by_source := sources(result):
            parts += [share_table(f"{result.get('split')}, by source", "accuracy", by_source), ""]
    return Group(*parts[:-1])


def share_table(title: str, figure: str, shares: Iterable[Share], digits: int = 1) -> Table:
    """Accuracies or scores with their intervals and sizes, a row each."""
    shares = list(shares)
    with_baseline = any(share.baseline is not None for share in shares)
    table = figure_table(title, figure, "95 % interval", "n", *(["longer wins"] if with_baseline else []))
    for share in shares:
        table.add_row(
            safe_text(share.name),
            safe_text(percent(share.score, digits)),
            safe_text(interval(share.low, share.high, digits)),
            safe_text(count(share.n)),
            *([safe_text(percent(share.baseline, digits))] if with_baseline else []),
        )
    return table


def rewardbench_table(result: Mapping[str, Any]) -> Group:
    """Result of `rewardbench`: sections and subsets with intervals, the scores of all eras, and what is missing."""
    name = str(result.get("benchmark"))
    title = f"{BENCHMARK_NAMES.get(name, name)} sections"
    found, prior = sections(result), mapping(result.get("prior_sets"))
    if prior.get("score") is not None:
        n = sum(part["n"] for name, part in mapping(prior.get("subsets")).items() if name in PRIOR_SETS)
        score, low, high, baseline = map(prior.get, ("score", "low", "high", "length_baseline"))
        found.append(Share("prior sets, mean of 4", score, low, high, n, baseline))
    parts: list[RenderableType] = []
    if any(share.score is not None for share in found):
        parts += [share_table(title, "score", found, 2), ""]
    else:
        parts += [safe_text(f"{title}: none has all its subsets, so there are no scores."), ""]
    if any(score.get("mean_of_sections") is not None for score in eras(result).values()):
        for table in _era_tables(result):
            parts += [table, ""]
    for table in _term_tables(result):
        parts += [table, ""]
    if by_subset := [share for share in subsets(result) if share.name not in mapping(result.get("sections"))]:
        parts += [share_table("subsets", "accuracy", by_subset, 2), ""]
    if ladder := mapping(result.get("parity")).get("ladder"):
        parts += [_ladder_table(ladder), ""]
    sentences = gaps_in(result)
    return Group(*(parts if sentences else parts[:-1]), *map(safe_text, sentences))


def _ladder_table(ladder: Sequence[Mapping[str, Any]]) -> Table:
    """From the leaderboard's way of scoring to rmtrain's, a row a change."""
    headings = ("over rows", "mean of sections", "to right", "to wrong", "ties")
    table = figure_table("one change after another, in %", *headings, stacked=True)
    for rung in ladder:
        counts = (count(rung.get(key)) for key in ("to_right", "to_wrong", "ties"))
        table.add_row(
            safe_text(rung.get("rung")), points(rung.get("accuracy")), points(rung.get("mean_of_sections")), *counts
        )
    return table


def _era_tables(result: Mapping[str, Any]) -> list[Table]:
    """A row an era, its sections beside it where eras weigh them differently; then the scores with prior sets."""
    scores = eras(result)
    names = list(dict.fromkeys(name for score in scores.values() for name in mapping(score.get("sections"))))
    sections = {name: [mapping(score.get("sections")).get(name) for score in scores.values()] for name in names}
    tables = [_eras_of("era, in %", scores, sections, "mean", ("mean_of_sections", "", "mean_half"))]
    known = {era: score for era, score in scores.items() if score.get("with_prior_sets") is not None}
    if known:
        prior = {"prior sets": [score.get("prior_sets") for score in known.values()]}
        keys = ("with_prior_sets", "with_prior_", "with_prior_half")
        tables.append(_eras_of("with prior sets, in %", known, prior, "score", keys))
    return tables


def _eras_of(
    title: str,
    scores: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, Sequence[Any]],
    figure: str,
    keys: tuple[str, str, str],
) -> Table:
    """A score by era after its parts, with its interval, and where rows are known with ties half and the baseline.

    Args:
        title: of the column of eras.
        scores: by era.
        parts: by heading, a figure an era.
        figure: the score's heading.
        keys: of the score, of its interval's ends and its length baseline without their own names, of ties half.
    """
    score_key, prefix, half_key = keys
    beside = {"ties half": half_key, "longer wins": f"{prefix}length_baseline"}
    beside = {name: key for name, key in beside.items() if any(score.get(key) is not None for score in scores.values())}
    table = figure_table(title, *parts, figure, "95 % interval", *beside, gap=1, stacked=True)
    for place, (era, score) in enumerate(scores.items()):
        table.add_row(
            safe_text(era),
            *(points(values[place]) for values in parts.values()),
            points(score.get(score_key)),
            interval(score.get(f"{prefix}low"), score.get(f"{prefix}high"), 2).removesuffix(" %").replace(" to ", "-"),
            *(points(score.get(key)) for key in beside.values()),
        )
    return table


def _term_tables(result: Mapping[str, Any]) -> list[Table]:
    """What RM-Bench's sections get by style, and the terms of RewardBench 2's Ties, where rows are known."""
    tables = []
    levels = ("hard", "normal", "easy")
    current = eras(result).get("current", {})
    by_style = {**{name: mapping(part) for name, part in mapping(result.get("sections")).items()}, "mean": current}
    if any(part.get("hard") is not None for part in by_style.values()):
        tables.append(figure_table("by style, in %", *levels))
        for name, part in by_style.items():
            tables[-1].add_row(safe_text(name), *(points(part.get(level)) for level in levels))
    if terms := mapping(result.get("ties")):
        tables.append(figure_table("terms of Ties, in %", *(name.replace("_", " ") for name in terms), stacked=True))
        tables[-1].add_row("", *map(points, terms.values()))
    return tables


def key_values(values: Mapping[str, Any]) -> Table:
    """Names and values in two columns; a value that is None is left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            table.add_row(safe_text(name), safe_text(value))
    return table


def _alike(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """With the same optional figures in all, so that their lines stand abreast."""
    return [{"truncated": None, **result} for result in results]


def figure_table(*headings: str, texts: int = 1, gap: int = 2, stacked: bool = False) -> Table:
    """A table of some columns of text, the first of which may wrap, and then of figures.

    Args:
        headings: of the columns.
        texts: how many of them hold text.
        gap: blanks between columns.
        stacked: each word of the figures' headings has a line of its own.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for index, name in enumerate(headings):
        heading = safe_text(name)
        if index < texts:
            table.add_column(heading, overflow="fold", vertical="bottom", no_wrap=index > 0)
            continue
        if stacked:
            heading = Text("\n".join(plain(name).replace("95 %", "95\xa0%").split(" ")))
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def safe_text(value: Any) -> Text:
    """Text that rich takes as it is: no markup, nothing that steers the terminal."""
    return Text(plain(value))
