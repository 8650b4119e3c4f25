"""`rmtrain leaderboard`: published reward models and your own results in one table."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from rmtrain.cli import options
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json, print_tables


def leaderboard(
    results: Annotated[
        list[Path] | None,
        Argument(
            metavar="[RESULT]...", help="Further results: files of `rmtrain rewardbench`, or published accuracies."
        ),
    ] = None,
    era: Annotated[
        Literal["current", "2024-04", "2024-03", "subset_mean"], Option(help="Version of the formulas.")
    ] = "current",
    sort: Annotated[
        Literal["mean", "with-prior", "published", "chat", "chat-hard", "safety", "reasoning"],
        Option(help="Figure to rank by, such as the mean of four sections or the score with prior sets."),
    ] = "mean",
    form: Annotated[Literal["text", "markdown", "json"], Option("--format", help="Output format.")] = "text",
    plot: Annotated[
        Path | None, Option(metavar="FILE", help="Also plot the table; the file is a .png, .svg or .pdf.")
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
    from rmtrain.reporting.table import to_markdown

    own, faults = own_entries([runs, Path("results")], results or [], era)
    display = TerminalDisplay()
    for fault in faults:
        display.note(f"left out: {fault}")
    board = make_board(era, sort, own)
    if plot is not None:
        save_plot(board, plot)
        display.note(f"plot: {plot}")
    if json or form == "json":
        print_json(board.to_json(), ascii_only=False)
    elif form == "markdown":
        print("\n\n".join(map(to_markdown, leaderboard_tables(board))))
    else:
        print_tables(leaderboard_tables(board, digits=1))
