"""`rmtrain data`: what a recipe's data holds."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rmtrain.cli import options
from rmtrain.cli.display import TerminalDisplay


def data(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    json: options.Json = False,
) -> None:
    """Report the data of a recipe: rows kept and dropped by cause, preferences, lengths, leaks.

    [dim]rmtrain data configs/mistral_lora.yaml[/]
    """
    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import start_renderer
    from rmtrain.recipe.load import load_recipe
    from rmtrain.reporting.data_report import data_report, report_tables
    from rmtrain.reporting.table import to_terminal

    loaded = load_recipe(recipe, overrides or []).recipe
    with TerminalDisplay() as display:
        ready = prepare(loaded, start_renderer(loaded.model), display)
    report = data_report(ready.data, ready.splits)
    if json:
        print(jsonlib.dumps(report.as_json(), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(to_terminal(*report_tables(report)))
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
