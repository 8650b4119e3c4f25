"""`rmtrain rewardbench`: RewardBench and its kin, with every era of scoring side by side."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import CheckpointRef, choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.data.benchmarks import benchmark_named
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    from rmtrain.data.types import PreferenceGroup
    from rmtrain.evaluation.parity import Rung


def rewardbench(
    ckpt: options.Ckpt = None,
    prompt: options.Prompt = None,
    label: options.Label = None,
    reference: options.Reference = None,
    reference_free: options.ReferenceFree = None,
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
    asked = ScoringOptions(prompt, label, reference, reference_free, max_length, dtype)
    if results:
        idle = {"ckpt": ckpt, **vars(asked), "data": data, "split": split, "parity": parity}
        idle |= {"prior_data": prior_data, "tokens_per_batch": tokens_per_batch, "num_processes": num_processes}
        if given := [f"--{name.replace('_', '-')}" for name, value in idle.items() if value]:
            raise InputError(
                f"--results takes accuracies as published, so nothing would come of {', '.join(given)}",
                "leave out the one or the other",
            )
        _republish(results, benchmark, output, json)
        return
    if parity and (benchmark != "rewardbench-1" or asked.is_policy):
        raise InputError("--parity is for reward models on rewardbench-1", "leave it out, or choose that benchmark")
    with TerminalDisplay() as display:
        ref = choose(ckpt, runs, display, asked, not no_verify)
        processes.spread(num_processes)
        from rmtrain.data.benchmarks.load import core_groups, prior_groups
        from rmtrain.evaluation.benchmarks import benchmark_result
        from rmtrain.evaluation.flat_results import flat_form
        from rmtrain.evaluation.splits import score_rows
        from rmtrain.files import write_json

        definition, folder = benchmark_named(benchmark), ref.results / "rewardbench"
        groups, source = core_groups(definition, data, split, display.note)
        prior, prior_sources = prior_groups(definition, prior_data, display.note) if prior_data else ([], [])
        partial = folder / f".{benchmark}.parity"
        runner = _score_as_runner(ref, parity, (groups, prior), partial, display) if parity else None
        scorer = load(ref, display, benchmark if definition.needs_rewards else "")
        budget = tokens_per_batch or scorer.info.tokens_per_batch
        path = folder / f"{benchmark}.rows.jsonl"
        rows = score_rows(scorer, benchmark, groups, budget, path, display)
        prior_path = folder / f"{benchmark}-prior.rows.jsonl"
        prior_rows = score_rows(scorer, "prior sets", prior, budget, prior_path, display) if prior else []
    if not processes.is_main_process():
        return
    result = {
        **benchmark_result(definition, rows, prior_rows, scorer.info.where).to_json(),
        "rows": str(path),
        **scorer.info.record(),
        "asked": {key: value for key, value in (("max_length", max_length), ("dtype", dtype)) if value is not None},
        "data": source,
        "prior_data": prior_sources or None,
        "rendering": scorer.info.rendering,
    }
    if runner is not None:
        from rmtrain.evaluation.parity import Rung, ladder_json
        from rmtrain.scoring.official import remove_partials

        settings, rungs = runner
        rungs += [Rung(name, rows, prior_rows) for name in ("own dtype, each prompt once", "a tie counts 1/2")]
        result["parity"] = {**settings, "ladder": ladder_json(rungs)}
        remove_partials(partial)
    write_json(folder / f"{benchmark}.json", result)
    for flat in (folder / f"{benchmark}.flat.json", *([output] if output is not None else [])):
        write_json(flat, flat_form([result]))
    _render(result, json)


def _republish(files: list[Path], benchmark: str, output: Path | None, as_json: bool) -> None:
    """The results of published accuracies, with no model."""
    from rmtrain.evaluation.flat_results import flat_form, published_results
    from rmtrain.files import write_json

    found = [result.to_json() for result in published_results(files, benchmark_named(benchmark))]
    if output is not None:
        write_json(output, flat_form(found))
    _render(found[0] if len(found) == 1 else found, as_json)


def _score_as_runner(
    ref: CheckpointRef,
    precision: str,
    groups: "tuple[list[PreferenceGroup], list[PreferenceGroup]]",
    partial: Path,
    display: TerminalDisplay,
) -> "tuple[dict[str, Any], list[Rung]]":
    """The rungs from the leaderboard's runner on; its model is let go of at the end."""
    from rmtrain.evaluation.parity import score_official
    from rmtrain.model.reward_model import BackboneOptions

    dtype, quantization = ("float16", "int8") if precision == "int8" else (precision, "none")
    official = ref.request.load(BackboneOptions(dtype, quantization, packing="none"))
    official.require_decoder("--parity")
    settings, rungs = score_official(official, *groups, ref.options.prompt is None, partial, display)
    if settings["prompt"] is not None:
        display.note(f"as the leaderboard's runner, with the prompt {settings['prompt']}")
    return {"precision": precision, **settings}, rungs


def _render(result: Any, as_json: bool) -> None:
    if as_json:
        print(jsonlib.dumps(result, indent=2))
        return
    from rmtrain.reporting.table import to_terminal
    from rmtrain.reporting.tables import benchmark_tables

    console = Console(highlight=False)
    for one in result if isinstance(result, list) else [result]:
        if one["ckpt"]:
            console.print(Text(str(one["ckpt"]), style="bold"))
        console.print(to_terminal(*benchmark_tables(one)), "")
