"""`rmtrain data`: what a recipe's data holds."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rmtrain.cli import options
from rmtrain.cli.display import TerminalDisplay

if TYPE_CHECKING:
    from rmtrain.data.curate import CuratedRows
    from rmtrain.data.examples import Example
    from rmtrain.data.prepare import ReadyData


def data(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    show: Annotated[
        str | None,
        typer.Option(
            metavar="CAUSE", help="Show rows dropped for this cause, beside the rows that they repeat or overlap with."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="With --show: maximum rows per source.")] = 3,
    json: options.Json = False,
) -> None:
    """Report the data of a recipe: rows kept and dropped by cause, preferences, lengths, leaks.

    [dim]rmtrain data configs/mistral_lora.yaml[/]
    [dim]rmtrain data configs/mistral_lora.yaml --show leak[/]
    """
    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import start_renderer
    from rmtrain.recipe.load import load_recipe
    from rmtrain.reporting import examples as shown
    from rmtrain.reporting.data_report import data_report, report_tables
    from rmtrain.reporting.table import to_terminal

    loaded = load_recipe(recipe, overrides or []).recipe
    rows: list[CuratedRows] = []
    with TerminalDisplay() as display:
        ready = prepare(loaded, start_renderer(loaded.model), display, keep=rows if show else None)
    console = Console(highlight=False)
    if show:
        found = _examples(ready, rows, show, examples)
        if json:
            print(jsonlib.dumps([example.as_json() for example in found], indent=2, ensure_ascii=False))
        else:
            console.print(shown.to_terminal(found))
        return
    report = data_report(ready.data, ready.splits)
    if json:
        print(jsonlib.dumps(report.as_json(), indent=2, ensure_ascii=False))
        return
    console.print(to_terminal(*report_tables(report)))
    for note in report.notes:
        console.print(f"note: {note}", markup=False)


def _examples(ready: "ReadyData", rows: "list[CuratedRows]", show: str, most: int) -> "list[Example]":
    """The examples of a cause: the cause of exactly this name, otherwise all causes whose names contain it.

    Raises:
        InputError: nothing was dropped for such a cause.
    """
    from rmtrain.data.examples import causes_of, examples_of, matching, token_examples

    causes = [*causes_of(rows), *(cause for split in ready.splits.values() for cause in split.tokens.dropped)]
    return [
        one
        for cause in matching(show, causes)
        for one in (*examples_of(rows, cause, most), *token_examples(ready, cause))
    ]
