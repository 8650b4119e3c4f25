"""`rmtrain score`: rewards for rows of a file."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import RunFailedError
from rmtrain.files import write_atomic
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    from rmtrain.evaluation.results import ScoredRow


def score(
    input_file: Annotated[
        str, typer.Argument(metavar="INPUT", help="Rows with prompt and completions, or prompt, chosen and rejected.")
    ],
    output: Annotated[Path, typer.Option(metavar="OUT.jsonl", help="The input rows with their rewards added.")],
    ckpt: options.Ckpt = None,
    prompt: options.Prompt = None,
    label: options.Label = None,
    reference: options.Reference = None,
    reference_free: options.ReferenceFree = None,
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
) -> None:
    """Add the reward of every completion to the rows of a file; keeps their order and drops none.

    [dim]rmtrain score answers.jsonl --output scored.jsonl[/]
    """
    options.check_output(output, overwrite)
    mapping = options.given_mapping(columns, row_schema)
    from rmtrain.data.load import read_source
    from rmtrain.data.sources import has_changed, read_rows
    from rmtrain.evaluation.sources import data_section, section_for

    with TerminalDisplay() as display, processes.alone(output):
        asked = ScoringOptions(
            prompt, label, reference, reference_free, max_length, dtype, calibrated=calibrated, combine=combine
        )
        ref = choose(ckpt, runs, display, asked, not no_verify)
        source = read_rows(str(input_file))
        section, trained = section_for(str(input_file), data_section(ref.first, display.note_once), mapping)
        split = read_source(source, None, section, evaluation=False, trained=trained, notify=display.note_once)
        processes.spread(num_processes)
        from rmtrain.evaluation.disagreement import spread_of
        from rmtrain.evaluation.splits import score_rows  # imports torch, which is not needed to refuse an input
        from rmtrain.scoring.partial import remove_partials

        scorer = load(ref, display, needs_rewards="score")
        budget = tokens_per_batch or scorer.info.tokens_per_batch
        changed = False

        def write(path: Path, scored: "list[ScoredRow]") -> None:
            nonlocal changed
            changed = has_changed(source)
            rows = zip(split.rows, scored, strict=True)
            lines = [{**source.rows[index], "rewards": list(row.rewards), **spread_of(row)} for index, row in rows]
            write_atomic(path, "".join(jsonlib.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines))

        scored = score_rows(scorer, Path(input_file).name, split.groups, budget, output, display, write, split)
        if not processes.is_main_process():
            return
        remove_partials(output)  # of other rows, that an interrupted command left
    truncated = sum(row.truncated for row in scored)
    display.note(f"{len(scored)} rows scored, {truncated} truncated to {scorer.info.max_length} tokens: {output}")
    if changed:
        raise RunFailedError(
            f"{input_file} has changed since it was read: {output} holds the rows as they were, with their rewards",
            "score the file again if the new rows are wanted",
        )
