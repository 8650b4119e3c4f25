"""`rmtrain data`: what a recipe's data holds."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rmtrain.cli import options
from rmtrain.cli.display import TerminalDisplay


def data(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    json: options.Json = False,
) -> None:
    """Count what a recipe's splits hold: rows kept and dropped by cause, preferences, lengths, leaks.

    [dim]rmtrain data configs/mistral_lora.yaml[/]
    """
    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import start_renderer
    from rmtrain.recipe.load import load_recipe
    from rmtrain.reporting.books import describe_splits, ledger_tables
    from rmtrain.reporting.table import to_terminal

    wanted = load_recipe(recipe, overrides or []).recipe
    with TerminalDisplay() as display:
        ready = prepare(wanted, start_renderer(wanted.model), display)
    books = describe_splits(ready.data, ready.splits)
    if json:
        print(jsonlib.dumps(books, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(to_terminal(*ledger_tables(books)))
    for note in books["notes"]:
        console.print(f"note: {note}", markup=False)
