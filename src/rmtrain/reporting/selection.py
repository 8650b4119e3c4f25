"""The report of rmtrain select as tables."""

from collections.abc import Mapping
from typing import Any

from rmtrain.reporting.table import Table
from rmtrain.reporting.text import MISSING, count, percent

_NAMES = {"all": "all answers", "chosen": "chosen", "rejected": "rejected", "shift": "chosen minus all"}


def selection_tables(report: Mapping[str, Any]) -> list[Table]:
    """The report of a selection as tables."""
    dropped = "; ".join(f"{cause}: {count(n)}" for cause, n in report["dropped"].items())
    kept = [
        (shown, *_shown(report["reward"][name]), *_shown(report["length"][name]))
        for name, shown in _NAMES.items()
        if name in report["reward"]
    ]
    ties = percent(report["ties"] / report["prompts"]) if report["prompts"] else MISSING
    notes = [
        f"{count(report['answers'])} answers to {count(report['prompts'])} prompts: {count(report['kept'])} prompts "
        f"kept, {count(report['prompts'] - report['kept'])} dropped{f' ({dropped})' if dropped else ''}; "
        f"{count(report['written'])} rows written.",
        f"In {ties} of the prompts, two or more answers share the best reward.",
        "Means over the kept prompts, with 95 % intervals; lengths in characters.",
    ]
    curve = [(f"best of {n}", count(figures["n"]), *_shown(figures)) for n, figures in report["best_of_n"].items()]
    return [
        Table(["", "reward", "95 % interval", "length", "95 % interval"], kept, "What was chosen", notes=notes),
        Table(
            ["", "prompts", "reward", "95 % interval"],
            curve,
            "Reward against N",
            notes=[
                "The expected best reward of N answers drawn from each prompt's answers, over prompts with at least N."
            ],
        ),
    ]


def _shown(figures: Mapping[str, Any]) -> tuple[str, str]:
    if figures["mean"] is None:
        return MISSING, MISSING
    interval = f"{figures['low']:,.3f} – {figures['high']:,.3f}" if figures["low"] is not None else MISSING
    return f"{figures['mean']:,.3f}", interval
