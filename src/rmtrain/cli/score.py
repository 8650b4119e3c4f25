"""`rmtrain score`: rewards for rows of a file."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from rmtrain.cli import processes
from rmtrain.cli.checkpoints import Reading, choose, load, tokens_at_once
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.options import (
    CkptOption,
    DtypeOption,
    LabelOption,
    MaxLengthOption,
    ProcessesOption,
    PromptOption,
    ReferenceFreeOption,
    ReferenceOption,
    RunsOption,
    TokensOption,
)
from rmtrain.errors import InputError


def score(
    input_file: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Rows with prompt and completions, or prompt, chosen and rejected.")
    ],
    output: Annotated[Path, typer.Option(metavar="OUT.jsonl", help="The input rows with their rewards added.")],
    ckpt: CkptOption = None,
    prompt: PromptOption = None,
    label: LabelOption = None,
    reference: ReferenceOption = None,
    reference_free: ReferenceFreeOption = None,
    max_length: MaxLengthOption = None,
    dtype: DtypeOption = None,
    tokens_per_batch: TokensOption = None,
    num_processes: ProcessesOption = None,
    runs: RunsOption = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Give every completion of a file its reward; order is kept and no row is left out.

    [dim]rmtrain score answers.jsonl --output scored.jsonl[/]
    """
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists", "choose another --output, or add --overwrite")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder", "make it, or choose another --output")
    display = TerminalDisplay()
    chosen = choose(ckpt, runs, display, Reading(prompt, label, reference, reference_free, max_length, dtype))
    from rmtrain.data.load import read_source

    split = read_source(str(input_file), None, evaluation=False)
    processes.spread(num_processes)
    from rmtrain.data.sources import read_rows
    from rmtrain.evaluation.splits import score_rows
    from rmtrain.files import write_atomic

    try:
        checkpoint = load(chosen, needs_rewards="score")
        for note in checkpoint.notes:
            display.note(note)
        budget = tokens_per_batch or tokens_at_once(checkpoint)
        rows_file = output.with_name(f".{output.name}.rows")
        scored = score_rows(checkpoint, input_file.name, split.groups, budget, rows_file, display)
    finally:
        display.close()
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
