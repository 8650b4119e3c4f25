"""`rmtrain select`: best-of-N, preference pairs or filtered answers, chosen by reward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import CheckpointRef, choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import show
from rmtrain.cli.score import open_input, open_rows, require_other_file
from rmtrain.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from rmtrain.data.reader import SourceReader
    from rmtrain.metrics.selection import Rule
    from rmtrain.scoring.parts import Parts

Mode = Literal["best", "pairs", "filter"]
_MODES = {  # modes by option, for options that not all modes take
    "top_k": ("best",),
    "temperature": ("best",),
    "threshold": ("best", "filter"),
    "against": ("pairs",),
    "min_margin": ("pairs",),
    "length_ratio": ("pairs",),
    "quantile": ("filter",),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How answers are chosen by their rewards, and written."""

    mode: Annotated[Mode, Option(help="Take the best answers, preference pairs, or all answers above a threshold.")] = (
        "best"
    )
    top_k: Annotated[int | None, Option(min=1, help="best: answers to keep of each prompt; default: 1.")] = None
    temperature: Annotated[
        float | None,
        Option(help="best: sample the answers with probabilities proportional to exp(reward / TEMPERATURE)."),
    ] = None
    threshold: Annotated[float | None, Option(help="best, filter: the lowest reward to keep.")] = None
    against: Annotated[
        Literal["worst", "random"] | None, Option(help="pairs: which answer is rejected; default: worst.")
    ] = None
    min_margin: Annotated[
        float | None, Option(min=0, help="pairs: smallest difference of the two rewards; default: any.")
    ] = None
    length_ratio: Annotated[
        float | None, Option(min=1, help="pairs: largest ratio of the answers' lengths in characters.")
    ] = None
    quantile: Annotated[float | None, Option(help="filter: share of all answers to drop, lowest rewards first.")] = None
    form: Annotated[Literal["messages", "text"], Option("--format", help="Write messages, or plain text.")] = "messages"
    seed: Annotated[int, Option(min=0, help="Seed of the random choices.")] = 0

    def check(self) -> None:
        """Refuse options that the mode does not take, and invalid values."""
        for name, modes in _MODES.items():
            if getattr(self, name) is not None and self.mode not in modes:
                option = options.names({name: True})
                raise InputError(f"{option} is for --mode {' or '.join(modes)}, not for {self.mode}", "leave it out")
        if self.mode == "filter" and (self.quantile is None) == (self.threshold is None):
            raise InputError("--mode filter takes either --quantile or --threshold", "give one of them")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise InputError(f"--quantile {self.quantile}: not between 0 and 1", "such as 0.5 for the better half")
        if self.threshold is not None and math.isnan(self.threshold):
            raise InputError("--threshold nan: not a number", "give the lowest reward to keep")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise InputError(
                f"--temperature {self.temperature}: must be above 0", "leave it out for the highest reward"
            )

    def rule(self, threshold: float | None) -> "Rule":
        """The rule for choosing; `threshold` is the lowest reward to keep."""
        from rmtrain.metrics.selection import Above, BestAgainst, BestOf

        if self.mode == "pairs":
            return BestAgainst(self.against or "worst", self.min_margin or 0.0, self.length_ratio)
        if self.mode == "filter":
            assert threshold is not None
            return Above(threshold)
        return BestOf(self.top_k or 1, threshold, self.temperature)


@options.grouped
def select(
    *,
    input_file: Annotated[
        str, Argument(metavar="ANSWERS", help="Rows with prompt and completions, and their rewards if already scored.")
    ],
    output: Annotated[Path, Option(metavar="OUT.jsonl", help="File for the chosen rows, in TRL's formats.")],
    ckpt: Annotated[
        str | None,
        Option(help="Model that gives the rewards; default: those in the rows, else the newest finished run."),
    ] = None,
    choice: Choice,
    scoring: options.Scoring,
    reading: options.Reading,
    work: options.Work,
    runs: options.Runs = Path("runs"),
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Choose among the answers to each prompt by their rewards: for best-of-N, new preference pairs, or fine-tuning.

    Writes rows in TRL's formats (prompt and completion with its reward, or prompt, chosen and rejected with their
    margin), and reports what was chosen: reward against N, the shift in length, ties.

    [dim]rmtrain select answers.jsonl --ckpt runs/mistral_lora-20260101-120000-ab12 --output best.jsonl
    rmtrain select scored.jsonl --mode pairs --min-margin 0.5 --output pairs.jsonl
    rmtrain select scored.jsonl --mode filter --quantile 0.5 --output better.jsonl[/]
    """
    choice.check()
    options.check_output(output, overwrite, formats=[".jsonl"])
    mapping = reading.mapping()
    with TerminalDisplay() as display, processes.alone(output), open_input(input_file, scoring) as stream:
        require_other_file(output, stream)
        scored = ckpt is None and any("rewards" in row for row in stream.source.rows)
        if scored:
            scoring.forbid(input_file, "leave it out, or name a model with --ckpt")
        ref = None if scored else choose(ckpt, runs, display, scoring.options, not work.no_verify)
        rows = open_rows(stream, ref.first if ref is not None else None, mapping, display)
        if ref is not None:
            processes.spread(work.num_processes)
        elif not processes.is_main_process():
            return
        from rmtrain.scoring.parts import Parts

        parts = Parts(output, display)
        with parts.opened():
            files = _score(ref, rows, parts, work.tokens_per_batch, display) if ref is not None else None
            if not processes.is_main_process():
                return
            report = _select(rows, files, choice, parts, output)
        parts.remove()
        from rmtrain.reporting.selection import selection_tables

        show(report, json, selection_tables)
        if not json:
            display.note(f"written: {output}")
        if stream.has_changed():
            raise RunFailedError(
                f"{input_file} changed while it was read: {output} holds a choice from the earlier rows",
                "select again to choose from the new rows",
            )


def _score(
    ref: CheckpointRef, rows: "SourceReader", parts: "Parts", tokens_per_batch: int | None, display: TerminalDisplay
) -> list[Path]:
    """Score the answers, together with the other processes; returns the files with their rewards."""
    from rmtrain.scoring.streams import StreamScoring

    scorer = load(ref, display, needs_rewards="select")
    budget = tokens_per_batch or scorer.info.tokens_per_batch
    run = StreamScoring(scorer, rows, parts, "lines", budget, display)
    run.run()
    if processes.is_main_process():
        for note in run.tally().notes:
            display.note(f"{Path(rows.stream.source.description).name}: {note}")
    return [parts.rows(name) for name in run.names]


def _select(
    rows: "SourceReader", files: Sequence[Path] | None, choice: Choice, parts: "Parts", output: Path
) -> dict[str, object]:
    """Write the chosen answers, and return the report."""
    from rmtrain.evaluation.selecting import Selection, read_answers, reward_quantile
    from rmtrain.files import replaced

    threshold = choice.threshold
    if choice.quantile is not None:
        threshold = reward_quantile(read_answers(rows, files), choice.quantile, parts.folder / "rewards")
    with replaced(output) as file:
        report = (
            Selection(choice.rule(threshold), choice.form, choice.seed).write(read_answers(rows, files), file).to_json()
        )
    return {**report, "output": str(output), "threshold": threshold}
