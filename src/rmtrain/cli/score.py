"""`rmtrain score`: rewards for rows of a file."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import RunFailedError
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    from rmtrain.data.chunks import RowStream
    from rmtrain.data.reader import SourceReader


def score(
    input_file: Annotated[
        str, typer.Argument(metavar="INPUT", help="Rows with prompt and completions, or prompt, chosen and rejected.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="OUT", help="The input rows with their rewards added; for several files, a folder.")
    ],
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
    """Add the reward of every completion to the rows of a file or a folder of shards; keeps their order, drops none.

    Reads and writes in parts, so that memory does not grow with the input. A command that ends early goes on with the
    parts that are finished when it is run again.

    [dim]rmtrain score answers.jsonl --output scored.jsonl
    rmtrain score shards/ --output scored/[/]
    """
    options.check_output(output, overwrite, folder=True)
    mapping = options.given_mapping(columns, row_schema)
    from rmtrain.data.chunks import FOR_SEVERAL_MODELS, open_stream
    from rmtrain.data.row_output import join_parts, output_kind

    with TerminalDisplay() as display, processes.alone(output):
        asked = ScoringOptions(
            prompt, label, reference, reference_free, max_length, dtype, calibrated=calibrated, combine=combine
        )
        ref = choose(ckpt, runs, display, asked, not no_verify)
        with contextlib.closing(open_stream(input_file, FOR_SEVERAL_MODELS if combine else 1)) as stream:
            rows = open_rows(stream, ref.first, mapping, display)
            kind = output_kind(output, stream)
            processes.spread(num_processes)
            from rmtrain.scoring.parts import Parts  # imports torch, which is not needed to refuse an input
            from rmtrain.scoring.streams import StreamScoring

            parts = Parts(output, display)
            with parts.opened():
                scorer = load(ref, display, needs_rewards="score")
                budget = tokens_per_batch or scorer.info.tokens_per_batch
                scoring = StreamScoring(scorer, rows, parts, kind, budget, display)
                scoring.run()
                if not processes.is_main_process():
                    return
                tally = scoring.tally()
                join_parts(output, stream, [parts.rows(name) for name in scoring.names], kind)
            parts.remove()
            changed = stream.has_changed()
    for note in tally.notes:
        display.note(f"{Path(input_file).name}: {note}")
    display.note(f"{tally.rows} rows scored, {tally.truncated} truncated to {scorer.info.max_length} tokens: {output}")
    if changed:
        raise RunFailedError(
            f"{input_file} has changed since it was read: {output} holds the rows as they were, with their rewards",
            "score the file again if the new rows are wanted",
        )


def open_rows(
    stream: "RowStream", where: str | None, mapping: dict[str, Any] | None, display: TerminalDisplay
) -> "SourceReader":
    """The rows of a stream, read as a checkpoint's training read its own; all of them are checked.

    Args:
        stream: the rows.
        where: the checkpoint; None for no model.
        mapping: of --columns and --row-schema.
        display: takes notes.

    Raises:
        DataError: a row can't be read.
    """
    from rmtrain.data.load import choose_reading
    from rmtrain.data.reader import SourceReader
    from rmtrain.evaluation.sources import data_section, section_for

    own = data_section(where, display.note_once) if where is not None else None
    section, trained = section_for(stream.source.description, own, mapping)
    rows = SourceReader(stream, choose_reading(stream.source, section, trained, display.note_once))
    if not processes.is_child():  # the launching process has checked them
        rows.check(*processes.rank_and_number(), display)
    return rows
