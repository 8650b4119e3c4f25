"""`rmtrain rewardbench`: RewardBench and its kin, with every era of scoring side by side."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from rmtrain.cli import processes
from rmtrain.cli.checkpoints import Chosen, choose, load, tokens_at_once
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.options import (
    CkptOption,
    JsonOption,
    LabelOption,
    ProcessesOption,
    PromptOption,
    RunsOption,
    TokensOption,
)
from rmtrain.cli.policies import ReferenceFreeOption, ReferenceOption, as_policy, load_policy_of
from rmtrain.errors import InputError

if TYPE_CHECKING:
    from rmtrain.data.types import PreferenceGroup
    from rmtrain.evaluation.benchmarks import Benchmark
    from rmtrain.evaluation.results import ScoredRow


def rewardbench(
    ckpt: CkptOption = None,
    prompt: PromptOption = None,
    label: LabelOption = None,
    reference: ReferenceOption = None,
    reference_free: ReferenceFreeOption = None,
    benchmark: Annotated[
        Literal["rewardbench-1", "rewardbench-2", "rm-bench", "judgebench"], typer.Option(help="Which benchmark.")
    ] = "rewardbench-1",
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Its rows; default: its dataset on the hub.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the rows; default: the scored one, or the only one there is.")
    ] = None,
    prior_data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Prior sets too, from the hub (allenai/preference-test-sets) or a file."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Re-score published subset accuracies instead; needs no model.")
    ] = None,
    parity: Annotated[
        Literal["float16", "bfloat16", "float32", "int8"] | None,
        typer.Option(
            help="Score rewardbench-1 also as the leaderboard's runner did, in this precision, and show what differs."
        ),
    ] = None,
    tokens_per_batch: TokensOption = None,
    num_processes: ProcessesOption = None,
    runs: RunsOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Score a benchmark with a checkpoint: subsets, sections with intervals, and the overall figure of every era.

    [dim]rmtrain rewardbench --ckpt runs/mistral_lora-20260101-120000-ab12[/]
    [dim]rmtrain rewardbench --results published.json[/]
    """
    if results is not None:
        from rmtrain.evaluation.bench_published import results_from_published

        found = results_from_published(results, benchmark)
        _render(found[0] if len(found) == 1 else found, json)
        return
    display = TerminalDisplay()
    chosen = as_policy(choose(ckpt, runs, display, prompt, label), reference, reference_free)
    if parity and (benchmark != "rewardbench-1" or reference is not None or reference_free is not None):
        raise InputError("--parity is for reward models on rewardbench-1", "leave it out, or choose that benchmark")
    processes.spread(num_processes)
    from rmtrain.evaluation.bench_published import to_flat
    from rmtrain.evaluation.benchmarks import BENCHMARKS, benchmark_result
    from rmtrain.evaluation.splits import formula_of, score_rows
    from rmtrain.files import write_atomic, write_json

    definition = BENCHMARKS[benchmark]
    try:
        groups, source = core_groups(definition, data, split)
        prior = _prior_groups(definition, prior_data) if prior_data else []
        runner = _score_as_runner(chosen, parity, groups, display) if parity else None
        by_rewards = benchmark if benchmark in ("rewardbench-2", "rm-bench") else ""
        checkpoint = load_policy_of(chosen, reference, reference_free) or load(chosen, by_rewards)
        for note in checkpoint.notes:
            display.note(note)
        budget = tokens_per_batch or tokens_at_once(checkpoint)
        folder = chosen.results / "rewardbench"
        path = folder / f"{benchmark}.rows.jsonl"
        rows = score_rows(checkpoint, benchmark, groups, budget, path, display)
        prior_path = folder / f"{benchmark}-prior.rows.jsonl"
        prior_rows = score_rows(checkpoint, "prior sets", prior, budget, prior_path, display) if prior else []
    finally:
        display.close()
    if not processes.is_main_process():
        return
    result = {
        **benchmark_result(benchmark, rows, prior_rows, ckpt=checkpoint.where, path=str(path)),
        **formula_of(checkpoint),
        "data": source,
        "rendering": checkpoint.renderer.contract(),
    }
    if runner is not None:
        from rmtrain.evaluation.bench_parity import ladder_json, ladder_markdown

        settings, rungs = runner
        rungs = [*rungs, ("own dtype, each prompt once", rows), ("a tie counts 1/2", rows)]
        result["parity"] = {**settings, "ladder": ladder_json(rungs)}
        write_atomic(folder / f"{benchmark}.parity.md", ladder_markdown(result["parity"]["ladder"]))
    write_json(folder / f"{benchmark}.json", result)
    write_json(folder / f"{benchmark}.flat.json", to_flat(result))
    _render(result, json)


def _score_as_runner(
    chosen: Chosen, precision: str, groups: "list[PreferenceGroup]", display: TerminalDisplay
) -> "tuple[dict[str, Any], list[tuple[str, list[ScoredRow]]]]":
    """The rungs from the leaderboard's runner on; its model is let go of at the end."""
    from rmtrain.evaluation.bench_parity import score_official
    from rmtrain.model.checkpoint import load_checkpoint
    from rmtrain.model.devices import process_state
    from rmtrain.model.reward_model import BackboneOptions, load_config

    where, _, revision = chosen.where.partition("@")
    dtype, quantization = ("float16", "int8") if precision == "int8" else (precision, "none")
    options = BackboneOptions(dtype, quantization, packing="none")
    official = load_checkpoint(
        where,
        revision=revision or None,
        options=options,
        device=process_state().device,
        prompt=chosen.prompt,
        label=chosen.label,
    )
    official.need_rewards("--parity")
    config_pad = official.config_pad
    if not official.published:
        config_pad = load_config(where, revision or None).get_text_config().pad_token_id
    settings, rungs = score_official(official, config_pad, groups, display)
    return {"precision": precision, **settings}, rungs


def core_groups(
    definition: "Benchmark", data: str | None, split: str | None
) -> "tuple[list[PreferenceGroup], dict[str, Any]]":
    """The rows of the split named, else of the one that is scored, else of the only one there is."""
    from rmtrain.data.sources import MissingSplitError, parse_source, pin_source, read_rows
    from rmtrain.evaluation.benchmarks import benchmark_groups

    parsed = pin_source(parse_source(data or definition.hub_id))
    try:
        found = read_rows(parsed, split or definition.split, any_split=True)
    except MissingSplitError:
        if split is not None:
            raise
        found = read_rows(parsed, None)
    groups = benchmark_groups(definition, found.rows, where=found.where)
    return groups, {"source": found.description, "revision": found.revision, "fingerprint": found.fingerprint}


def _prior_groups(definition: "Benchmark", source: str) -> "list[PreferenceGroup]":
    """Prior sets: a split each on the hub, the rows' own subset in a file."""
    from rmtrain.data.sources import parse_source, pin_source, read_rows
    from rmtrain.evaluation.benchmarks import benchmark_groups

    if not definition.prior_splits:
        raise InputError(f"{definition.name} has no prior sets", "leave out --prior-data")
    parsed = pin_source(parse_source(source))
    if parsed.kind == "file":
        found = read_rows(parsed, None)
        return benchmark_groups(definition, found.rows, where=found.where)
    groups = []
    for name in definition.prior_splits:
        found = read_rows(parsed, name)
        groups += benchmark_groups(definition, found.rows, subset=name, where=found.where)
    return groups


def _render(result: Any, as_json: bool) -> None:
    if as_json:
        print(jsonlib.dumps(result, indent=2))
        return
    from rmtrain.reporting.tables import rewardbench_table

    console = Console(highlight=False)
    for one in result if isinstance(result, list) else [result]:
        if one["ckpt"]:
            console.print(Text(str(one["ckpt"]), style="bold"))
        console.print(rewardbench_table(one), "")
