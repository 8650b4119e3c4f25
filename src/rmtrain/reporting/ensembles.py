"""An ensemble beside its members as a table, and how far the members agree."""

from collections.abc import Mapping, Sequence
from typing import Any

from rmtrain.reporting.summary import mapping
from rmtrain.reporting.table import Table
from rmtrain.reporting.text import count, decimal, interval, percent

_SHARES = ("split_preferences", "accuracy_split", "accuracy_agreed")


def ensemble_tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One table per result of an ensemble; none for single models."""
    return [_table(result) for result in results if mapping(result.get("disagreement"))]


def _table(result: Mapping[str, Any]) -> Table:
    figures = mapping(result["disagreement"])
    combine = mapping(result.get("ensemble")).get("combine")
    rows: list[tuple[object, ...]] = [(f"the ensemble, {combine}", percent(figures["accuracy"]), "", "", "")]
    for member in figures["members"]:
        scale = decimal(member["reward_mean"], 2), decimal(member["reward_std"], 2)
        rows.append((member["ckpt"], percent(member["accuracy"]), interval(member["low"], member["high"]), *scale))
    split, right, other = (percent(figures[name]) for name in _SHARES)
    notes = [
        f"The members' rewards of a completion differ by {decimal(figures['reward_deviation'])} on average (standard "
        f"deviation). They disagree on {split} of the {count(figures['n'])} preferences: on these the ensemble is "
        f"right in {right}, on the others in {other}."
    ]
    name = result.get("split") or result.get("benchmark")
    return Table(
        (f"{name}, all preferences", "accuracy", "95 % interval", "mean", "deviation"), rows, bold=[0], notes=notes
    )
