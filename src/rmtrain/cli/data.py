"""`rmtrain data`: what a recipe's data holds."""

from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from typer import Option

from rmtrain.cli import options
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json, print_tables

if TYPE_CHECKING:
    from rmtrain.data.examples import Example
    from rmtrain.data.prepare import ReadyData


def data(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    show: Annotated[
        str | None,
        Option(
            metavar="CAUSE", help="Show rows dropped for this cause, beside the rows that they repeat or overlap with."
        ),
    ] = None,
    examples: Annotated[int, Option(min=1, help="With --show: maximum rows per source.")] = 3,
    json: options.Json = False,
) -> None:
    """Report the data of a recipe: rows kept and dropped by cause, preferences, lengths, leaks.

    [dim]rmtrain data configs/mistral_lora.yaml[/]
    [dim]rmtrain data configs/mistral_lora.yaml --show leak[/]
    """
    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import start_renderer
    from rmtrain.recipe.load import load_recipe
    from rmtrain.reporting.data_report import data_report, report_tables
    from rmtrain.reporting.examples import to_terminal

    loaded = load_recipe(recipe, overrides or []).recipe
    with TerminalDisplay() as display:
        ready = prepare(loaded, start_renderer(loaded.model), display, with_rows=bool(show))
    console = Console(highlight=False)
    if show:
        dropped = _examples(ready, show, examples)
        if json:
            print_json([example.as_json() for example in dropped], ascii_only=False)
        else:
            console.print(to_terminal(dropped))
        return
    report = data_report(ready.data, ready.splits)
    if json:
        print_json(report.as_json(), ascii_only=False)
        return
    print_tables(report_tables(report))
    for note in report.notes:
        console.print(f"note: {note}", markup=False)


def _examples(ready: "ReadyData", show: str, most: int) -> "list[Example]":
    """The examples of a cause: the cause of exactly this name, otherwise all causes whose names contain it.

    Raises:
        InputError: nothing was dropped for such a cause.
    """
    from rmtrain.data.examples import causes_of, examples_of, matching, token_examples

    rows = ready.data.rows
    causes = [*causes_of(rows), *(cause for split in ready.splits.values() for cause in split.tokens.report.dropped)]
    chosen = matching(show, causes)
    return [each for cause in chosen for each in (*examples_of(rows, cause, most), *token_examples(ready, cause))]
