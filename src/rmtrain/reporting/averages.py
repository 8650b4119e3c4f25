"""An average of checkpoints as tables: its parts, and the figures of average and parts on the same rows."""

from collections.abc import Mapping
from typing import Any

from rmtrain.reporting.summary import mapping
from rmtrain.reporting.table import Table
from rmtrain.reporting.text import MISSING, count, decimal, interval, percent, points

_METHODS = {"equal": "equal weights", "given": "the weights given", "greedy": "chosen greedily, with equal weights"}


def average_tables(result: Mapping[str, Any]) -> list[Table]:
    """Tables for the result of `rmtrain average` or the `averaged` block of a rmtrain.json: parts, steps and scores."""
    scores = mapping(result.get("scores"))
    tables = [Table((), (), title=f"average: {result['output']}" if "output" in result else "", notes=_made(result))]
    if steps := result.get("steps"):
        rows = [(step["ckpt"], percent(step["accuracy"]), ("kept" if step["kept"] else "left out")) for step in steps]
        tables.append(Table(("models by accuracy", "average with it", ""), rows))
    if scores:
        tables.append(_score_table(scores, chosen=bool(steps)))
    elif "output" in result:
        hint = "To compare it with its parts, add --split validation or --data SOURCE."
        tables.append(Table((), (), notes=[hint]))
    return tables


def _made(result: Mapping[str, Any]) -> list[str]:
    parts = result.get("parts") or []
    shares = ", ".join(f"{part['weight']:.3g} × {part['ckpt']}" for part in parts)
    lines = [f"{count(len(parts))} checkpoints, {_METHODS.get(str(result.get('method')), '')}: {shares}"]
    if len(parts) == 1:
        lines = [f"a single checkpoint: {parts[0]['ckpt']}"]
    if result.get("extrapolate"):
        lines.append(f"extrapolated from the start of training: start + {1 + result['extrapolate']:.3g} (mean - start)")
    if result.get("rank"):
        lost = result.get("rank_loss") or 0.0
        exact = f"; {percent(lost, 2)} of the norm of the change is lost" if lost else ", which is exact"
        lines.append(f"an adapter of rank {result['rank']}{exact}")
    return lines


def _score_table(scores: Mapping[str, Any], chosen: bool) -> Table:
    headings = (str(scores.get("split")), "accuracy", "95 % interval", "loss", "difference", "95 % interval", "p")
    own = (
        "the average",
        percent(scores["accuracy"]),
        interval(scores["low"], scores["high"]),
        decimal(scores["loss"], 4),
        "",
        "",
        "",
    )
    rows = [own]
    for part in scores["parts"]:
        low, high = (points(part[key], 1, "+") for key in ("difference_low", "difference_high"))
        p = MISSING if part["mcnemar_p"] is None else f"{part['mcnemar_p']:.2g}"
        shown = percent(part["accuracy"]), interval(part["low"], part["high"]), decimal(part["loss"], 4)
        rows.append((part["ckpt"], *shown, points(part["difference"], 1, "+"), f"{low} to {high}", p))
    n = count(scores["n"])
    notes = [f"{n} preferences; difference: the average minus this row, paired by prompt; p: McNemar's test."]
    if chosen:
        notes.append("The models were chosen on these rows, which favours the average: measure it on other rows.")
    return Table(headings, rows, bold=[0], notes=notes)
