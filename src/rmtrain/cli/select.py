"""`rmtrain select`: best-of-N, preference pairs and filtered answers, from the rewards of answers."""

import contextlib
import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.score import open_rows
from rmtrain.errors import InputError, RunFailedError
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    from rmtrain.data.reader import SourceReader
    from rmtrain.metrics.selection import Rule
    from rmtrain.scoring.parts import Parts

Mode = Literal["best", "pairs", "filter"]
_OWN = {  # options by the modes that take them
    "--top-k": ("best",),
    "--temperature": ("best",),
    "--threshold": ("best", "filter"),
    "--against": ("pairs",),
    "--min-margin": ("pairs",),
    "--length-ratio": ("pairs",),
    "--quantile": ("filter",),
}


def select(
    input_file: Annotated[
        str, typer.Argument(metavar="ANSWERS", help="Rows with prompt and completions, and rewards if scored before.")
    ],
    output: Annotated[Path, typer.Option(metavar="OUT.jsonl", help="Rows in TRL's formats.")],
    ckpt: Annotated[
        str | None,
        typer.Option(help="Model that gives the rewards; default: those in the rows, else the newest finished run."),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="Best answers, preference pairs, or all answers above a bar.")] = "best",
    top_k: Annotated[int | None, typer.Option(min=1, help="best: answers to keep of each prompt; default: 1.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="best: draw the answers, with probabilities by exp(reward / TEMPERATURE).")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="best, filter: the lowest reward to keep.")] = None,
    against: Annotated[
        Literal["worst", "random"] | None, typer.Option(help="pairs: which answer is rejected; default: worst.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(min=0, help="pairs: the least difference of the two rewards; default: any.")
    ] = None,
    length_ratio: Annotated[
        float | None, typer.Option(min=1, help="pairs: the longer answer has at most so many times the characters.")
    ] = None,
    quantile: Annotated[
        float | None, typer.Option(help="filter: share of all answers to leave out, the lowest rewards.")
    ] = None,
    form: Annotated[
        Literal["messages", "text"], typer.Option("--format", help="Conversations, or plain prompts and answers.")
    ] = "messages",
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    prompt: options.Prompt = None,
    label: options.Label = None,
    combine: options.Combine = None,
    calibrated: options.Calibrated = False,
    columns: options.Columns = None,
    row_schema: options.RowSchema = None,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    tokens_per_batch: options.Tokens = None,
    num_processes: options.Processes = None,
    no_verify: options.NoVerify = False,
    runs: options.Runs = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
    json: options.Json = False,
) -> None:
    """Choose among the answers to each prompt by their rewards: for best-of-N, new preference pairs, or fine-tuning.

    Writes rows in TRL's formats (prompt and completion with its reward, or prompt, chosen and rejected with their
    margin), and reports what was chosen: reward against N, the shift in length, ties.

    [dim]rmtrain select answers.jsonl --ckpt runs/mistral_lora-20260101-120000-ab12 --output best.jsonl
    rmtrain select scored.jsonl --mode pairs --min-margin 0.5 --output pairs.jsonl
    rmtrain select scored.jsonl --mode filter --quantile 0.5 --output better.jsonl[/]
    """
    given = {"--top-k": top_k, "--temperature": temperature, "--threshold": threshold, "--against": against}
    given |= {"--min-margin": min_margin, "--length-ratio": length_ratio, "--quantile": quantile}
    _check_options({name: value for name, value in given.items() if value is not None}, mode)
    options.check_output(output, overwrite)
    mapping = options.given_mapping(columns, row_schema)
    from rmtrain.data.chunks import FOR_SEVERAL_MODELS, open_stream

    with TerminalDisplay() as display, processes.alone(output), contextlib.ExitStack() as stack:
        scoring = ScoringOptions(prompt, label, None, None, max_length, dtype, calibrated=calibrated, combine=combine)
        scale = FOR_SEVERAL_MODELS if combine else 1
        stream = stack.enter_context(contextlib.closing(open_stream(str(input_file), scale)))
        scored = ckpt is None and any("rewards" in row for row in stream.source.rows)
        ref = None if scored else choose(ckpt, runs, display, scoring, not no_verify)
        rows = open_rows(stream, ref.first if ref is not None else None, mapping, display)
        if ref is not None:
            processes.spread(num_processes)
        elif not processes.is_main_process():
            return
        from rmtrain.evaluation.selecting import Selection, read_answers
        from rmtrain.files import replaced
        from rmtrain.scoring.parts import Parts

        parts = Parts(output, display)
        with parts.opened():
            files: Sequence[Path] | None = None
            if ref is not None:
                from rmtrain.scoring.streams import StreamScoring

                scorer = load(ref, display, needs_rewards="select")
                budget = tokens_per_batch or scorer.info.tokens_per_batch
                run = StreamScoring(scorer, rows, parts, "lines", budget, display)
                run.run()
                if not processes.is_main_process():
                    return
                files = [parts.rows(name) for name in run.names]
                for note in run.tally().notes:
                    display.note(f"{Path(input_file).name}: {note}")
            if mode == "filter" and quantile is not None:
                threshold = _quantile(rows, files, quantile, parts)
            rule = _rule(mode, top_k, threshold, temperature, (against or "worst", min_margin or 0.0, length_ratio))
            with replaced(output) as file:
                report = Selection(rule, form, seed).write(read_answers(rows, files), file).to_json()
        parts.remove()
        changed = stream.has_changed()
    _show({**report, "output": str(output), "threshold": threshold}, json, display)
    if changed:
        raise RunFailedError(
            f"{input_file} has changed since it was read: {output} holds a choice of the rows as they were",
            "select again if the new rows are wanted",
        )


def _check_options(given: dict[str, object], mode: Mode) -> None:
    """Refuse what a mode does not take, and what no mode could."""
    for name in given:
        if mode not in _OWN[name]:
            raise InputError(f"{name} is for --mode {' or '.join(_OWN[name])}, not for {mode}", "leave it out")
    if mode == "filter" and ("--quantile" in given) == ("--threshold" in given):
        raise InputError("--mode filter takes either --quantile or --threshold", "give one of them")
    quantile, temperature = given.get("--quantile", 0.5), given.get("--temperature", 1.0)
    if not (isinstance(quantile, float) and 0 < quantile < 1):
        raise InputError(f"--quantile {quantile}: not between 0 and 1", "such as 0.5 for the better half")
    if not (isinstance(temperature, float) and 0 < temperature < float("inf")):
        raise InputError(f"--temperature {temperature}: must be above 0", "leave it out for the highest reward")


def _quantile(rows: "SourceReader", files: Sequence[Path] | None, quantile: float, parts: "Parts") -> float:
    from rmtrain.evaluation.selecting import read_answers, reward_quantile

    return reward_quantile(read_answers(rows, files), quantile, parts.folder / "rewards")


def _rule(
    mode: Mode,
    top_k: int | None,
    threshold: float | None,
    temperature: float | None,
    pairs: tuple[Literal["worst", "random"], float, float | None],
) -> "Rule":
    from rmtrain.metrics.selection import Above, BestAgainst, BestOf

    if mode == "pairs":
        return BestAgainst(*pairs)
    if mode == "filter":
        assert threshold is not None
        return Above(threshold)
    return BestOf(top_k or 1, threshold, temperature)


def _show(report: dict[str, object], json: bool, display: TerminalDisplay) -> None:
    if json:
        print(jsonlib.dumps(report, indent=2))
        return
    from rich.console import Console

    from rmtrain.reporting.selection import selection_tables
    from rmtrain.reporting.table import to_terminal

    Console(highlight=False).print(to_terminal(*selection_tables(report)))
    display.note(f"written: {report['output']}")
