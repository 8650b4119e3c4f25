"""`rmtrain train`: from a recipe to a scored reward model."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from rmtrain.cli import options, processes
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json, print_tables
from rmtrain.errors import CheckpointError, InputError, RecipeError, command_line, masked, printable
from rmtrain.runs import wandb_notes

if TYPE_CHECKING:
    from rmtrain.data.prepare import ReadyData
    from rmtrain.data.split_data import SplitData
    from rmtrain.documents import Result
    from rmtrain.recipe.load import LoadedRecipe


def train(
    recipe: Annotated[
        Path | None, Argument(metavar="RECIPE", help="Recipe file (YAML); optional with --resume.", show_default=False)
    ] = None,
    overrides: options.Overrides = None,
    num_processes: options.Processes = None,
    resume: Annotated[
        Path | None, Option(metavar="RUN", help="Resume this run from its newest valid checkpoint.")
    ] = None,
    allow_changes: Annotated[
        bool, Option("--allow-changes", help="Resume even if the recipe or the data have changed.")
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check everything and print the plan, without training.")
    ] = False,
    print_config: Annotated[
        bool, Option("--print-config", help="Print every value and its origin, without training.")
    ] = False,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Train a reward model, then score the recipe's validation and test splits.

    [dim]rmtrain train configs/mistral_lora.yaml[/]
    [dim]rmtrain train configs/mistral_lora.yaml optim.learning_rate=2e-5 --num-processes 4[/]
    [dim]rmtrain train --resume runs/mistral_lora-20260101-120000-ab12[/]
    """
    loaded = _load(recipe, overrides or [], resume)
    if print_config:
        _print_config(loaded, json)
        return
    if dry_run:
        from rmtrain.cli.dry_run import dry_run as check

        check(loaded.recipe, num_processes, json, resume, allow_changes, not no_verify)
        return
    number = 1 if processes.joined() else processes.processes_wanted(num_processes)
    with TerminalDisplay() as display:
        ready = _prepare(loaded, not no_verify, display)  # before a process group exists, whose timeout it could exceed
        if number > 1:
            from rmtrain.data.prepare import shared_with_processes

            with shared_with_processes(ready.data):
                del ready  # the processes load their own copy
                runs = resume.absolute().parent if resume is not None else Path(loaded.recipe.run.folder)
                raise typer.Exit(processes.launch(number, runs))
        result = _train_and_score(loaded, ready, resume, allow_changes, display)
    if not processes.is_main_process():
        return
    if json:
        print_json(result)
    else:
        _show(result)


def _load(recipe: Path | None, overrides: list[str], resume: Path | None) -> "LoadedRecipe":
    from rmtrain.recipe.load import load_recipe

    if recipe is not None and "=" in str(recipe) and not recipe.exists():  # only overrides are given
        recipe, overrides = None, [str(recipe), *overrides]
    if recipe is None:
        if resume is None:
            raise InputError(
                "no recipe named", "rmtrain train RECIPE; `rmtrain recipes list` shows the bundled recipes"
            )
        if not (resume / "recipe.yaml").exists():
            raise InputError(f"{resume} is not a run folder: it has no recipe.yaml", "see `rmtrain runs list`")
        return _recipe_of_run(resume / "recipe.yaml", overrides)
    return load_recipe(recipe, overrides)


def _recipe_of_run(path: Path, overrides: list[str]) -> "LoadedRecipe":
    """The recipe recorded in a run folder.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    from rmtrain.recipe.load import load_recipe

    try:
        load_recipe(path)
    except RecipeError as error:
        command = command_line("train", "RECIPE", "--resume", path.parent)
        raise CheckpointError(
            f"the run's own recipe is damaged, or of another version: {error}",
            f"name the recipe that the run was started with: {command}",
        ) from error
    return load_recipe(path, overrides)


def _prepare(loaded: "LoadedRecipe", verify: bool, display: TerminalDisplay) -> "ReadyData":
    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import recipe_renderer

    ready = prepare(loaded.recipe, recipe_renderer(loaded.recipe.model, verify), display)
    parts = [(part.data.label(name), part) for name, split in ready.splits.items() for part in split.parts]
    for name, part in parts:
        rows = part.ledger("rows")
        dropped = ", ".join(f"{n} {cause}" for cause, n in rows.dropped.items()) or "none"
        again = f", repeated to {part.data.repeated}" if part.data.repeated else ""
        display.note_once(f"{name}: {rows.total} rows, {rows.kept} kept{again}, dropped: {dropped}")
    for note in ready.data.notes:
        display.note_once(f"note: {note}")
    for name, part in parts:
        report = part.tokens.report
        if report.truncated:
            most = f"{loaded.recipe.data.max_length} tokens"
            display.note_once(f"{name}: {report.truncated} of {len(part.tokens)} groups truncated to {most}")
        for cause, lost in report.dropped.items():
            which = f"{lost.preferences} preferences {cause}"
            display.note_once(f"{name}: {which}, dropped; {lost.rows} rows had no other preference")
    return ready


def _train_and_score(
    loaded: "LoadedRecipe", ready: "ReadyData", resume: Path | None, allow_changes: bool, display: TerminalDisplay
) -> dict[str, Any]:
    from rmtrain.cli.checkpoints import CheckpointRef, load
    from rmtrain.reporting.card import write_model_card
    from rmtrain.reporting.report import write_report
    from rmtrain.training.failures import recording_what_follows
    from rmtrain.training.train import train as run_training

    trained = run_training(loaded, ready.splits, ready.renderer, display, resume, allow_changes)
    section, splits = loaded.recipe.evaluation, ready.data.splits
    wanted: dict[str, SplitData] = {name: splits[name] for name in section.splits if name in splits}
    results: list[Result] = []
    with recording_what_follows(trained.run):
        if wanted:
            from rmtrain.evaluation.splits import evaluate_splits

            scorer = load(CheckpointRef(str(trained.run / "final"), trained.run, trained.run.name), display)
            results = evaluate_splits(scorer, wanted, section.tokens_per_batch, trained.run / "eval", display)
        if processes.is_main_process():
            write_model_card(trained.run)
            write_report(trained.run)
    return {**trained._asdict(), "run": str(trained.run), "splits": {result["split"]: result for result in results}}


def _show(result: dict[str, Any]) -> None:
    from rmtrain.reporting.tables import split_tables

    speed = result["tokens_per_second"]
    lines = [f"{result['steps']} steps, {result['tokens']:,} tokens, {speed:,.0f} tokens/s" if speed else ""]
    lines += [f"results: {result['run']}", f"report:  {result['run']}/report.html"]
    lines += wandb_notes(Path(result["run"]))
    print_tables(split_tables(list(result["splits"].values())), *lines)


def _print_config(loaded: "LoadedRecipe", as_json: bool) -> None:
    from rmtrain.recipe.load import list_settings
    from rmtrain.recipe.yaml12 import inline
    from rmtrain.training.strategies import strategy_configs

    rows, strategies = list_settings(loaded), strategy_configs(loaded.recipe)
    if as_json:
        settings: dict[str, Any] = {key: {"value": value, "origin": origin} for key, value, origin in rows}
        engine = {"value": strategies, "origin": "made from the recipe"}
        print(masked(jsonlib.dumps({**settings, "engine": engine}, indent=2)))
        return
    for key, value, origin in rows:
        print(printable(f"{f'{key}: {inline(value)}':<60}  # {origin}"))
    for name, config in strategies.items():
        print(f"\n# {name}, made from the recipe\n{jsonlib.dumps(config, indent=2)}")
