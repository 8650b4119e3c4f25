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
    era_sections,
    eras,
    gaps_in,
    mapping,
    sections,
    sources,
    split_lines,
    subsets,
)
from rmtrain.reporting.text import MISSING, count, dash, interval, percent, plain, points

_SPLITS_ABREAST = 3


def split_table(results: Sequence[Mapping[str, Any]]) -> Group:
    """Results of `eval`, a column a split, and below them each split's sources where it has several."""
    parts: list[RenderableType] = []
    for start in range(0, len(results), _SPLITS_ABREAST):
        shown = results[start : start + _SPLITS_ABREAST]
        lines = zip(*map(split_lines, shown), strict=True)
        rows = [(abreast[0].label, *(line.value for line in abreast)) for abreast in lines]
        parts.append(figure_table("", *(result.get("split") for result in shown), rows=rows))
    for result in results:
        if by_source := sources(result):
            parts.append(share_table(f"{result.get('split')}, by source", "accuracy", by_source))
    return spaced(parts)


def share_table(title: str, figure: str, shares: Sequence[Share], digits: int = 1) -> Table:
    """Accuracies or scores with their intervals and sizes, a row each."""
    beside = ["longer wins"] if any(share.baseline is not None for share in shares) else []
    rows = [
        (
            share.name,
            percent(share.score, digits),
            interval(share.low, share.high, digits),
            count(share.n),
            *(percent(share.baseline, digits) for _ in beside),
        )
        for share in shares
    ]
    return figure_table(title, figure, "95 % interval", "n", *beside, rows=rows)


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
        parts.append(share_table(title, "score", found, 2))
    else:
        parts.append(safe_text(f"{title}: none has all its subsets, so there are no scores."))
    parts += _era_tables(result) + _term_tables(result)
    if by_subset := [share for share in subsets(result) if share.name not in mapping(result.get("sections"))]:
        parts.append(share_table("subsets", "accuracy", by_subset, 2))
    if ladder := mapping(result.get("parity")).get("ladder"):
        parts.append(_ladder_table(ladder))
    if sentences := gaps_in(result):
        parts.append(Group(*map(safe_text, sentences)))
    return spaced(parts)


def _ladder_table(ladder: Sequence[Mapping[str, Any]]) -> Table:
    """From the leaderboard's way of scoring to rmtrain's, a row a change."""
    headings = ("over rows", "mean of sections", "to right", "to wrong", "ties")
    rows = [
        (
            rung.get("rung"),
            *(points(rung.get(key)) for key in ("accuracy", "mean_of_sections")),
            *(count(rung.get(key)) for key in ("to_right", "to_wrong", "ties")),
        )
        for rung in ladder
    ]
    return figure_table("one change after another, in %", *headings, rows=rows, stacked=True)


def _era_tables(result: Mapping[str, Any]) -> list[Table]:
    """A row an era, its sections beside it where eras weigh them differently; then the scores with prior sets."""
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
    """A score by era after its parts, with its interval, and where rows are known with ties half and the baseline.

    Args:
        headings: of the eras, the parts and the score.
        scores: by era.
        parts: figures by era.
        keys: of the score, of its interval's ends, of the score with ties half, of its length baseline.
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
    return figure_table(*headings, "95 % interval", *(name for name, _ in beside), rows=rows, gap=1, stacked=True)


def _term_tables(result: Mapping[str, Any]) -> list[Table]:
    """What RM-Bench's sections get by style, and the terms of RewardBench 2's Ties, where rows are known."""
    tables = []
    levels = ("hard", "normal", "easy")
    by_style = {name: mapping(part) for name, part in mapping(result.get("sections")).items()}
    by_style["mean"] = eras(result).get("current", {})
    if any(part.get("hard") is not None for part in by_style.values()):
        rows = [(name, *(points(part.get(level)) for level in levels)) for name, part in by_style.items()]
        tables.append(figure_table("by style, in %", *levels, rows=rows))
    if terms := mapping(result.get("ties")):
        headings = [name.replace("_", " ") for name in terms]
        rows = [("", *map(points, terms.values()))]
        tables.append(figure_table("terms of Ties, in %", *headings, rows=rows, stacked=True))
    return tables


def comparison_table(result: Mapping[str, Any]) -> Group:
    """Result of `compare`: a row for all rows, the benchmark's score and sections, and each source; then the verdict.

    Args:
        result: of `compare`, with the paths of both rows files under `rows`.
    """
    headings = ("n", "A", "B", "A−B", "95 % interval", "McNemar p", "would show")
    score = {"score (mean of sections)": result["score"]} if result["score"] else {}
    # a source that is a section is told there, and a single one in all rows
    several = len(result["by_source"]) > 1
    by_source = {name: part for name, part in result["by_source"].items() if several and name not in result["sections"]}
    parts = {"all rows": result, **score, **result["sections"], **by_source}
    rows = [(name, *_comparison_cells(mapping(figures))) for name, figures in parts.items()]
    table = figure_table("accuracy, in %", *headings, rows=rows, gap=1, stacked=True)
    sentences = [result["verdict"], *([f"By the score: {result['score']['verdict']}"] if score else [])]
    unmatched = {"in A alone": "only_a", "in B alone": "only_b", "of one id but not alike": "not_alike"}
    if left_out := [f"{count(result[key])} {what}" for what, key in unmatched.items() if result[key]]:
        sentences.append(f"Rows left out: {', '.join(left_out)}.")
    if several:
        sentences.append(
            "The p of each line stands for itself: of twenty lines without a difference, one has p < 0.05."
        )
    paths = key_values(dict(zip("AB", result["rows"], strict=True)))
    return spaced([paths, table, Group(*map(safe_text, sentences))])


def _comparison_cells(figures: Mapping[str, Any]) -> list[str]:
    a, b, least = (points(figures.get(key), 1) for key in ("a", "b", "detectable"))
    difference, low, high = (points(figures.get(key), 1, "+") for key in ("difference", "low", "high"))
    between = f"{low} to {high}" if MISSING not in (low, high) else MISSING
    p = figures.get("mcnemar_p")
    return [count(figures.get("n")), a, b, difference, between, f"{p:.2g}" if p is not None else MISSING, least]


def key_values(values: Mapping[str, Any]) -> Table:
    """Names and values in two columns; a value that is None is left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            table.add_row(safe_text(name), safe_text(value))
    return table


def figure_table(
    *headings: Any, rows: Iterable[Sequence[Any]] = (), texts: int = 1, gap: int = 2, stacked: bool = False
) -> Table:
    """A table of some columns of text, the first of which may wrap, and then of figures.

    Args:
        headings: of the columns.
        rows: their cells; more can be added.
        texts: how many of the columns hold text.
        gap: blanks between columns.
        stacked: each word of the figures' headings has a line of its own.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for index, name in enumerate(headings):
        if index < texts:
            table.add_column(safe_text(name), overflow="fold", vertical="bottom", no_wrap=index > 0)
            continue
        words = plain(name).replace("95 %", "95\xa0%").split(" ") if stacked else [plain(name)]
        table.add_column(Text("\n".join(words)), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(safe_text, row))
    return table


def spaced(parts: Sequence[RenderableType]) -> Group:
    """One below another, with a blank line between them."""
    return Group(*[piece for part in parts for piece in ("", part)][1:])


def safe_text(value: Any) -> Text:
    """Text that rich takes as it is: no markup, nothing that steers the terminal."""
    return Text(plain(value))
