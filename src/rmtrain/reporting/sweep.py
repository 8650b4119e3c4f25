"""The result of a sweep as tables for the terminal and documents, and as a page with the curves of all runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtrain.files import write_atomic
from rmtrain.reporting.figures import Curve, Figure, Spot, setting_curves, setting_spots
from rmtrain.reporting.record import read_run
from rmtrain.reporting.table import Interval, Table, to_html
from rmtrain.reporting.text import MISSING, count, decimal, interval, is_figure, percent, plain, points, render

Result = Mapping[str, Any]  # as in `sweep --json`


def sweep_tables(result: Result) -> list[Table]:
    """The settings, best first; the best one's lead over the others; and the winner's test figures if it is chosen."""
    settings = result["settings"]
    rows = [
        (
            f"{setting['setting']}  {setting['label']}",
            percent(setting["accuracy"]),
            interval(setting["low"], setting["high"]),
            _spread(setting["by_seed"]),
            decimal(setting["loss"]),
        )
        for setting in settings
    ]
    intervals = [Interval(setting["low"], setting["accuracy"], setting["high"]) for setting in settings]
    headings = ("setting", "accuracy", "95 % interval", "seeds", "loss")
    tables = [Table(headings, rows, bold={0}, intervals=intervals, notes=_about(settings))] if settings else []
    if len(settings) > 1:
        tables.append(_leads(settings, result["ranked_by"]))
    tables.append(Table((), (), notes=[result["verdict"], *_cautions(result), *result["notes"]]))
    return [*tables, *([_final(result["final"])] if result["final"] else [])]


def _about(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    best = settings[0]
    correlations = ", ".join(decimal(setting["length_correlation"], 2) for setting in settings)
    return [
        f"Validation: n = {count(best['n'])} preferences of {count(best['prompts'])} prompts per seed; intervals are "
        f"over prompts. The longer completion is better in {percent(best['length_baseline'])}. Correlation of reward "
        f"and length, in the same order: {correlations}."
    ]


def _leads(settings: Sequence[Mapping[str, Any]], ranked_by: str) -> Table:
    """The best setting minus each other setting, on the same rows."""
    rows = []
    for setting in settings[1:]:
        lead, sign = setting["lead"], 1 if ranked_by == "accuracy" else -1  # a lower loss is better
        low, value, high = sorted(sign * lead[key] for key in ("low", "difference", "high"))
        ends = f"{_shown(low, ranked_by)} to {_shown(high, ranked_by)}"
        found = "found" if lead["found"] else "no difference found"
        least = _shown(lead["detectable"], ranked_by).removeprefix("+")
        rows.append((str(setting["setting"]), _shown(value, ranked_by), ends, least, found))
    unit = "points" if ranked_by == "accuracy" else "nats of loss"
    return Table((f"lead over, {unit}", "lead", "95 % interval", "detectable", ""), rows)


def _cautions(result: Result) -> list[str]:
    sentences = []
    if len(result["settings"]) > 1:
        sentences.append(
            "A difference is found if its interval excludes 0 and all seeds agree; detectable is the smallest true "
            "difference that would be found four times in five. The validation figure of the best setting is biased "
            "upwards, because these rows chose it: --final scores it on the test split."
        )
    if result["seeds"] == 1:
        sentences.append(
            "With one seed, the spread over seeds is unknown, and it can exceed these intervals: use --seeds 3."
        )
    return sentences


def _final(final: Result) -> Table:
    rows = [(f"seed {seed}", percent(run["accuracy"])) for seed, run in final["by_seed"].items()]
    rows = [*rows, ("all", f"{percent(final['accuracy'])} ({interval(final['low'], final['high'])})")]
    return Table((f"test, setting {final['setting']}", f"accuracy, n = {count(final['n'])}"), rows)


def _spread(by_seed: Mapping[str, Mapping[str, float]]) -> str:
    values = [run["accuracy"] for run in by_seed.values()]
    return f"{points(min(values), 1)} to {points(max(values), 1)}" if len(values) > 1 else MISSING


def _shown(value: Any, metric: str) -> str:
    if not is_figure(value):
        return MISSING
    return points(value, 1, "+") if metric == "accuracy" else f"{value:+.3f}"


def write_page(path: Path, result: Result) -> Path:
    """Write the page of a sweep: a single file with its tables, its settings and the curves of its runs.

    Raises:
        WriteError: the file can't be written.
    """
    values = {
        "result": result,
        "tables": [to_html(table) for table in sweep_tables(result)],
        "figures": _figures(result) if result["settings"] else [],
    }
    write_atomic(path, render("sweep.html.j2", plain, values, {}))
    return path


def _figures(result: Result) -> list[Figure]:
    settings = sorted(result["settings"], key=lambda setting: int(setting["setting"]))
    spots = []
    for setting in settings:
        seeds = [seed["accuracy"] for seed in setting["by_seed"].values()]
        spots.append(Spot(setting["setting"], setting["accuracy"], (setting["low"], setting["high"]), seeds))
    drawings = [
        Figure(
            "Settings",
            f"Validation accuracy of each setting with its 95 % interval over prompts (n = {count(settings[0]['n'])}), "
            "and of each seed (crosses).",
            setting_spots(spots),
        )
    ]
    for title, unit, key, scale in (
        ("Training loss", "loss, nats", "loss", 1),
        ("Validation accuracy", "accuracy, %", "eval_accuracy", 100),
        ("Validation loss", "loss, nats", "eval_loss", 1),
    ):
        panels = []
        for setting in settings:
            panels += [(setting["setting"], curve) for curve in _curves(setting["runs"].values(), key, scale)]
        if panels:
            caption = "One line per run, one colour per setting."
            drawings.append(Figure(title, caption, setting_curves(panels, unit)))
    return drawings


def _curves(runs: Sequence[str], key: str, scale: int) -> list[Curve]:
    curves = []
    for run in runs:
        record = read_run(Path(run), with_rows=False)
        lines = record.validations if key.startswith("eval_") else record.steps
        curves.append(Curve.of("", lines, key, scale))
    return [curve for curve in curves if len(curve.steps) > 1]
