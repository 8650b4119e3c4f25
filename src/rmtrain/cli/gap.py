"""`rmtrain gap`: how far a policy is from ranking its own preferences, and how much of that a reward model closes."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import ScoringOptions, short_digest

_SMALLEST_BETA = 1e-6


def gap(
    policy: Annotated[str, typer.Option(metavar="P", help="Language model or its LoRA adapter: folder or hub id.")],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Preferences: hub dataset id, local file, or demo.")],
    reference: Annotated[
        str | None, typer.Option(metavar="REF", help="The model that the policy was trained from: folder or hub id.")
    ] = None,
    ckpt: Annotated[
        list[str] | None, typer.Option("--ckpt", metavar="RM", help="Reward model; may be repeated.")
    ] = None,
    beta: Annotated[
        list[float] | None,
        typer.Option(
            min=_SMALLEST_BETA,
            help="KL coefficient of an ideal policy; may be repeated. Default: 0.01, 0.1, 1, 5 and 10.",
        ),
    ] = None,
    alpha: Annotated[
        str,
        typer.Option(
            help="Share of raters for the better completion: a number, `votes` of the rows, `scores` or `scores:SCALE` "
            "for the sigmoid of their gap, or `rewards` for that of the first reward model's."
        ),
    ] = "0.75",
    gold: Annotated[
        str | None,
        typer.Option(
            metavar="RM", help="Reward model whose rewards replace the rows' graded scores, where answers are chosen."
        ),
    ] = None,
    dpo_beta: Annotated[
        float, typer.Option(min=_SMALLEST_BETA, help="The beta that the policy was trained with, for its DPO loss.")
    ] = 0.1,
    raw: Annotated[
        bool, typer.Option("--raw", help='Score the text prompt + " " + completion, as the paper does, not a template.')
    ] = False,
    split: Annotated[str | None, typer.Option(help="Split of the data; default: the only one.")] = None,
    prompt: options.Prompt = None,
    columns: options.Columns = None,
    row_schema: options.RowSchema = None,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    tokens_per_batch: options.Tokens = None,
    num_processes: options.Processes = None,
    no_verify: options.NoVerify = False,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Measure the alignment gap: how well a policy, its ideal and reward models rank the same preferences.

    [dim]rmtrain gap --policy my-dpo-policy --reference my-sft-model --data pairs.jsonl[/]
    [dim]rmtrain gap --policy my-dpo-policy --ckpt runs/mistral_lora-20260101-120000-ab12 --data pairs.jsonl[/]
    """
    if raw and prompt is not None:
        raise InputError("--raw and --prompt exclude each other", "leave one of them out")
    mapping = options.given_mapping(columns, row_schema)
    from rmtrain.evaluation.rater_shares import parse_alpha

    share = parse_alpha(alpha, bool(ckpt))
    with TerminalDisplay() as display:
        asked = ScoringOptions(prompt, reference=reference, max_length=max_length, dtype=dtype)
        ref = choose(policy, runs, display, asked, not no_verify)
        own = ScoringOptions(max_length=max_length, dtype=dtype)
        named = [*(ckpt or []), *([gold] if gold is not None else [])]
        models = {name: choose(name, runs, display, own, not no_verify) for name in named}
        processes.spread(num_processes)
        from rmtrain.data.load import read_source
        from rmtrain.data.sources import read_rows
        from rmtrain.evaluation.gap_rows import GapTask, evaluate_gap, open_policies
        from rmtrain.evaluation.sources import data_name, section_for
        from rmtrain.metrics.alignment_gap import BETAS

        source = read_rows(data, split)
        section, _ = section_for(data, None, mapping)
        split_data = read_source(source, None, section, evaluation=True, notify=display.note)
        who, what = f"{ref.name}{'-raw' * raw}", data_name(data, split)
        folder = Path("results") / who / "gap" / what
        name = f"{ref.name[:60]}-{short_digest(who)}-on-{what}"
        rows, betas = Path("results") / "gap-rows" / what, tuple(beta or BETAS)
        task = GapTask(split_data, source.rows, share, betas, dpo_beta, name, rows, gold, tokens_per_batch)
        result = evaluate_gap(open_policies(ref.request, raw), models, task, folder, display)
        if not processes.is_main_process():
            return
        from rmtrain.evaluation.gap_figures import GapResult
        from rmtrain.reporting.gap import gap_tables, write_page

        shown = GapResult.from_json(result)
        page = write_page(folder / "report.html", shown)
        for each in models.values():
            if each.run is not None and each.results == each.run:
                _show_in(each.run, display)
    if json:
        print(jsonlib.dumps(result, indent=2))
        return
    from rmtrain.reporting.table import to_terminal

    console = Console(highlight=False)
    console.print(to_terminal(*gap_tables(shown)))
    console.print(f"report: {page}", soft_wrap=True)


def _show_in(run: Path, display: TerminalDisplay) -> None:
    """Write a run's report and model card anew, with the result."""
    from rmtrain.reporting.card import refresh_model_card
    from rmtrain.reporting.report import write_report

    write_report(run)
    if not refresh_model_card(run):
        display.note(f"{run}/final/README.md was edited, or is of an older version, and is left as it is")
