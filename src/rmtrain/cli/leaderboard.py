"""`rmtrain leaderboard`: published reward models and your own results in one table."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from rmtrain.cli import options
from rmtrain.cli.display import TerminalDisplay


def leaderboard(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RESULT]...", help="Further results: files of `rmtrain rewardbench`, or published accuracies."
        ),
    ] = None,
    era: Annotated[
        Literal["current", "2024-04", "2024-03", "subset_mean"], typer.Option(help="Version of the formulas.")
    ] = "current",
    sort: Annotated[
        Literal["mean", "with-prior", "published", "chat", "chat-hard", "safety", "reasoning"],
        typer.Option(help="Figure to rank by, such as the mean of four sections or the score with prior sets."),
    ] = "mean",
    form: Annotated[Literal["text", "markdown", "json"], typer.Option("--format", help="Output format.")] = "text",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also plot the table; the file is a .png, .svg or .pdf.")
    ] = None,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Show published reward models on RewardBench 1 under the original and the current formulas, beside your own.

    [dim]rmtrain leaderboard[/]
    [dim]rmtrain leaderboard --era 2024-03 --sort with-prior --plot leaderboard.png my/rewardbench-1.json[/]
    """
    from rmtrain.evaluation.leaderboard import leaderboard as make_board
    from rmtrain.evaluation.leaderboard import own_entries
    from rmtrain.reporting.leaderboard import leaderboard_tables, save_plot
    from rmtrain.reporting.table import to_markdown, to_terminal

    own, faults = own_entries([runs, Path("results")], results or [], era)
    display = TerminalDisplay()
    for fault in faults:
        display.note(f"left out: {fault}")
    board = make_board(era, sort, own)
    if plot is not None:
        save_plot(board, plot)
        display.note(f"plot: {plot}")
    if json or form == "json":
        print(jsonlib.dumps(board.to_json(), indent=2, ensure_ascii=False))
    elif form == "markdown":
        print("\n\n".join(map(to_markdown, leaderboard_tables(board))))
    else:
        Console(highlight=False).print(to_terminal(*leaderboard_tables(board, digits=1)))
