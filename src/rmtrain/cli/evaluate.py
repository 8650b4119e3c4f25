"""`rmtrain eval`: ranking accuracy of a checkpoint on splits or on other data."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json, print_tables


@options.grouped
def evaluate(
    *,
    ckpt: options.Ckpt = None,
    scoring: options.Scoring,
    split: Annotated[list[str] | None, Option(help="Split of the recipe, or of --data; may be repeated.")] = None,
    data: Annotated[
        str | None, Option(metavar="SOURCE", help="Other data to evaluate on: hub dataset id, local file, or demo.")
    ] = None,
    min_accuracy: Annotated[
        float | None, Option(min=0, max=1, help="Exit with code 1 if the accuracy of a split is lower.")
    ] = None,
    reading: options.Reading,
    work: options.Work,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Measure the ranking accuracy of a checkpoint on splits of its recipe, or on other data.

    [dim]rmtrain eval --split test[/]
    [dim]rmtrain eval --ckpt runs/mistral_lora-20260101-120000-ab12 --data pairs.jsonl --min-accuracy 0.7[/]
    [dim]rmtrain eval --ckpt runs/a-20260101-120000-ab12,runs/b-20260102-120000-cd34 --combine min[/]
    """
    from rmtrain.evaluation.sources import splits_of_recipe, splits_of_source

    with TerminalDisplay() as display:
        ref = choose(ckpt, runs, display, scoring.options, not work.no_verify)
        mapping = reading.mapping()
        processes.spread(work.num_processes)
        scorer = load(ref, display)
        names = split or []
        if data is None:
            splits = splits_of_recipe(ref.first, names, mapping, display.note)
        else:
            splits = splits_of_source(data, names, ref.first, mapping, display.note)
        from rmtrain.evaluation.splits import evaluate_splits

        budget = work.tokens_per_batch or scorer.info.tokens_per_batch
        results = evaluate_splits(scorer, splits, budget, ref.results / "eval", display)
    if not processes.is_main_process():
        return
    if json:
        print_json(results[0] if len(results) == 1 else results)
    else:
        from rmtrain.reporting.tables import ensemble_table, split_tables

        ensembles = [ensemble_table(result) for result in results if "disagreement" in result]
        print_tables([*split_tables(results), *ensembles], *(f"rows: {result['rows']}" for result in results))
    missed = [result for result in results if (result["accuracy"] or 0.0) < (min_accuracy or 0.0)]
    for result in missed:
        accuracy = result["accuracy"] or 0.0
        display.note(f"{result['split']}: accuracy {accuracy:.6g} is below --min-accuracy {min_accuracy:g}")
    if missed:
        raise typer.Exit(1)
