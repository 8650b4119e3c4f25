"""Two models on the same rows, for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group

from rmtrain.reporting.summary import mapping
from rmtrain.reporting.tables import figure_table, key_values, safe_text, spaced
from rmtrain.reporting.text import MISSING, count, is_figure


def comparison(result: Mapping[str, Any]) -> Group:
    """A table in 80 columns, a row for all rows, the benchmark's score and sections, and each source; then the verdict.

    Args:
        result: of `compare`, with the paths of both rows files under `rows`.
    """
    headings = ("n", "A", "B", "A−B", "95 % interval", "McNemar p", "would show")
    score = {"score (mean of sections)": result["score"]} if result["score"] else {}
    # a source that is a section is told there, and a single one in all rows
    several = len(result["by_source"]) > 1
    by_source = {name: part for name, part in result["by_source"].items() if several and name not in result["sections"]}
    parts = {"all rows": result, **score, **result["sections"], **by_source}
    rows = [(name, *_cells(mapping(figures))) for name, figures in parts.items()]
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


def _cells(figures: Mapping[str, Any]) -> list[str]:
    def points(key: str, sign: str = "") -> str:
        value: Any = figures.get(key)
        return f"{100 * value:{sign}.1f}" if is_figure(value) else MISSING

    low, high, p = points("low", "+"), points("high", "+"), figures.get("mcnemar_p")
    return [
        count(figures.get("n")),
        points("a"),
        points("b"),
        points("difference", "+"),
        f"{low} to {high}" if MISSING not in (low, high) else MISSING,
        f"{p:.2g}" if p is not None else MISSING,
        points("detectable"),
    ]
