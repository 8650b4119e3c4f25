"""A curation as tables for the terminal: judges, kept and dropped rows, margins, and examples of each cause."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import isnan
from typing import Any

from rmtrain.data.examples import Example, Side, lines_of
from rmtrain.data.judged import KEPT, Judge, Judged, agreements, mean_margins
from rmtrain.data.types import Preference, PreferenceGroup
from rmtrain.reporting.data_report import ledger_table
from rmtrain.reporting.table import Table
from rmtrain.reporting.text import count, percent

_WIDTH = 40  # characters of the longest bar


def curation_tables(result: Mapping[str, Any]) -> list[Table]:
    """The judges with their agreement, the counts of kept and dropped rows, and a histogram of the margins."""
    return [
        _judges(result["judges"]),
        ledger_table(result, ("rows", "preferences"), f"rules: {', '.join(result['rules'])}", _what_became(result)),
        _histogram(result["histogram"]),
    ]


def _what_became(result: Mapping[str, Any]) -> list[str]:
    """What became of rejected preferences, where they are still there."""
    if not result["marked"]:
        return []
    weight = result.get("weight")
    if weight is None:
        return ["The new source holds all rows, and its `verdicts` say what the rules reject."]
    return [f"The new source holds all rows; rejected preferences have the weight {weight:g}."]


def _judges(judges: Sequence[Mapping[str, Any]]) -> Table:
    """One row per judge, with the number of rows that its chat template refuses if any judge refuses rows."""
    refuses = any(judge["refused"] for judge in judges)
    rows = [
        (judge["ckpt"], percent(judge["agreement"]), count(judge["n"]), *([count(judge["refused"])] * refuses))
        for judge in judges
    ]
    note = "If a judge's chat template refuses a row, the other judges decide; --rule refused rejects it."
    return Table(("judge", "agrees", "n", *(["rows refused"] * refuses)), rows, notes=[note] if refuses else [])


def _histogram(histogram: Mapping[str, Any]) -> Table:
    """One bar per bin: # for kept preferences, - for rejected ones."""
    edges, parts = histogram["edges"], list(zip(histogram["kept"], histogram["rejected"], strict=True))
    most = max((sum(part) for part in parts), default=0) or 1
    rows = []
    for low, high, (kept, rejected) in zip(edges, edges[1:], parts, strict=False):
        bar = "#" * round(_WIDTH * kept / most) + "-" * round(_WIDTH * rejected / most)
        rows.append((f"{low:+.2f} to {high:+.2f}", bar, count(kept), count(rejected)))
    note = (
        "Mean over the judges, each divided by its root mean square; the outer bins also hold all values beyond them."
    )
    return Table(("margin", "# kept, - rejected", "kept", "rejected"), rows, texts=2, notes=[note])


def causes_of(judged: Judged) -> list[str]:
    """The causes: rules that reject rows, and judges whose chat template refuses rows."""
    refused = [_refused_by(judge) for judge in judged.judges if judge.refused]
    return [*dict.fromkeys(verdict for verdict in judged.verdicts if verdict != KEPT), *refused]


def example_rows(judged: Judged, place: Callable[[str], str], causes: Sequence[str], most: int) -> Iterator[Example]:
    """The first examples of each cause: rows that a judge refuses, or preferences that a rule rejects."""
    agreement, mean = agreements(judged.margins), mean_margins(judged.margins)
    said = [(group, preference) for group in judged.groups for preference in group.preferences]
    for cause in causes:
        own = (number for number, verdict in enumerate(judged.verdicts) if verdict == cause)
        for number in islice(own, most):
            why = f"{percent(agreement[number], 0)} of the judges agree, mean margin {mean[number]:+.2f}"
            yield _example(cause, *said[number], place, "every judge refuses it" if isnan(mean[number]) else why)
        for judge in judged.judges if cause not in judged.verdicts else ():
            refused = (group for group in judged.groups if group.id in judge.refused and cause == _refused_by(judge))
            for group in islice(refused, most):
                yield _example(cause, group, group.preferences[0], place, judge.refused[group.id])


def _refused_by(judge: Judge) -> str:
    return f"refused by the chat template of {judge.name}"


def _example(
    cause: str, group: PreferenceGroup, preference: Preference, place: Callable[[str], str], why: str
) -> Example:
    """The completion labelled better, beside the other one."""
    better = [*lines_of(group.prompt, "prompt"), *lines_of(group.completions[preference.better], "better")]
    worse = "\n".join(lines_of(group.completions[preference.worse], "worse"))
    return Example("train", cause, Side(place(group.id), "\n".join(better)), why, Side("", worse))
