"""The alignment gap as tables, for the terminal and documents, and with figures, for pages."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rmtrain.evaluation.gap_figures import Accuracy, Difference, GapFigures, GapResult, RewardModelFigures
from rmtrain.evaluation.graded_groups import Choices, Mean, Ranking
from rmtrain.files import write_atomic
from rmtrain.places import name_only
from rmtrain.reporting.figures import Figure, best_of_n_curves, gap_over_beta, log_ratio_histogram
from rmtrain.reporting.table import Table, to_html
from rmtrain.reporting.text import MISSING, count, dash, decimal, interval, percent, plain, points, render


class ShownGap(NamedTuple):
    """A result as a page shows it."""

    title: str
    lead: str
    figures: list[Figure]
    tables: list[Table]


def gap_tables(result: GapResult) -> list[Table]:
    """The result of `rmtrain gap` as tables, without empty ones."""
    figures = result.figures
    tables = [_accuracies(result), _gaps(figures.gap), _reward_models(figures.reward_models), _flips(figures)]
    tables += [_rankings(figures.ranking), _best_of_n(figures.best_of_n, figures.gold)]
    return [table for table in tables if table is not None]


def gap_summary(results: Sequence[GapResult]) -> Table:
    """One row per result, in per cent: the policy, its ideal, and the reward model in whose folder the result is."""
    rows = []
    for result in results:
        figures, names = result.figures, (result.setting.models["policy"].where, result.setting.data.source)
        ideal = [points(median(accuracies), 1) for accuracies in ideal_accuracies(figures)]
        own = figures.reward_models.get(result.setting.ckpt or "")
        minus = (own.beside_policy, own.minus_policy_normalised) if own else (None, None)
        ours = (points(own.accuracy, 1), dash(own.low, own.high, 1)) if own else (MISSING, MISSING)
        policy = (points(each, 1) for each in _both(figures.policy))
        differences = [" (".join(_with_signs(each)) + ")" for each in minus]
        rows.append((" on ".join(map(name_only, names)), count(figures.n), *policy, *ideal, *ours, *differences))
    columns = (
        "policy and rows",
        "n",
        "R",
        "R~",
        "R*",
        "R~*",
        "this reward model",
        "95 % interval",
        "minus R",
        "minus R~",
    )
    return Table(columns, rows)


def ideal_accuracies(figures: GapFigures) -> tuple[list[float], list[float]]:
    """Accuracies of the ideal policy over beta, summed and length-normalised."""
    summed, means = zip(*map(_both, figures.idealised.values()), strict=True)
    return list(summed), list(means)


def _accuracies(result: GapResult) -> Table:
    figures = result.figures
    named = {"policy": figures.policy, "reference": figures.reference, "implicit reward": figures.implicit}
    shown: dict[str, Accuracy | RewardModelFigures] = {label: each for label, each in named.items() if each}
    shown |= {name_only(name): each for name, each in figures.reward_models.items()}
    shown |= {f"ideal, beta {beta}": each for beta, each in figures.idealised.items()}
    notes = [
        f"{count(figures.n)} preferences of {count(figures.groups)} groups. A tie counts 1/2; intervals are 95 %, "
        "clustered by prompt. Length-normalised: by the mean log-probability of a token.",
        f"Ideal: the optimum of the objective, from the {figures.ideal_of}, with alpha {figures.alpha}.",
        _text_of(result),
    ]
    if figures.circular_for:
        notes.append(f"alpha comes from {name_only(figures.circular_for)}: comparing it with the ideal is circular.")
    if figures.identical:
        same = "preferences are between completions with the same tokens, so they are ties for every model"
        notes.append(f"{count(figures.identical)} {same}.")
    if refused := result.setting.refused:
        notes.append(f"{count(refused)} rows are left out because a chat template refuses them.")
    rows = [
        (label, *_with_interval(each), count(each.n), *_with_interval(getattr(each, "normalised", None)))
        for label, each in shown.items()
    ]
    columns = ("ranking accuracy", "accuracy", "95 % interval", "n", "length-normalised", "95 % interval")
    return Table(columns, rows, notes=notes)


def _text_of(result: GapResult) -> str:
    """How the policy's text was made."""
    policy = result.setting.models["policy"]
    if policy.plain_text:
        return "Text: BOS, prompt, a space and the completion, without a chat template or an end token."
    digest = policy.rendering.chat_template_sha256
    named = f" (SHA-256 {digest[:16]})" if digest else ""
    return f"Text: the policy's chat template{named}, with its end token."


def _gaps(gaps: Mapping[str, Difference]) -> Table | None:
    rows = [
        (beta if beta == "median" else f"beta {beta}", *_with_signs(gap), *_with_signs(gap.normalised))
        for beta, gap in gaps.items()
    ]
    columns = ("ideal minus policy, points", "gap", "95 % interval", "length-normalised", "95 % interval")
    return Table(columns, rows, bold={len(rows) - 1}) if rows else None


def _reward_models(reward_models: Mapping[str, RewardModelFigures]) -> Table | None:
    rows = list[tuple[str, ...]]()
    known = any(each for model in reward_models.values() for each in (model.closed, model.closed_normalised))
    for name, model in reward_models.items():
        pairs = (
            ("policy", model.beside_policy, model.closed),
            ("policy, normalised", model.minus_policy_normalised, model.closed_normalised),
            ("ideal", model.minus_ideal, None),
            ("ideal, normalised", model.minus_ideal_normalised, None),
        )
        rows += [
            (name_only(name), other, *_with_signs(minus), f"{minus.mcnemar_p:.2g}", *([_share(closed)] * known))
            for other, minus, closed in pairs
        ]
    columns = ("reward model", "minus", "points", "95 % interval", "McNemar p", *(["closes"] * known))
    notes = ["Ideal: at the median beta."]
    if known:
        notes.append(
            "Closes: (reward model - policy) / (ideal - policy), with its 95 % interval; n/a if the interval of the "
            "gap includes 0."
        )
    return Table(columns, rows, texts=2, notes=notes) if rows else None


def _flips(figures: GapFigures) -> Table | None:
    flips, bound, rate, change = figures.flips, figures.loss_bound, figures.flip_rate_interval, figures.minus_reference
    if flips is None or bound is None or rate is None:
        return None
    rows = [
        ("reference right", count(flips.both), count(flips.only_reference)),
        ("reference wrong", count(flips.only_policy), count(flips.neither)),
    ]
    notes = [
        f"Flip rate: {percent(figures.flip_rate)} (95 % interval {interval(rate.low, rate.high)}) of the "
        f"{count(rate.n)} preferences that the reference ranks wrongly; excluded ties: {count(flips.ties)}.",
        f"Theorem 4.1, at beta {bound.beta:g}: of those {count(bound.n)}, the DPO loss of "
        f"{count(bound.at_or_below)} is at or below the bound under which the policy ranks them right, and of "
        f"{count(bound.above)} above it; of these, the implicit reward ranks "
        f"{count(bound.above_though_learnt)} right. Median bound {decimal(bound.median_bound)}, median loss "
        f"{decimal(bound.median_loss)} nats (0.693 before training).",
    ]
    if change is not None:
        (summed, ends), (mean, mean_ends) = _with_signs(change), _with_signs(change.normalised)
        notes.append(
            f"Policy minus reference: {summed} points (95 % interval {ends}); length-normalised {mean} ({mean_ends})."
        )
    return Table(("preferences", "policy right", "policy wrong"), rows, notes=notes)


def _rankings(ranking: Mapping[str, Ranking]) -> Table | None:
    if not ranking:
        return None
    rows = []
    for name, measured in ranking.items():
        figures = (
            ("exact match", measured.exact_match, percent),
            ("tau-b", measured.tau_b, decimal),
            ("NDCG", measured.ndcg, decimal),
            ("top-1", measured.top1, percent),
        )
        rows += [(name_only(name), label, *_mean(mean, shown), count(mean.n)) for label, mean, shown in figures if mean]
    chance = next(iter(ranking.values())).chance
    notes = ["These figures are means over groups with graded scores, not over preferences."]
    if chance is not None:
        notes.append(
            f"Exact match of the whole ranking, in groups whose scores all differ; by chance {chance:.2g} (1/K!)."
        )
    return Table(("whole groups", "figure", "value", "95 % interval", "groups"), rows, texts=2, notes=notes)


def _best_of_n(best: Choices | None, gold: str | None) -> Table | None:
    if best is None:
        return None
    rows: list[tuple[object, ...]] = [("at random", *_mean(best.random, decimal), MISSING, MISSING, MISSING)]
    for name, chooser in best.choosers.items():
        peak = chooser.fit["peak_kl"] if chooser.fit else None
        rows.append((name_only(name), *_mean(chooser.score, decimal), *_mean(chooser.share, percent), decimal(peak, 2)))
    rows.append(("the best one", *_mean(best.best, decimal), MISSING, MISSING, MISSING))
    notes = [] if gold is None else [f"The scores are the rewards of {name_only(gold)}."]
    notes += [
        f"Mean score of the completion chosen among all of a group, over {count(best.groups)} groups; share of the "
        "possible gain: from a random choice to the best one. Peak: the KL, in nats, at which the fit of "
        "arXiv 2210.10760 to the best-of-N curve is the highest, where it has a maximum."
    ]
    columns = ("chosen by", "score", "95 % interval", "share of gain", "95 % interval", "peak KL")
    return Table(columns, rows, notes=notes)


def shown_gap(result: GapResult) -> ShownGap:
    """The result with its figures."""
    figures, models = result.figures, result.setting.models
    source = name_only(result.setting.data.source)
    lead = f"On {source}, {count(figures.n)} preferences of {count(figures.groups)} groups."
    if reference := models.get("reference"):
        lead += f" Reference: {name_only(reference.where)}."
    title = f"Alignment gap of {name_only(models['policy'].where)}"
    return ShownGap(title, lead, _figures(figures), gap_tables(result))


def write_page(path: Path, result: GapResult) -> Path:
    """Write the page of one result: a single file with its tables and figures.

    Raises:
        WriteError: the file can't be written.
    """
    write_atomic(path, render("gap.html.j2", plain, {"shown": shown_gap(result)}, {"to_html": to_html}))
    return path


def _figures(figures: GapFigures) -> list[Figure]:
    drawings = []
    if figures.n:
        ideal = {beta: _both(each) for beta, each in figures.idealised.items()}
        caption = "Ranking accuracy of the ideal policy at each beta (lines) and of the policy (dashed)."
        image = gap_over_beta(ideal, _both(figures.policy))
        drawings.append(Figure("Gap over beta", f"{caption} n = {count(figures.n)} preferences.", image))
    if figures.log_ratios:
        caption = (
            "log-probability of the better completion minus that of the worse, in nats; preferences that the policy "
            f"ranks wrongly are marked. n = {count(figures.n)}."
        )
        drawings.append(
            Figure(f"Log-ratio of the {figures.ideal_of}", caption, log_ratio_histogram(figures.log_ratios))
        )
    if best := figures.best_of_n:
        names = [name for name in best.choosers if name in figures.reward_models]
        labels = {name: f"reward model {number}" for number, name in enumerate(names, start=1)}
        curves = {"best": best.best_curve}
        curves |= {labels.get(name, name): chooser.curve for name, chooser in best.choosers.items()}
        named = "".join(f" {label.capitalize()}: {name_only(name)}." for name, label in labels.items())
        caption = "Mean score of the completion chosen among N, over KL = ln N - (N - 1) / N."
        image = best_of_n_curves(best.kl, {label: [p.value for p in points] for label, points in curves.items()})
        drawings.append(Figure("Best of N", f"{caption} n = {count(best.groups)} groups.{named}", image))
    return drawings


def _both(accuracy: Accuracy) -> tuple[float, float]:
    both = (accuracy, accuracy.normalised)
    summed, mean = (nan if each is None or each.accuracy is None else each.accuracy for each in both)
    return summed, mean


def _with_interval(figures: Accuracy | RewardModelFigures | None) -> tuple[str, str]:
    return (percent(figures.accuracy), interval(figures.low, figures.high)) if figures else (MISSING, MISSING)


def _with_signs(gap: Difference | None) -> tuple[str, str]:
    if gap is None:
        return MISSING, MISSING
    return points(gap.difference, 1, "+"), f"{points(gap.low, 1, '+')} to {points(gap.high, 1, '+')}"


def _share(mean: Mean | None) -> str:
    return f"{percent(mean.value, 0)} ({interval(mean.low, mean.high, 0)})" if mean else MISSING


def _mean(mean: Mean | None, shown: Any) -> tuple[str, str]:
    if mean is None:
        return MISSING, MISSING
    low, high = shown(mean.low), shown(mean.high)
    return shown(mean.value), f"{low.removesuffix(' %')} to {high}"
