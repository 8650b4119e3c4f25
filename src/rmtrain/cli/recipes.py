"""`rmtrain recipes`: the bundled recipes, and the JSON schema of a recipe."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from rmtrain.cli.output import print_json, print_tables
from rmtrain.errors import command_line
from rmtrain.recipe import bundled

app = typer.Typer(no_args_is_help=True, help="List, show or copy the bundled recipes; print their JSON schema.")

Name = Annotated[str, Argument(metavar="NAME", help="A bundled recipe, such as mistral_lora.")]


@app.command("list")
def list_recipes() -> None:
    """List the bundled recipes and their purpose."""
    from rmtrain.reporting.table import Table

    rows = [(recipe.name, recipe.purpose) for recipe in bundled.bundled_recipes()]
    print_tables([Table(("recipe", "for"), rows, texts=2)])


@app.command()
def show(name: Name) -> None:
    """Print a bundled recipe."""
    print(bundled.find(name).text, end="")


@app.command()
def copy(
    name: Name,
    destination: Annotated[
        Path | None, Argument(metavar="DEST", help="File or folder for the copy; default: NAME.yaml in this folder.")
    ] = None,
) -> None:
    """Copy a bundled recipe to edit and train with; never overwrites a file."""
    target = bundled.copy(name, destination)
    print(f"wrote {target}\nnext: {command_line('train', target)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, with which editors complete and check YAML."""
    from rmtrain.recipe.load import json_schema

    print_json(json_schema(), ascii_only=False)
