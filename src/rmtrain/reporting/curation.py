"""A curation as tables for the terminal: the judges, the books, the margins, and examples of each cause."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rmtrain.data.examples import Example, Side
from rmtrain.data.judged import KEPT, Judged, agreements, mean_margins
from rmtrain.data.types import Conversation
from rmtrain.reporting.data_report import ledger_table
from rmtrain.reporting.table import Table
from rmtrain.reporting.text import count, percent

_WIDTH = 40  # characters of the longest bar


def curation_tables(result: Mapping[str, Any]) -> list[Table]:
    """The judges with their agreement, the books of rows and preferences, and a histogram of the margins."""
    judges = [(judge["ckpt"], percent(judge["agreement"]), count(judge["n"])) for judge in result["judges"]]
    return [
        Table(("judge", "agrees", "n"), judges),
        ledger_table(result, ("rows", "preferences"), title=f"rules: {', '.join(result['rules'])}"),
        _histogram(result["histogram"]),
    ]


def _histogram(histogram: Mapping[str, Any]) -> Table:
    """A bar a bin: # for kept preferences, - for rejected ones."""
    edges, parts = histogram["edges"], list(zip(histogram["kept"], histogram["rejected"], strict=True))
    most = max((sum(part) for part in parts), default=0) or 1
    rows = []
    for low, high, (kept, rejected) in zip(edges, edges[1:], parts, strict=False):
        bar = "#" * round(_WIDTH * kept / most) + "-" * round(_WIDTH * rejected / most)
        rows.append((f"{low:+.2f} to {high:+.2f}", bar, count(kept), count(rejected)))
    note = "Mean over the judges, each in units of its own root mean square; the outer bins hold all beyond."
    return Table(("margin", "# kept, - rejected", "kept", "rejected"), rows, texts=2, notes=[note])


def example_rows(judged: Judged, place: Callable[[str], str], most: int) -> Iterator[Example]:
    """The first preferences of each cause, the completion that was stated to be better beside the other one."""
    agreement, mean = agreements(judged.margins), mean_margins(judged.margins)
    shown: dict[str, int] = {}
    number = -1
    for group in judged.groups:
        for preference in group.preferences:
            number += 1
            verdict = judged.verdicts[number]
            if verdict == KEPT or shown.get(verdict, 0) >= most:
                continue
            shown[verdict] = shown.get(verdict, 0) + 1
            prompt = group.prompt[-1].content
            better, worse = (_said(group.completions[k]) for k in (preference.better, preference.worse))
            why = f"{percent(agreement[number], 0)} of the judges agree, mean margin {mean[number]:+.2f}"
            sides = Side(place(group.id), f"[prompt] {prompt}\n[better] {better}"), Side("", f"[worse] {worse}")
            yield Example("train", verdict, sides[0], why, sides[1])


def _said(completion: Conversation) -> str:
    return "\n".join(message.content for message in completion)
