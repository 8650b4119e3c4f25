"""`rmtrain gap`: how well a policy, its ideal optimum and reward models rank the same preferences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import show
from rmtrain.errors import InputError
from rmtrain.json_values import JsonObject
from rmtrain.scoring.scorer import ScoringOptions, short_digest

if TYPE_CHECKING:
    from rmtrain.cli.checkpoints import CheckpointRef
    from rmtrain.data.split_data import ReadAs, SplitData
    from rmtrain.data.types import Row

_SMALLEST_BETA, _LARGEST_BETA = 1e-6, 1e6


@dataclass(frozen=True, kw_only=True)
class Question:
    """Settings of the measurement."""

    beta: Annotated[
        list[float] | None,
        Option(
            min=_SMALLEST_BETA,
            max=_LARGEST_BETA,
            help="KL coefficient of an ideal policy; may be repeated. Default: 0.01, 0.1, 1, 5 and 10.",
        ),
    ] = None
    alpha: Annotated[
        str,
        Option(
            help="Share of raters who prefer the better completion: a number, `votes` (from the rows), `scores` or "
            "`scores:SCALE` (sigmoid of the score gap), or `rewards` (sigmoid of the first reward model's gap)."
        ),
    ] = "0.75"
    gold: Annotated[
        str | None,
        Option(
            metavar="RM", help="Reward model whose rewards replace the rows' graded scores for best-of-N and rankings."
        ),
    ] = None
    dpo_beta: Annotated[
        float,
        Option(min=_SMALLEST_BETA, max=_LARGEST_BETA, help="The beta of the policy's DPO training, for its loss."),
    ] = 0.1


@options.grouped
def gap(
    *,
    policy: Annotated[str, Option(metavar="P", help="Language model or its LoRA adapter: folder or hub id.")],
    data: Annotated[str, Option(metavar="SOURCE", help="Preferences: hub dataset id, local file, or demo.")],
    reference: Annotated[
        str | None, Option(metavar="REF", help="The model from which the policy was trained: folder or hub id.")
    ] = None,
    ckpt: Annotated[list[str] | None, Option("--ckpt", metavar="RM", help="Reward model; may be repeated.")] = None,
    question: Question,
    raw: Annotated[
        bool, Option("--raw", help='Score the text prompt + " " + completion, without a chat template.')
    ] = False,
    split: Annotated[str | None, Option(help="Split of the data; default: the only one.")] = None,
    prompt: options.Prompt = None,
    reading: options.Reading,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    work: options.Work,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Measure the alignment gap: how well a policy, its ideal optimum and reward models rank the same preferences.

    [dim]rmtrain gap --policy my-dpo-policy --reference my-sft-model --data pairs.jsonl[/]
    [dim]rmtrain gap --policy my-dpo-policy --ckpt runs/mistral_lora-20260101-120000-ab12 --data pairs.jsonl[/]
    """
    if raw and prompt is not None:
        raise InputError("--raw and --prompt exclude each other", "leave one of them out")
    mapping = reading.mapping()
    from rmtrain.evaluation.rater_shares import parse_alpha

    share = parse_alpha(question.alpha, bool(ckpt))
    with TerminalDisplay() as display:
        own = ScoringOptions(max_length=max_length, dtype=dtype)
        ref = choose(policy, runs, display, replace(own, prompt=prompt, reference=reference), not work.no_verify)
        models = {
            name: choose(name, runs, display, own, not work.no_verify)
            for name in _reward_models(ckpt or [], question.gold)
        }
        processes.spread(work.num_processes)
        from rmtrain.evaluation.gap_rows import GapTask, evaluate_gap, open_policies
        from rmtrain.metrics.alignment_gap import BETAS

        rows, split_data, what = _read(data, split, mapping, display)
        task = GapTask(
            split_data,
            rows,
            share,
            betas=tuple(question.beta or BETAS),
            dpo_beta=question.dpo_beta,
            name=f"{ref.name[:60]}-{short_digest(ref.name + '-raw' * raw)}-on-{what}",
            rows_folder=Path("results") / "gap-rows" / what,
            gold=question.gold,
            tokens_per_batch=work.tokens_per_batch,
        )
        folder = Path("results") / f"{ref.name}{'-raw' * raw}" / "gap" / what
        result = evaluate_gap(open_policies(ref.request, raw), models, task, folder, display)
        if processes.is_main_process():
            _show(result, folder / "report.html", models.values(), json, display)


def _reward_models(ckpts: list[str], gold: str | None) -> list[str]:
    """The reward models as the user names them."""
    named = [*ckpts, *([gold] if gold is not None else [])]
    if name := next((name for name in named if name in ("policy", "reference")), None):
        raise InputError(f"{name}: the results call another model by this name", f"write ./{name}")
    return named


def _read(
    data: str, split: str | None, mapping: "ReadAs | None", display: TerminalDisplay
) -> "tuple[Sequence[Row], SplitData, str]":
    """The rows of the data, their preferences, and the name of the data in paths."""
    from rmtrain.data.sources import read_rows
    from rmtrain.evaluation.sources import data_name, read_to_rank, section_for

    source = read_rows(data, split)
    section, _ = section_for(data, None, mapping)
    split_data = read_to_rank(source, None, section, (), display.note)
    return [*source.rows], split_data, data_name(data, split)


def _show(
    result: JsonObject, path: Path, models: "Iterable[CheckpointRef]", as_json: bool, display: TerminalDisplay
) -> None:
    """Write the report, add it to the runs of the reward models, and print the result."""
    from rmtrain.evaluation.gap_figures import GapResult
    from rmtrain.reporting.card import refresh_model_card
    from rmtrain.reporting.gap import gap_tables, write_page
    from rmtrain.reporting.report import write_report

    shown = GapResult.from_json(result)
    page = write_page(path, shown)
    for run in [model.run for model in models if model.run is not None and model.results == model.run]:
        write_report(run)
        if not refresh_model_card(run):
            display.note(f"{run}/final/README.md was edited, or written by an older version, so it is left unchanged")
    show(result, as_json, lambda _: gap_tables(shown), f"report: {page}")
