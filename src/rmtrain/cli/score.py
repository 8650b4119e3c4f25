"""`rmtrain score`: rewards for rows of a file."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import Reading, choose, load, tokens_at_once
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import InputError


def score(
    input_file: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Rows with prompt and completions, or prompt, chosen and rejected.")
    ],
    output: Annotated[Path, typer.Option(metavar="OUT.jsonl", help="The input rows with their rewards added.")],
    ckpt: options.Ckpt = None,
    prompt: options.Prompt = None,
    label: options.Label = None,
    reference: options.Reference = None,
    reference_free: options.ReferenceFree = None,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    tokens_per_batch: options.Tokens = None,
    num_processes: options.Processes = None,
    runs: options.Runs = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Give every completion of a file its reward; order is kept and no row is left out.

    [dim]rmtrain score answers.jsonl --output scored.jsonl[/]
    """
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists", "choose another --output, or add --overwrite")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder", "make it, or choose another --output")
    from rmtrain.data.load import read_source
    from rmtrain.data.sources import read_rows
    from rmtrain.files import write_atomic

    rows_file = output.with_name(f".{output.name}.rows")
    with TerminalDisplay() as display:
        chosen = choose(ckpt, runs, display, Reading(prompt, label, reference, reference_free, max_length, dtype))
        split = read_source(str(input_file), None, evaluation=False)
        processes.spread(num_processes)
        from rmtrain.evaluation.splits import score_rows  # imports torch, which is not needed to refuse an input

        checkpoint = load(chosen, display, needs_rewards="score")
        budget = tokens_at_once(checkpoint, tokens_per_batch)
        scored = score_rows(checkpoint, input_file.name, split.groups, budget, rows_file, display)
    if not processes.is_main_process():
        return
    originals = read_rows(str(input_file), None).rows
    lines = [
        jsonlib.dumps({**originals[index], "rewards": list(row.rewards)}, ensure_ascii=False)
        for index, row in zip(split.rows, scored, strict=True)
    ]
    write_atomic(output, "".join(line + "\n" for line in lines))
    rows_file.unlink()
    truncated = sum(row.truncated for row in scored)
    display.note(f"{len(lines)} rows scored, {truncated} truncated to {checkpoint.max_length} tokens: {output}")
