"""The alignment gap as tables, for the terminal and documents, and as a page with figures."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rmtrain.files import write_atomic
from rmtrain.places import name_only
from rmtrain.reporting.figures import best_of_n_curves, gap_over_beta, log_ratio_histogram
from rmtrain.reporting.report import Figure
from rmtrain.reporting.table import Table, to_html
from rmtrain.reporting.text import MISSING, count, decimal, interval, percent, plain, points, render

_MODELS = {"policy": "policy", "reference": "reference", "implicit": "implicit reward"}
Result = Mapping[str, Any]  # of `gap --json`


def gap_tables(result: Result) -> list[Table]:
    """The result of `rmtrain gap` as tables, those that have nothing to say left out."""
    made = (_accuracies, _gaps, _reward_models, _flips, _rankings, _best_of_n)
    return [table for make in made if (table := make(result)) is not None]


def _accuracies(result: Result) -> Table:
    shown = [(label, result[key]) for key, label in _MODELS.items() if result[key]]
    shown += [(name_only(name), {**figures, "normalised": {}}) for name, figures in result["reward_models"].items()]
    shown += [(f"ideal, beta {beta}", figures) for beta, figures in result["idealised"].items()]
    notes = [
        f"{count(result['n'])} preferences of {count(result['groups'])} groups. A tie counts 1/2; intervals are 95 %, "
        "clustered by prompt. Length-normalised: by the mean log-probability of a token.",
        f"Ideal: the optimum of the objective, from the {result['ideal_of']}, with alpha {result['alpha']}.",
    ]
    if result["circular_for"]:
        notes.append(
            f"alpha comes from {name_only(result['circular_for'])}: its figures beside the ideal's are circular."
        )
    for number, what in (
        (result["identical"], "preferences are between completions of the same tokens: ties of every model"),
        (result["refused"], "rows are left out, since a chat template refuses them"),
    ):
        notes += [f"{count(number)} {what}."] if number else []
    rows = [(label, *_with_interval(of), count(of["n"]), *_with_interval(of["normalised"])) for label, of in shown]
    columns = ("ranking accuracy", "accuracy", "95 % interval", "n", "length-normalised", "95 % interval")
    return Table(columns, rows, notes=notes)


def _gaps(result: Result) -> Table | None:
    rows = [
        (beta if beta == "median" else f"beta {beta}", *_with_signs(gap), *_with_signs(gap["normalised"]))
        for beta, gap in result["gap"].items()
    ]
    columns = ("ideal minus policy, points", "gap", "95 % interval", "length-normalised", "95 % interval")
    return Table(columns, rows, bold={len(rows) - 1}) if rows else None


def _reward_models(result: Result) -> Table | None:
    rows = []
    for name, of in result["reward_models"].items():
        policy = {"difference": of["minus_policy"], "low": of["minus_low"], "high": of["minus_high"]}
        policy["mcnemar_p"] = of["mcnemar_p"]
        pairs = (
            ("the policy", policy),
            ("the policy, length-normalised", of["minus_policy_normalised"]),
            ("the ideal at the median beta", of["minus_ideal"]),
            ("the same, length-normalised", of["minus_ideal_normalised"]),
        )
        rows += [(name_only(name), other, *_with_signs(minus), f"{minus['mcnemar_p']:.2g}") for other, minus in pairs]
    columns = ("reward model", "minus", "points", "95 % interval", "McNemar p")
    return Table(columns, rows, texts=2) if rows else None


def _flips(result: Result) -> Table | None:
    flips, bound = result["flips"], result["loss_bound"]
    if not flips:
        return None
    rows = [
        ("reference right", count(flips["both"]), count(flips["only_reference"])),
        ("reference wrong", count(flips["only_policy"]), count(flips["neither"])),
    ]
    rate = result["flip_rate_interval"]
    notes = [
        f"Flip rate: {percent(result['flip_rate'])} (95 % interval {interval(rate['low'], rate['high'])}) of the "
        f"{count(rate['n'])} preferences that the reference ranks wrong; ties are left out: {count(flips['ties'])}.",
        f"Theorem 4.1, at beta {bound['beta']:g}: of those {count(bound['n'])}, the DPO loss of "
        f"{count(bound['at_or_below'])} is at or below the bound under which the policy ranks them right, and of "
        f"{count(bound['above'])} above it; of these, the implicit reward ranks "
        f"{count(bound['above_though_learnt'])} right. Median bound {decimal(bound['median_bound'])}, median loss "
        f"{decimal(bound['median_loss'])} nats (0.693 before training).",
    ]
    return Table(("preferences", "policy right", "policy wrong"), rows, notes=notes)


def _rankings(result: Result) -> Table | None:
    if not result["ranking"]:
        return None
    figures = (("exact_match", percent), ("tau_b", decimal), ("ndcg", decimal), ("top1", percent))
    labels = {"exact_match": "exact match", "tau_b": "tau-b", "ndcg": "NDCG", "top1": "top-1"}
    rows = [
        (name_only(name), labels[key], *_mean(of[key], shown), count(of[key]["n"]))
        for name, of in result["ranking"].items()
        for key, shown in figures
        if of[key]
    ]
    chance = next(iter(result["ranking"].values()))["chance"]
    notes = ["These figures are means over groups with graded scores, not over pairs."]
    if chance is not None:
        notes.append(f"Exact match of the whole ranking, where all scores differ; by chance {chance:.2g} (1/K!).")
    return Table(("whole groups", "figure", "value", "95 % interval", "groups"), rows, texts=2, notes=notes)


def _best_of_n(result: Result) -> Table | None:
    best = result["best_of_n"]
    if not best:
        return None
    rows: list[tuple[object, ...]] = [("at random", *_mean(best["random"], decimal), MISSING, MISSING, MISSING)]
    for name, of in best["choosers"].items():
        peak = of["fit"]["peak_kl"] if of["fit"] else None
        rows.append(
            (
                name_only(name),
                *_mean(of["score"], decimal),
                *_mean(of["share"], percent),
                decimal(peak, 2),
            )
        )
    rows.append(("the best one", *_mean(best["best"], decimal), MISSING, MISSING, MISSING))
    notes = [
        f"Mean score of the completion chosen among all of a group, over {count(best['groups'])} groups; share of the "
        "possible gain: from a random choice to the best one. Peak: the KL, in nats, at which the fit of "
        "arXiv 2210.10760 to the best-of-N curve is the highest, where it has a maximum.",
    ]
    columns = ("chosen by", "score", "95 % interval", "share of gain", "95 % interval", "peak KL")
    return Table(columns, rows, notes=notes)


def write_page(path: Path, result: Result) -> Path:
    """Write the page of one result: its tables and figures in a file that needs no other.

    Raises:
        WriteError: the file can't be written.
    """
    values = {
        "result": result,
        "tables": [to_html(table) for table in gap_tables(result)],
        "figures": _figures(result),
        "style": style_of_reports(),
    }
    write_atomic(path, render("gap.html.j2", plain, values, {"name_only": name_only}))
    return path


def style_of_reports() -> Markup:
    """The style sheet of the run's report."""
    page = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return Markup(page[page.index("<style>") : page.index("</style>") + len("</style>")])


def _figures(result: Result) -> list[Figure]:
    made = []
    if result["n"]:
        ideal = {beta: (of["accuracy"], of["normalised"]["accuracy"]) for beta, of in result["idealised"].items()}
        policy = result["policy"]["accuracy"], result["policy"]["normalised"]["accuracy"]
        made.append(
            Figure(
                "Gap over beta",
                f"Ranking accuracy of the ideal policy at each beta (lines) and of the policy (dashed). "
                f"n = {count(result['n'])} preferences.",
                gap_over_beta(ideal, policy),
            )
        )
        made.append(
            Figure(
                "Log-ratio of the reference" if result["ideal_of"] == "reference" else "Log-ratio of the policy",
                "log-probability of the better completion less that of the worse, in nats; preferences that the policy "
                f"ranks wrong are marked. n = {count(result['n'])}.",
                log_ratio_histogram(result["log_ratios"]),
            )
        )
    if best := result["best_of_n"]:
        names = [name for name in best["choosers"] if name in result["reward_models"]]
        labels = {name: f"reward model {number}" for number, name in enumerate(names, start=1)}
        curves = {"best": best["best_curve"]}
        curves |= {labels.get(name, name): of["curve"] for name, of in best["choosers"].items()}
        named = "".join(f" {label.capitalize()}: {name_only(name)}." for name, label in labels.items())
        made.append(
            Figure(
                "Best of N",
                f"Mean score of the completion chosen among N, against KL = ln N - (N - 1) / N. n = "
                f"{count(best['groups'])} groups.{named}",
                best_of_n_curves(best["kl"], {label: [p["value"] for p in of] for label, of in curves.items()}),
            )
        )
    return made


def _with_interval(figures: Mapping[str, Any]) -> tuple[str, str]:
    return percent(figures.get("accuracy")), interval(figures.get("low"), figures.get("high"))


def _with_signs(figures: Mapping[str, Any]) -> tuple[str, str]:
    low, high = points(figures["low"], 1, "+"), points(figures["high"], 1, "+")
    return points(figures["difference"], 1, "+"), f"{low} to {high}"


def _mean(figures: Mapping[str, Any] | None, shown: Any) -> tuple[str, str]:
    if not figures:
        return MISSING, MISSING
    low, high = shown(figures["low"]), shown(figures["high"])
    return shown(figures["value"]), f"{low.removesuffix(' %')} to {high}"
