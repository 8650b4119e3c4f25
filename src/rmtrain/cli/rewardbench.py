"""`rmtrain rewardbench`: RewardBench and its kin, with every era of scoring side by side."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.data.benchmarks import benchmark_named
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    pass


def rewardbench(
    ckpt: options.Ckpt = None,
    prompt: options.Prompt = None,
    label: options.Label = None,
    reference: options.Reference = None,
    reference_free: options.ReferenceFree = None,
    combine: options.Combine = None,
    calibrated: options.Calibrated = False,
    benchmark: Annotated[options.BenchmarkName, typer.Option(help="The benchmark to score.")] = "rewardbench-1",
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Rows of the benchmark; default: its dataset on the hub.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the rows; default: the benchmark's own, or the only one.")
    ] = None,
    prior_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Prior sets too: a hub id, a folder of shp.jsonl and the like, or NAME=FILE; may be repeated.",
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Score published subset accuracies instead, with no model; may be repeated, as for prior sets.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the leaderboard's flat JSON of subset accuracies, as --results reads it."
        ),
    ] = None,
    parity: Annotated[
        Literal["float16", "bfloat16", "float32", "int8"] | None,
        typer.Option(
            help="Score rewardbench-1 also as the leaderboard's runner did, in this precision, and show what differs."
        ),
    ] = None,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    tokens_per_batch: options.Tokens = None,
    num_processes: options.Processes = None,
    no_verify: options.NoVerify = False,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Score a benchmark: subsets, sections with intervals, and the overall score by every version of the formulas.

    [dim]rmtrain rewardbench --ckpt runs/mistral_lora-20260101-120000-ab12 --output mistral.json[/]
    [dim]rmtrain rewardbench --prior-data allenai/preference-test-sets[/]
    [dim]rmtrain rewardbench --results published.json --results prior.json[/]
    """
    if output is not None:
        options.check_output(output)
    asked = ScoringOptions(
        prompt, label, reference, reference_free, max_length, dtype, calibrated=calibrated, combine=combine
    )
    if results:
        unused = {"ckpt": ckpt, **vars(asked), "data": data, "split": split, "parity": parity}
        unused |= {"prior_data": prior_data, "tokens_per_batch": tokens_per_batch, "num_processes": num_processes}
        if named := [f"--{name.replace('_', '-')}" for name, value in unused.items() if value]:
            raise InputError(
                f"--results takes published accuracies and can't be combined with {', '.join(named)}",
                "leave out one or the other",
            )
        from rmtrain.evaluation.flat_results import published_results

        published = [result.to_json() for result in published_results(results, benchmark_named(benchmark))]
        _write_flat(output, published)
        _render(published[0] if len(published) == 1 else published, json)
        return
    if parity and (benchmark != "rewardbench-1" or asked.is_policy or combine is not None):
        raise InputError(
            "--parity is for a single reward model on rewardbench-1", "leave it out, or choose that benchmark"
        )
    with TerminalDisplay() as display:
        ref = choose(ckpt, runs, display, asked, not no_verify)
        processes.spread(num_processes)
        from rmtrain.data.benchmarks.load import read_benchmark
        from rmtrain.evaluation.benchmarks import training_check
        from rmtrain.evaluation.sources import sidecar_of
        from rmtrain.evaluation.splits import evaluate_benchmark

        definition, folder = benchmark_named(benchmark), ref.results / "rewardbench"
        rows = read_benchmark(definition, data, split, prior_data or [], display.note)
        steps = None
        if parity is not None:
            from rmtrain.evaluation.parity import score_as_runner

            steps = score_as_runner(ref.request, parity, rows, folder / f".{benchmark}.parity", display)
        scorer = load(ref, display, benchmark if definition.needs_rewards else "")
        budget = tokens_per_batch or scorer.info.tokens_per_batch
        given = {"max_length": max_length, "dtype": dtype}
        beside: dict[str, Any] = {"asked": {name: value for name, value in given.items() if value is not None}}
        named = [] if asked.is_policy else ref.members
        checks = [training_check(sidecar_of(where), benchmark) for where in named] or [None]
        unchecked = (check for check in checks if not check or not check["checked"])  # one such member is enough
        beside["training_check"] = next(unchecked, checks[0])
        result = evaluate_benchmark(scorer, definition, rows, budget, folder, display, steps, beside)
    if processes.is_main_process():
        _write_flat(output, [result])
        _render(result, json)


def _write_flat(output: Path | None, results: list[dict[str, Any]]) -> None:
    if output is not None:
        from rmtrain.evaluation.flat_results import flat_form
        from rmtrain.files import write_json

        write_json(output, flat_form(results))


def _render(result: Any, as_json: bool) -> None:
    if as_json:
        print(jsonlib.dumps(result, indent=2))
        return
    from rmtrain.reporting.ensembles import ensemble_tables
    from rmtrain.reporting.table import to_terminal
    from rmtrain.reporting.tables import benchmark_tables

    console = Console(highlight=False)
    for one in result if isinstance(result, list) else [result]:
        if one["ckpt"]:
            console.print(Text(str(one["ckpt"]), style="bold"))
        console.print(to_terminal(*benchmark_tables(one), *ensemble_tables([one])), "")
