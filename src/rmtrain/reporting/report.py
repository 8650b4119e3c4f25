"""The report of a run: a single HTML page without scripts that needs no network and no other file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rmtrain.display import ENTRY_ACCURACY
from rmtrain.errors import RmtrainError
from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of
from rmtrain.files import read_bytes, write_atomic
from rmtrain.metrics.calibration import reliability_bins
from rmtrain.metrics.intervals import effective_size
from rmtrain.metrics.rankings import credits_of
from rmtrain.reporting.data_report import ledger_table, used_tables
from rmtrain.reporting.figures import POINTS, Curve, Figure, curves, gap_histogram, reliability_diagram
from rmtrain.reporting.gap import shown_gap
from rmtrain.reporting.metadata import sources
from rmtrain.reporting.record import RunRecord, read_run
from rmtrain.reporting.setup import base_model, run_lines, training_lines
from rmtrain.reporting.summary import benchmark_title, eras, mapping
from rmtrain.reporting.table import to_html
from rmtrain.reporting.tables import benchmark_tables, split_tables
from rmtrain.reporting.text import block, count, decimal, interval, is_figure, percent, plain, render

NAME = "report.html"
_HEADLINE_SPLITS = ("test", "validation")  # the report begins with the first of these that is scored


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder: what was trained, its curves, its evaluation.

    The same run folder gives the same bytes. Missing or damaged parts are left out, with a note.

    Raises:
        CheckpointError: the folder is not a run.
        OSError: the file can't be written.
    """
    path = run / NAME
    write_atomic(path, _render(read_run(run)))
    return path


def _render(record: RunRecord) -> str:
    values = {
        "record": record,
        "base": base_model(record),
        "sources": sources(record),
        "headline": next((record.splits[name] for name in _HEADLINE_SPLITS if name in record.splits), None),
        "training": training_lines(record),
        "run": run_lines(record),
        "recipe": Markup.escape(block(_recipe_text(record.folder))),
        "data": {
            name: (
                mapping(split),
                [ledger_table(mapping(split), ("rows", "preferences")), *used_tables(name, mapping(split))],
            )
            for name, split in mapping(record.manifest.get("data")).items()
        },
        "curves": _curves(record),
        "averaged": POINTS if len(record.steps) > POINTS else None,
        "split_tables": split_tables(list(record.splits.values())),
        "distributions": [
            (name, _distributions(result, record.rows[name]))
            for name, result in record.splits.items()
            if any(row.preferences for row in record.rows.get(name, []))
        ],
        "benchmarks": [
            {
                "title": benchmark_title(result.get("benchmark")),
                "n": result.get("n"),
                "current": eras(result).get("current", {}),
                "tables": benchmark_tables(result),
            }
            for result in record.benchmarks.values()
        ],
        "gaps": [shown_gap(result) for result in record.gaps],
    }
    return render("report.html.j2", plain, values, {"to_html": to_html})


def _recipe_text(folder: Path) -> str:
    try:
        return read_bytes(folder / "recipe.yaml").decode(errors="replace")
    except RmtrainError:
        return ""


def _curves(record: RunRecord) -> list[Figure]:
    """Training curves; metrics without values are left out."""
    panels = (
        ("Loss", "loss, nats", "loss", "eval_loss", 1),
        ("Accuracy", "accuracy, %", "accuracy", "eval_accuracy", 100),
        ("Reward gap", "mean reward gap", "reward_gap", "", 1),
        ("Learning rate", "learning rate", "learning_rate", "", 1),
        ("Gradient norm", "gradient norm before clipping", "grad_norm", "", 1),
        ("Throughput", "tokens/s", "tokens_per_second", "", 1),
    )
    figures = []
    for title, unit, key, validated, scale in panels:
        training = Curve.of("training", record.steps, key, scale)
        validation = Curve.of("validation", record.validations, validated, scale)._replace(second=True)
        sentences = []
        if training.steps:
            sentences.append(f"n = {count(len(training.steps))} logged steps.")
        if validation.steps:
            sentences.append(f"Validated {count(len(validation.steps))} times{_validated_on(record)}.")
        if panel := [curve for curve in (training, validation) if curve.steps]:
            figures.append(Figure(title, " ".join(sentences), curves(panel, unit)))
    return figures + _curves_by_entry(record)


def _curves_by_entry(record: RunRecord) -> list[Figure]:
    """The accuracy of each entry of a validation split that is a mixture, and their mean."""
    keys = dict.fromkeys(key for line in record.validations for key in line if key.startswith(ENTRY_ACCURACY))
    names = {key: key.removeprefix(ENTRY_ACCURACY) for key in keys}
    own = [
        Curve.of(name, record.validations, key, 100) for key, name in names.items() if re.fullmatch(r"[\w.-]+", name)
    ]
    if not own:
        return []
    mean = Curve.of("mean of the entries", record.validations, "eval_mean_accuracy", 100)._replace(second=True)
    caption = f"Validated {count(len(record.validations))} times; every entry has the same weight in the mean."
    return [
        Figure("Accuracy by entry", caption, curves([curve for curve in (*own, mean) if curve.steps], "accuracy, %"))
    ]


def _validated_on(record: RunRecord) -> str:
    held_out = mapping(mapping(record.manifest.get("data")).get("validation")).get("groups")
    sizes: list[Any] = [size for size in (held_out, record.setting("evaluation", "limit")) if is_figure(size)]
    return f" on {count(min(sizes))} groups" if is_figure(held_out) else ""


def _distributions(result: Mapping[str, Any], rows: Sequence[ScoredRow]) -> list[Figure]:
    """Histogram and calibration of a split's reward gaps."""
    scored = gaps_of(rows)
    credit = credits_of(scored.gaps)
    design_effect = len(credit) / effective_size(credit, clusters_of(rows)[scored.groups])
    bins = reliability_bins(scored.gaps)
    n = f"n = {count(len(credit))} preferences"
    accuracy = percent(result.get("accuracy"))
    ends = interval(result.get("accuracy_low"), result.get("accuracy_high"))
    return [
        Figure(
            "Reward gaps",
            f"{n}; {accuracy} (95 % interval {ends}) are ranked correctly, with "
            f"{count((scored.gaps == 0).sum().item())} ties at 0 counted as 1/2. Mean gap {scored.gaps.mean():.3g}.",
            gap_histogram(scored.gaps),
        ),
        Figure(
            "Reliability",
            f"{n} in {len(bins)} bins of equal size, each with its 95 % interval. "
            f"Calibration error (ECE) {decimal(result.get('ece'))}.",
            reliability_diagram(bins, design_effect),
        ),
    ]
