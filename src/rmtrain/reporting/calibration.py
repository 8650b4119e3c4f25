"""A calibration as a table: figures of held-out prompts before and after it."""

from collections.abc import Mapping
from typing import Any

from rmtrain.reporting.table import Table
from rmtrain.reporting.text import count, decimal

_NAMES = {
    "accuracy": "accuracy (a tie counts 1/2)",
    "loss": "loss of sigmoid(gap), nats",
    "ece": "expected calibration error",
    "length_correlation": "correlation of reward and length",
}


def calibration_tables(result: Mapping[str, Any]) -> list[Table]:
    """The table for the result of `rmtrain calibrate`."""
    rows, within = [], []
    for name, figure in result["figures"].items():
        before, after, change = (
            _between(figure[key]) for key in ("before_interval", "after_interval", "change_interval")
        )
        if figure["change_interval"]["low"] <= 0 <= figure["change_interval"]["high"]:
            within.append(_NAMES[name].split(" (")[0])
        rows.append((_NAMES[name], decimal(figure["before"]), before, decimal(figure["after"]), after, change))
    notes = [
        f"Fitted on {count(result['groups'])} rows; shown on {count(result['n'])} preferences of "
        f"{count(result['prompts'])} other prompts. 95 % intervals from resampled prompts; the last interval is that "
        "of the change.",
        f"temperature {result['temperature']:.3g}; rewards before: {result['reward_mean']:.3g} ± "
        f"{result['reward_std']:.3g} (mean ± standard deviation)",
    ]
    if within:
        notes.append(f"No change detected within these intervals: {'; '.join(within)}.")
    headings = ("held-out rows", "before", "95 % interval", "after", "95 % interval", "change")
    return [Table(headings, rows, notes=notes)]


def _between(interval: Mapping[str, Any]) -> str:
    return f"{decimal(interval['low'])} to {decimal(interval['high'])}"
