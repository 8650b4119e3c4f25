"""The tables of docs/evidence.md, made from the protocols and their results alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evidence_laws import law_of

from rmtrain.errors import InputError
from rmtrain.evaluation.calibration import calibrated_rows, fit
from rmtrain.evaluation.results import ScoredRow, gaps_of
from rmtrain.evaluation.seeds import Seeds, seed_difference, seed_figures
from rmtrain.metrics.calibration import expected_calibration_error
from rmtrain.reporting.table import Table
from rmtrain.reporting.text import count, decimal, interval, percent, points

Protocol = Mapping[str, Any]
LAWS = (
    "The share of wrongly ranked preferences is fitted as a power of the quantity, by least squares on logarithms; "
    "accuracies with an interval are predictions. Intervals come from other prompts and other seeds drawn from these; "
    "they do not say whether the law goes on beyond what was measured."
)


def seeds_of(results: Mapping[str, Any], arm: str, split: str) -> Seeds:
    """The scored rows of an arm, by seed."""
    found: dict[int, list[ScoredRow]] = {}
    for name, record in results["runs"].items():
        of, _, seed = name.rpartition(":")
        if of == arm and split in record["rewards"]:
            rows = results["rows"][split]
            lengths = record.get("lengths", {}).get(split, [row["lengths"] for row in rows])
            found[int(seed)] = [
                ScoredRow(
                    id=row["id"],
                    source=row.get("source", "").partition("/")[0],  # an entry's name comes before its rows' own source
                    rewards=tuple(rewards),
                    preferences=tuple((better, worse) for better, worse in row["preferences"]),
                    truncated=False,
                    lengths=tuple(counted),
                )
                for row, rewards, counted in zip(rows, record["rewards"][split], lengths, strict=True)
            ]
    return dict(sorted(found.items()))


def averaged(seeds: Seeds) -> Seeds:
    """The mean reward of all seeds, in the place of each seed's own."""
    mean = [
        row._replace(rewards=tuple(sum(own) / len(seeds) for own in zip(*(of.rewards for of in rows), strict=True)))
        for row, *rows in ((rows[0], *rows) for rows in zip(*seeds.values(), strict=True))
    ]
    return dict.fromkeys(seeds, mean)


def figures_table(results: Mapping[str, Any], protocol: Protocol, split: str) -> Table:
    """A line for each arm; the note says on what they were measured."""
    rows, noted = [], ""
    for arm, of in protocol["arms"].items():
        if split not in of["splits"]:
            continue
        seeds = seeds_of(results, arm, split)
        if not seeds:
            rows.append((arm, "not run yet", *[""] * 6))
            continue
        figures = seed_figures(seeds)
        runs = [results["runs"][f"{arm}:{seed}"] for seed in seeds]
        each = [points(seed["accuracy"], 1) for seed in figures.by_seed.values()]
        rows.append(
            (
                arm,
                percent(figures.accuracy),
                interval(figures.low, figures.high),
                ", ".join(each),
                decimal(figures.loss),
                decimal(figures.length_correlation, 2),
                *(mean_of(runs, key) for key in ("tokens", "seconds")),
            )
        )
        noted = noted or (  # lengths in tokens of the first arm's model
            f"n = {count(figures.n)} preferences of {count(figures.prompts)} prompts for each seed. The longer "
            f"answer is the better one in {percent(figures.length_baseline)} of them."
        )
    headings = ("arm", "accuracy", "95 % interval", "each seed, %", "loss", "length corr.", "tokens a run", "seconds")
    return Table(headings, rows, notes=[noted] if noted else [])


def mean_of(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """A cost of a run; an average of weights has none of its own."""
    return count(sum(run[key] for run in runs) / len(runs)) if key in runs[0] else ""


def differences_table(results: Mapping[str, Any], protocol: Protocol) -> Table:
    """Each arm minus the arm that the protocol names, on the same test rows and seeds."""
    rows = []
    for arm, of in protocol["arms"].items():
        ours, theirs = (seeds_of(results, name, "test") for name in (arm, of.get("against", arm)))
        if "against" in of and ours.keys() & theirs.keys():
            rows.append(_difference_line(f"{arm} − {of['against']}", ours, theirs))
        if arm in ("plain", "ours") and len(ours) > 1:
            title = f"mean reward of the {len(ours)} seeds of {arm} − one seed"
            rows.append(_difference_line(title, averaged(ours), ours))
    headings = ("difference on test, points", "", "95 % interval", "each seed", "detectable", "")
    return Table(headings, rows)


def sources_tables(results: Mapping[str, Any], protocol: Protocol) -> list[Table]:
    """Accuracy on each source of the test split, and a table of the differences of each arm from the one it names."""
    found = {arm: seeds_of(results, arm, "test") for arm in protocol["arms"]}
    seeds = {arm: of for arm, of in found.items() if of}
    names = [name for name, of in protocol["data"]["sources"].items() if "test" in of]
    rows = []
    for name in names:
        figures = {arm: seed_figures(_only(of, name)) for arm, of in seeds.items()}
        any_of = next(iter(figures.values()))
        longer = percent(any_of.length_baseline) if any_of.length_baseline is not None else ""
        n = f"{count(any_of.n)} of {count(any_of.prompts)}"
        rows.append((name, n, longer, *(percent(of.accuracy) for of in figures.values())))
    rows.append(("mean over the sets", "", "", *(percent(_mean_accuracy(of, names)) for of in seeds.values())))
    tables = [Table(("test set", "preferences of prompts", "the longer wins", *seeds), rows, notes=[])]
    against = {arm: protocol["arms"][arm].get("against", []) for arm in seeds}
    pairs = [(arm, one) for arm, of in against.items() for one in ([of] if isinstance(of, str) else of)]
    for arm, other in pairs:
        of = seeds[arm]
        if other in seeds and of.keys() & seeds[other].keys():
            lines = [_difference_line(name, _only(of, name), _only(seeds[other], name)) for name in names]
            lines.append(_difference_line("mean over the sets", of, seeds[other], True))
            headings = (f"{arm} − {other}, points", "", "95 % interval", "each seed", "detectable", "")
            tables.append(Table(headings, lines, notes=[]))
    return tables


def laws_table(results: Mapping[str, Any], protocol: Protocol) -> Table:
    """The power laws that the protocol names: measured, fitted and predicted accuracies."""
    rows = []
    for of, named in protocol.get("laws", {}).items():
        seeds = {arm: seeds_of(results, arm, "test") for arm in named["arms"]}
        arms = [(float(quantity), seeds[arm]) for arm, quantity in named["arms"].items() if seeds[arm]]
        if len(arms) < 3:
            continue
        law = law_of(arms, [*map(float, named["predict"])])
        spread = f"{decimal(law.interval.low)} to {decimal(law.interval.high)}"
        for quantity, of_seeds in arms:
            rows.append(
                (of, count(quantity), percent(seed_figures(of_seeds).accuracy), percent(law.fitted[quantity]), "")
            )
        for quantity, (accuracy, likely) in law.predicted.items():
            rows.append((of, count(quantity), "", percent(accuracy), interval(likely.low, likely.high)))
        rows.append((f"{of}: exponent", "", "", decimal(law.exponent), spread))
    return Table(("error falls with", "", "measured", "law", "95 % interval"), rows, notes=[LAWS])


def _only(seeds: Seeds, source: str) -> Seeds:
    return {seed: [row for row in rows if row.source == source] for seed, rows in seeds.items()}


def _mean_accuracy(seeds: Seeds, names: Sequence[str]) -> float:
    return sum(seed_figures(_only(seeds, name)).accuracy for name in names) / len(names)


def trained_table(results: Mapping[str, Any], protocol: Protocol) -> Table:
    """The prompts that each arm of rmtrain trained on, once ties and faulty rows are dropped, and what it cost."""
    names = [name for name, of in protocol["data"]["sources"].items() if "train" in of]
    rows = []
    for arm in protocol["arms"]:
        runs = [run for name, run in results["runs"].items() if name.startswith(f"{arm}:") and "prompts" in run]
        if runs:
            prompts = [count(runs[0]["prompts"].get(name, 0)) for name in names]
            rows.append((arm, *prompts, *(mean_of(runs, key) for key in ("steps", "tokens", "seconds"))))
    return Table(("prompts for training", *names, "steps", "tokens a run", "seconds"), rows, notes=[])


def calibration_table(results: Mapping[str, Any], protocol: Protocol) -> Table:
    """Test figures of the arms that were scored on both splits, before and after a calibration that validation fits."""
    rows = []
    for arm in protocol["arms"]:
        fitted_on, before = (seeds_of(results, arm, split) for split in ("validation", "test"))
        if not fitted_on or not before:
            continue
        for by_length in (False, True):
            label = f"{arm}{', length too' if by_length else ''}"
            try:
                fits = {seed: fit(fitted_on[seed], "", by_length, {}) for seed in before}
            except InputError:  # a seed ranks the validation prompts no better than chance
                rows.append((label, "no temperature fits", *[""] * 5))
                continue
            after = {seed: calibrated_rows(fits[seed], of_seed) for seed, of_seed in before.items()}
            loss, (was, now) = seed_difference(after, before, "loss"), map(_means, (before, after))
            rows.append(
                (
                    label,
                    *(f"{decimal(old)} → {decimal(new)}" for old, new in zip(was, now, strict=True)),
                    f"{loss.difference:+.3f}",
                    f"{loss.low:+.3f} to {loss.high:+.3f}",
                )
            )
    headings = (
        "calibrated",
        "accuracy",
        "loss",
        "calibration error",
        "length corr.",
        "change of loss",
        "95 % interval",
    )
    note = (
        "As the command calibrate does it: offset and temperature, and for (length too) a curve over lengths, fitted "
        "on the validation prompts. Means over the seeds; losses in nats. A temperature ranks nothing anew."
    )
    return Table(headings, rows, notes=[note])


def _means(seeds: Seeds) -> tuple[float, float, float, float]:
    """Accuracy, loss, calibration error and length correlation, each a mean over seeds."""
    figures = seed_figures(seeds)
    errors = [expected_calibration_error(gaps_of(rows).gaps) for rows in seeds.values()]
    known = [error for error in errors if error is not None]
    return figures.accuracy, figures.loss, sum(known) / len(known), figures.length_correlation or math.nan


def _difference_line(title: str, ours: Seeds, theirs: Seeds, each_source_alike: bool = False) -> tuple[str, ...]:
    found = seed_difference(ours, theirs, each_source_alike=each_source_alike)
    return (
        title,
        points(found.difference, 1, "+"),
        f"{points(found.low, 1, '+')} to {points(found.high, 1, '+')}",
        ", ".join(points(value, 1, "+") for value in found.by_seed),
        points(found.detectable, 1),
        f"found{' (on one seed)' if found.seeds == 1 else ''}" if found.found else "no difference found",
    )


def costs_table(costs: Mapping[str, Any]) -> Table:
    """What scripts/bench_objectives.py measured: time and memory of each objective beside plain Bradley-Terry."""
    rows = []
    for name, side in costs["sides"].items():
        times = side["times_plain"]
        spread = f"{decimal(times['min'], 2)} to {decimal(times['max'], 2)}"
        seconds, peak = decimal(side["seconds_a_step"]["median"], 2), decimal(side["peak_gib"]["median"], 2)
        rows.append((name, seconds, decimal(times["median"], 2), spread, peak, decimal(side["peak_times_plain"], 2)))
    headings = ("loss", "seconds a step", "times plain", "least to greatest", "peak GiB", "times plain")
    return Table(headings, rows, notes=[])


def losses_table(losses: Mapping[str, Mapping[str, Any]]) -> Table:
    """The losses of each step, in nats, by scripts/bench_training.py for several data types."""
    headings, columns = ["step"], list[list[str]]()
    for dtype, found in losses.items():
        ours, theirs = (found["sides"][name]["losses"] for name in ("rmtrain", "TRL"))
        headings += [f"rmtrain, {dtype}", f"TRL, {dtype}", "difference"]
        columns += [[decimal(loss, 6) for loss in side] for side in (ours, theirs)]
        columns.append([f"{a - b:+.0e}" for a, b in zip(ours, theirs, strict=True)])
    rows = [(str(step), *cells) for step, cells in enumerate(zip(*columns, strict=True), 1)]
    return Table(tuple(headings), rows, notes=[])
