"""`rmtrain curate`: training pairs judged by reward models, and a new source without those that a rule rejects."""

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rmtrain.cli import options, processes
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import InputError
from rmtrain.json_values import JsonObject

if TYPE_CHECKING:
    from rmtrain.data.judged import Judged, Margins, Rule
    from rmtrain.data.split_data import SplitData
    from rmtrain.recipe.schema import Recipe


def curate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    output: Annotated[Path, typer.Option(metavar="OUT.jsonl", help="The new source.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(metavar="CKPT", help="Reward model: run folder, folder or hub id; may be repeated."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, max=50, help="Train a model on each of so many folds; the others judge its rows."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Reject by majority (the default), hardest=SHARE or easiest=SHARE; may be repeated."),
    ] = None,
    mark: Annotated[
        bool, typer.Option("--mark", help="Keep every row, and say in `verdicts` what the rules say.")
    ] = False,
    examples: Annotated[int, typer.Option(min=0, help="Examples to show of each cause.")] = 2,
    json: options.Json = False,
) -> None:
    """Judge the training pairs of a recipe by reward models, and write those that are left as a new source.

    The same command goes on where it was stopped.

    [dim]rmtrain curate my.yaml --judge org/reward-model --judge runs/mine-20260101-120000-ab12 --output kept.jsonl[/]
    [dim]rmtrain curate my.yaml --folds 5 --rule majority --rule easiest=0.1 --output kept.jsonl[/]
    """
    options.check_output(output)
    if bool(judge) == bool(folds):
        raise InputError("curate needs judges", "name some with --judge, or have them trained with --folds; not both")
    if processes.joined():
        raise InputError("curate starts its commands itself", "start it without a launcher")
    from rmtrain.data.judged import Judged, Rule
    from rmtrain.recipe.load import load_recipe
    from rmtrain.reporting.curation import curation_tables, example_rows
    from rmtrain.reporting.examples import to_terminal as show_examples
    from rmtrain.reporting.table import to_terminal

    rules = [Rule.of(text) for text in rule or ["majority"]]
    loaded = load_recipe(recipe, overrides or []).recipe
    with TerminalDisplay() as display, processes.alone(output):
        split = _training_split(loaded, display)
        names, margins = _judge(loaded, split, output, judge or [], folds or 0, display)
        judged = Judged.by(rules, split.groups, margins)
        result = _record(names, rules, judged, split, mark)
        _write(output, judged, result, mark)
    if json:
        print(jsonlib.dumps({"output": str(output), **result}, indent=2))
        return
    console = Console(highlight=False)
    console.print(to_terminal(*curation_tables(result)))
    console.print(show_examples(example_rows(judged, split.place, examples)))
    console.print(f"written: {output}", soft_wrap=True)


def _training_split(recipe: "Recipe", display: TerminalDisplay) -> "SplitData":
    """The training split as curated, without added completions, and without ties, of which no side can be wrong."""
    from rmtrain.data.judged import has_votes
    from rmtrain.data.load import load_data
    from rmtrain.recipe.data_schema import AugmentSection

    section = recipe.data.model_copy(update={"augment": AugmentSection(), "tied": "drop", "gap_scale": None})
    data = load_data(section, recipe.run.seed, ["train"])
    for note in data.notes:
        display.note(f"note: {note}")
    split = data.splits["train"]
    if has_votes(split.groups):
        display.note("note: the new source holds the shares of the raters: read them with data.votes=votes")
    gaps = sum(p.gap is not None for group in split.groups if group.scores is None for p in group.preferences)
    if gaps:
        display.note(f"note: score gaps of rows without scores, which the new source does not hold: {gaps}")
    return split


def _judge(
    recipe: "Recipe", split: "SplitData", output: Path, ckpts: Sequence[str], folds: int, display: TerminalDisplay
) -> tuple[list[str], "Margins"]:
    """The judges, and their margins of every preference; a fold's model says nothing of its own rows."""
    import numpy as np

    from rmtrain.cli.judges import Judges
    from rmtrain.data.judged import folds_of, margins_of

    folder = output.with_name(f"{output.name}.judges")
    folder.mkdir(exist_ok=True)
    judges, fold_of = Judges(folder, split.groups, display), list[int]()
    if folds:
        fold_of = folds_of(split.groups, folds, recipe.run.seed)
        if len({*fold_of}) < folds:
            raise InputError(f"--folds {folds}: there are only {len({*fold_of})} prompts", "ask for fewer")
        ckpts = judges.train(recipe, fold_of)
    columns = [margins_of(split.groups, judges.rewards(ckpt)) for ckpt in ckpts]
    margins = np.stack(columns, axis=1)
    for group_fold in range(folds):
        own = np.array(
            [fold == group_fold for g, fold in zip(split.groups, fold_of, strict=True) for _ in g.preferences]
        )
        margins[own, group_fold] = np.nan
    return list(ckpts), margins


def _record(
    names: Sequence[str], rules: "Sequence[Rule]", judged: "Judged", split: "SplitData", mark: bool
) -> JsonObject:
    """What was judged, by whom, by which rules, and with which result: recorded beside the rows."""
    from dataclasses import asdict

    from rmtrain.data.judged import histogram, judge_figures

    return {
        "rules": [rule.cause for rule in rules],
        "marked": mark,
        "judges": judge_figures(names, judged.margins),
        "rows": asdict(judged.rows()),
        "preferences": asdict(judged.preferences()),
        "histogram": histogram(judged),
        "data": split.origin,
    }


def _write(output: Path, judged: "Judged", result: JsonObject, mark: bool) -> None:
    from rmtrain.data.curated_source import write_curated

    write_curated(output, judged.source(mark), result)
