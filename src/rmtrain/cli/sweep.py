"""`rmtrain sweep`: a grid of runs, ranked by validation, or a short probe over learning rates."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from rmtrain.cli import options, processes
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_tables, show
from rmtrain.errors import InputError
from rmtrain.json_values import JsonObject

if TYPE_CHECKING:
    from rmtrain.evaluation.seeds import Metric
    from rmtrain.evaluation.sweep import Standing
    from rmtrain.recipe.grid import Setting
    from rmtrain.training.sweep import Workers

_RATE = "optim.learning_rate"
_RUNGS = (0.25, 0.5)  # shares of the run after which successive halving drops the worse half
_EXTENSIONS = 3  # rates that a probe adds if the best one is at an end of its range
_PROBE_ROWS = 1000  # validation rows of a probe


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How settings are tried and ranked."""

    method: Annotated[
        Literal["grid", "lr-probe"], Option(help="Train all combinations, or find a learning rate by short runs.")
    ] = "grid"
    rank_by: Annotated[
        Literal["accuracy", "loss"] | None,
        Option(help="Validation figure to rank by; default: accuracy, or loss for lr-probe."),
    ] = None
    probe_steps: Annotated[int, Option(min=1, help="Steps per run of lr-probe.")] = 40
    halving: Annotated[
        bool,
        Option(
            "--halving",
            help="Successive halving: train all settings for a quarter of the run, the better half for half of it, and "
            "the rest in full.",
        ),
    ] = False

    @property
    def metric(self) -> "Metric":
        """The figure that ranks."""
        return self.rank_by or ("loss" if self.method == "lr-probe" else "accuracy")


@options.grouped
def sweep(
    *,
    recipe: options.Recipe,
    values: Annotated[
        list[str] | None,
        Argument(metavar="[KEY=A,B,C]...", help="Values to combine; a single value overrides the recipe."),
    ] = None,
    seeds: Annotated[int, Option(min=1, max=100, help="Runs per setting, with consecutive seeds.")] = 1,
    ranking: Ranking,
    final: Annotated[bool, Option("--final", help="Score the runs of the best setting on the test split.")] = False,
    parallel: Annotated[
        int, Option(min=1, max=256, help="Number of runs to train at the same time, each on a GPU of its own.")
    ] = 1,
    dry_run: Annotated[bool, Option("--dry-run", help="List the runs without training.")] = False,
    json: options.Json = False,
) -> None:
    """Train a grid of settings, each with several seeds, and rank them by validation.

    An interrupted command continues when it is run again, and trains no run twice. The test split is scored only with
    --final.

    [dim]rmtrain sweep my.yaml optim.learning_rate=1e-4,3e-4,1e-3 --seeds 3[/]
    [dim]rmtrain sweep my.yaml --method lr-probe[/]
    """
    from rmtrain.training.sweep import Workers, devices_for

    if processes.joined():
        raise InputError("a sweep starts its own processes", "run it without a launcher")
    if ranking.halving and ranking.method == "lr-probe":
        raise InputError("--halving is for grids", "leave it out: the runs of a probe are short")
    with TerminalDisplay() as display:
        trials, rates = _trials(recipe, values or [], seeds, ranking.metric), None
        if ranking.method == "lr-probe":
            trials, rates = _as_probe(trials, ranking.probe_steps)
        settings = trials.settings(rates)
        if dry_run:
            _list(trials, settings)
            return
        workers = Workers(parallel, devices_for(parallel), trials.folder / "logs", display.note)
        if rates is not None:
            ranked = _probe(trials, rates, workers)
        else:
            ranked = trials.trained(_halved(trials, settings, workers) if ranking.halving else settings, workers)
        result = _result(trials, ranking.method, ranked, _final(ranked[0], workers) if final and ranked else None)
        page = _write(trials.folder / ranking.method, result)
    _show(result, json, page)
    if trials.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Trials:
    """What a sweep trains, and the figure that it ranks by."""

    recipe: Path
    values: Sequence[str]  # KEY=A,B,C
    seeds: int
    metric: "Metric"
    name: str
    folder: Path  # where the runs are
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # runs in words

    def settings(self, rates: Sequence[float] | None = None) -> "list[Setting]":
        """The grid, with the learning rates replaced by these if they are given."""
        from rmtrain.recipe.grid import grid

        probed = [f"{_RATE}={','.join(f'{rate:g}' for rate in rates)}"] if rates else []
        return grid(self.recipe, [*self.values, *probed])

    def trained(self, settings: "Sequence[Setting]", workers: "Workers", seeds: int | None = None) -> "list[Standing]":
        """Train the missing runs and rank the settings; those without a finished run are left out."""
        from rmtrain.evaluation.sweep import rank, rows_of
        from rmtrain.training.sweep import plan

        runs = plan(settings, seeds or self.seeds, self.folder)
        self.failed.extend(run.name for run in workers.train(runs))
        finished: dict[int, dict[int, Path]] = {setting.number: {} for setting in settings}  # run folders by seed
        for run in runs:
            if path := run.finished():
                if not rows_of(path, "validation").exists():  # it was interrupted during scoring
                    workers.evaluate(path, "validation")
                finished[run.setting.number][run.seed] = path
        return rank([(setting, finished[setting.number]) for setting in settings], self.metric)


def _trials(recipe: Path, values: Sequence[str], seeds: int, metric: "Metric") -> _Trials:
    """The sweep of a recipe. Its runs score validation only, so that the test split stays unused.

    Raises:
        RecipeError: the recipe has faults.
        InputError: it has no validation split.
    """
    from rmtrain.recipe.grid import grid

    values = [*values, "evaluation.splits=[validation]"]
    first = grid(recipe, values)[0].loaded
    data = first.recipe.data
    if isinstance(data.source, dict) and "validation" not in data.source and not data.holdout.validation:
        raise InputError(
            f"{recipe}: a sweep ranks by validation, but the recipe has no validation split", "set data.holdout"
        )
    return _Trials(recipe, values, seeds, metric, first.name, Path(first.recipe.run.folder) / f"{first.name}-sweep")


def _as_probe(trials: _Trials, steps: int) -> tuple[_Trials, list[float]]:
    """The sweep with short runs, and its first learning rates.

    The rates are those given, else five around the recipe's own, each about 3 times the one before.
    """
    from rmtrain.recipe.grid import grid

    given = [value for value in trials.values if value.startswith(f"{_RATE}=")]
    recipes = [setting.loaded.recipe for setting in grid(trials.recipe, trials.values)]
    rates = sorted({recipe.optim.learning_rate for recipe in recipes})
    if len(rates) < len(recipes):
        raise InputError("a probe varies only the learning rate", "give every other key a single value")
    if len(rates) == 1:
        rates = [float(f"{rates[0] * 10 ** (half / 2):.2g}") for half in range(-2, 3)]
    fixed = [f"optim.max_steps={steps}", "evaluation.every=0", "evaluation.select=last"]
    if "validation" not in recipes[0].data.limit:
        fixed.append(f"data.limit.validation={_PROBE_ROWS}")
    others = [value for value in trials.values if value not in given]
    return replace(trials, values=[*others, *fixed]), rates


def _probe(trials: _Trials, rates: Sequence[float], workers: "Workers") -> "list[Standing]":
    """The rates, ranked. While the best one is at an end of the range, further rates beyond it are tried."""
    for extension in range(_EXTENSIONS + 1):
        ranked = trials.trained(trials.settings(rates), workers)
        best = ranked[0].setting.loaded.recipe.optim.learning_rate if ranked else None
        ends = {rates[0]: rates[0] ** 2 / rates[1], rates[-1]: rates[-1] ** 2 / rates[-2]}
        if best not in ends or not 0 < ends[best] <= 10:
            break
        if extension == _EXTENSIONS:
            trials.notes.append("The best rate is still at an end of the range: probe further rates beyond it.")
            break
        rates = sorted([*rates, float(f"{ends[best]:.2g}")])
        workers.notify(f"{best:g} is at an end of the range, so {ends[best]:.2g} is tried too")
    return ranked


def _halved(trials: _Trials, settings: "list[Setting]", workers: "Workers") -> "list[Setting]":
    """The settings that successive halving keeps (arXiv 1502.07943). Each round trains from the start with one seed."""
    from rmtrain.recipe.grid import shortened

    for share in _RUNGS:
        if len(settings) == 1:
            break
        ranked = trials.trained([shortened(setting, share) for setting in settings], workers, seeds=1)
        kept = {standing.setting.number for standing in ranked[: (len(settings) + 1) // 2]}
        out = ", ".join(str(setting.number) for setting in settings if setting.number not in kept)
        trials.notes.append(f"Left out after {share:.0%} of the run, by validation {trials.metric}: setting {out}.")
        workers.notify(trials.notes[-1])
        settings = [setting for setting in settings if setting.number in kept]
    return settings


def _final(winner: "Standing", workers: "Workers") -> JsonObject:
    """The test figures of the winner's runs; those without one are scored."""
    from dataclasses import asdict

    from rmtrain.evaluation.seeds import seed_figures
    from rmtrain.evaluation.sweep import rows_by_seed, rows_of

    for run in winner.runs.values():
        if not rows_of(run, "test").exists():
            workers.evaluate(run, "test")
    return {"setting": winner.setting.number, **asdict(seed_figures(rows_by_seed(winner.runs, "test")))}


def _result(trials: _Trials, method: str, ranked: "list[Standing]", final: JsonObject | None) -> dict[str, Any]:
    """The result as JSON holds it, with seeds as text."""
    from rmtrain.evaluation.sweep import verdict

    best = ranked[0].setting.loaded.recipe.optim.learning_rate if ranked else None
    result = {
        "name": trials.name,
        "recipe": str(trials.recipe),
        "folder": str(trials.folder),
        "method": method,
        "ranked_by": trials.metric,
        "seeds": trials.seeds,
        "settings": [standing.to_json() for standing in ranked],
        "verdict": verdict(ranked),
        "learning_rate": best if method == "lr-probe" else None,
        "notes": trials.notes,
        "failed": trials.failed,
        "final": final,
    }
    return dict(jsonlib.loads(jsonlib.dumps(result)))


def _write(stem: Path, result: dict[str, Any]) -> Path:
    from rmtrain.files import write_json
    from rmtrain.reporting.sweep import write_page

    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(stem.with_suffix(".json"), result)
    return write_page(stem.with_suffix(".html"), result)


def _show(result: dict[str, Any], as_json: bool, page: Path) -> None:
    from rmtrain.reporting.sweep import sweep_tables

    lines = [f"failed: {name}" for name in result["failed"]]
    if result["learning_rate"] is not None:
        lines.append(f"recommended: {_RATE}={result['learning_rate']:g}")
    show(result, as_json, sweep_tables, *lines, f"report: {page}")


def _list(trials: _Trials, settings: "Sequence[Setting]") -> None:
    """Print the runs and their states."""
    from rmtrain.reporting.table import Table
    from rmtrain.training.sweep import plan

    runs = plan(settings, trials.seeds, trials.folder)
    rows = [(run.setting.number, run.setting.label, run.seed, str(run.finished() or "not trained yet")) for run in runs]
    print_tables([Table(("", "setting", "seed", "run"), rows, texts=4)])
