"""`rmtrain rewardbench`: RewardBench and similar benchmarks, scored by every published version of the formulas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.text import Text
from typer import Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import print_json
from rmtrain.data.benchmarks import benchmark_named
from rmtrain.errors import InputError

if TYPE_CHECKING:
    from rmtrain.cli.checkpoints import CheckpointRef
    from rmtrain.data.benchmarks.definition import Benchmark

Runner = Literal["float16", "bfloat16", "float32", "int8"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource:
    """The benchmark, and where its rows are."""

    benchmark: Annotated[options.BenchmarkName, Option(help="The benchmark to score.")] = "rewardbench-1"
    data: Annotated[
        str | None, Option(metavar="SOURCE", help="Rows of the benchmark; default: its dataset on the hub.")
    ] = None
    split: Annotated[
        str | None, Option(help="Split of the rows; default: the benchmark's own split, or the only one.")
    ] = None
    prior_data: Annotated[
        list[str] | None,
        Option(
            metavar="SOURCE",
            help="Also score the prior sets: a hub id, a folder (shp.jsonl, …), or NAME=FILE; may be repeated.",
        ),
    ] = None

    @property
    def definition(self) -> "Benchmark":
        """The benchmark itself."""
        return benchmark_named(self.benchmark)


@options.grouped
def rewardbench(
    *,
    ckpt: options.Ckpt = None,
    scoring: options.Scoring,
    rows: BenchmarkSource,
    results: Annotated[
        list[Path] | None,
        Option(
            metavar="FILE",
            help="Score published subset accuracies instead, with no model; may be repeated, as for prior sets.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write subset accuracies as the leaderboard's flat JSON, which --results reads."),
    ] = None,
    parity: Annotated[
        Runner | None,
        Option(help="Also score rewardbench-1 as the leaderboard's runner did, in this precision, and compare."),
    ] = None,
    work: options.Work,
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
    if results:
        others = {"ckpt": ckpt, **vars(scoring), **vars(rows), "benchmark": None, "parity": parity, **vars(work)}
        _published(results, rows.definition, options.names(others), output, json)
        return
    if parity and (rows.benchmark != "rewardbench-1" or scoring.options.is_policy or scoring.combine is not None):
        raise InputError(
            "--parity is for a single reward model on rewardbench-1", "leave it out, or choose that benchmark"
        )
    with TerminalDisplay() as display:
        ref = choose(ckpt, runs, display, scoring.options, not work.no_verify)
        processes.spread(work.num_processes)
        from rmtrain.data.benchmarks.load import read_benchmark
        from rmtrain.evaluation.splits import evaluate_benchmark

        definition, folder = rows.definition, ref.results / "rewardbench"
        loaded = read_benchmark(definition, rows.data, rows.split, rows.prior_data or [], display.note)
        steps = None
        if parity:
            from rmtrain.evaluation.parity import score_as_runner

            steps = score_as_runner(ref.request, parity, loaded, folder / f".{definition.name}.parity", display)
        scorer = load(ref, display, definition.name if definition.needs_rewards else "")
        budget = work.tokens_per_batch or scorer.info.tokens_per_batch
        beside = {"asked": _given(scoring), "training_check": _training_check(ref, definition.name)}
        result = evaluate_benchmark(scorer, definition, loaded, budget, folder, display, steps, beside)
    if processes.is_main_process():
        _write_flat(output, [result])
        _render(result, json)


def _published(paths: list[Path], benchmark: "Benchmark", others: str, output: Path | None, as_json: bool) -> None:
    """Score published accuracies; refuses other options, which need a model."""
    if others:
        raise InputError(
            f"--results takes published accuracies and can't be combined with {others}", "leave out one or the other"
        )
    from rmtrain.evaluation.flat_results import published_results

    published = [result.to_json() for result in published_results(paths, benchmark)]
    _write_flat(output, published)
    _render(published[0] if len(published) == 1 else published, as_json)


def _given(scoring: options.Scoring) -> dict[str, object]:
    """The user's options that a result does not record elsewhere."""
    return {name: value for name in ("max_length", "dtype") if (value := getattr(scoring.options, name)) is not None}


def _training_check(ref: "CheckpointRef", benchmark: str) -> object:
    """The recorded overlap of training rows with the benchmark; for an ensemble, that of the least known member."""
    from rmtrain.evaluation.benchmarks import training_check
    from rmtrain.evaluation.sources import sidecar_of

    members = [] if ref.options.is_policy else ref.members
    checks = [training_check(sidecar_of(where), benchmark) for where in members] or [None]
    unchecked = (check for check in checks if not check or not check["checked"])
    return next(unchecked, checks[0])


def _write_flat(output: Path | None, results: Sequence[Mapping[str, object]]) -> None:
    if output is not None:
        from rmtrain.evaluation.flat_results import flat_form
        from rmtrain.files import write_json

        write_json(output, flat_form(results))


def _render(result: Any, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    from rmtrain.reporting.table import to_terminal
    from rmtrain.reporting.tables import benchmark_tables, ensemble_table

    console = Console(highlight=False)
    for each in result if isinstance(result, list) else [result]:
        if each["ckpt"]:
            console.print(Text(str(each["ckpt"]), style="bold"))
        ensemble = [ensemble_table(each)] if "disagreement" in each else []
        console.print(to_terminal(*benchmark_tables(each), *ensemble), "")
