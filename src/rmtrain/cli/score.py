"""`rmtrain score`: rewards for rows of a file."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import CheckpointRef, choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.serve import TOKEN
from rmtrain.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from rmtrain.data.chunks import RowStream
    from rmtrain.data.reader import SourceReader
    from rmtrain.data.row_output import Kind
    from rmtrain.data.split_data import ReadAs
    from rmtrain.scoring.remote import RemoteScorer
    from rmtrain.scoring.scorer import Scorer

ApiName = Literal["rmtrain", "vllm", "vllm-pooling", "sglang", "openrlhf"]
_COMPARED = 32  # rows on which a server is compared with a checkpoint


@dataclass(frozen=True, kw_only=True)
class FromServer:
    """The server that gives the rewards."""

    url: Annotated[
        str | None, Option(metavar="URL", help="Get the rewards from a running server, in place of --ckpt.")
    ] = None
    api: Annotated[ApiName, Option(help="With --url: the API that the server speaks.")] = "vllm"
    verify: Annotated[
        str | None,
        Option(metavar="CKPT", help="With --url: first compare the server's rewards with CKPT's on some rows."),
    ] = None
    allowed: Annotated[float, Option(min=0, help="With --verify: the largest accepted difference.")] = 1e-4


@options.grouped
def score(
    *,
    input_file: Annotated[
        str, Argument(metavar="INPUT", help="Rows with prompt and completions, or with prompt, chosen and rejected.")
    ],
    output: Annotated[
        Path | None, Option(metavar="OUT", help="The input rows with their rewards added; for several files, a folder.")
    ] = None,
    ckpt: options.Ckpt = None,
    server: FromServer,
    skip_refused: Annotated[
        bool,
        Option(
            "--skip-refused",
            help="Write null rewards for rows that the chat template refuses, and the reason into `refused`.",
        ),
    ] = False,
    scoring: options.Scoring,
    reading: options.Reading,
    work: options.Work,
    runs: options.Runs = Path("runs"),
    overwrite: options.Overwrite = False,
) -> None:
    """Add the reward of every completion to the rows of a file or a folder of shards; keeps their order, drops none.

    Reads and writes in parts, so that memory does not grow with the input. An interrupted command continues from its
    finished parts when it is run again.

    [dim]rmtrain score answers.jsonl --output scored.jsonl
    rmtrain score shards/ --output scored/
    rmtrain score answers.jsonl --url http://127.0.0.1:8000 --verify mistral-rm[/]
    """
    _check_options(output, ckpt, server, scoring, skip_refused)
    if output is not None:
        options.check_output(output, overwrite, folder=True, formats=(".jsonl", ".jsonl.gz", ".parquet"))
    mapping = reading.mapping()
    from rmtrain.data.row_output import output_kind

    with TerminalDisplay() as display, processes.alone(output) if output else contextlib.nullcontext():
        alone = server.url is not None and server.verify is None  # a server, and no checkpoint
        named = None if alone else choose(server.verify or ckpt, runs, display, scoring.options, not work.no_verify)
        with open_input(input_file, scoring) as stream:
            if output is not None:
                require_other_file(output, stream)
            rows = open_rows(stream, named.first if named is not None else None, mapping, display)
            kind = output_kind(output, stream) if output is not None else "lines"
            opened: Callable[[], Scorer]
            if server.url is None and named is not None:
                processes.spread(work.num_processes)
                opened = partial(load, named, display, needs_rewards="score")
            else:
                opened = _verified_server(server, named, rows, display)
            if output is not None:
                score_stream(opened, rows, output, kind, work.tokens_per_batch, display, skip_refused)


def _verified_server(
    server: FromServer, named: CheckpointRef | None, rows: "SourceReader", display: TerminalDisplay
) -> "Callable[[], Scorer]":
    """Opens a server as a scorer, and compares its rewards with those of a checkpoint if one is named.

    The checkpoint's tokenizer renders the rows for APIs that take text.

    Raises:
        InputError: the address is invalid, or the API needs a checkpoint.
        RunFailedError: no server answers, or a reward differs by more than is allowed.
    """
    from rmtrain.scoring.remote import RemoteScorer, Server

    own = load(named, display, needs_rewards="score") if named is not None else None
    renderer = own.info.renderer if own is not None else None
    remote = RemoteScorer.at(Server.at(server.url or "", server.api, os.environ.get(TOKEN, "").strip(), renderer))
    if own is not None:
        _compare(remote, own, rows, server.allowed, display)
    return lambda: remote


def _compare(
    remote: "RemoteScorer", own: "Scorer", rows: "SourceReader", allowed: float, display: TerminalDisplay
) -> None:
    """Compare the rewards of a server with those of a checkpoint, on the first rows of a source."""
    from rmtrain.scoring.remote import compare_rewards
    from rmtrain.scoring.scorer import ScoringTask

    _, split = rows.read(rows.stream.chunks[0])
    groups = list(islice(split.groups, _COMPARED))
    tasks = [
        ScoringTask("sample rows", groups, scorer.info.tokens_per_batch, None, display, split.place)
        for scorer in (remote, own)
    ]
    theirs, ours = remote.score(tasks[0]), own.score(tasks[1])
    difference = compare_rewards(theirs, ours)
    result = (
        f"{remote.info.where} and {own.info.where}: {difference.n} rewards of {len(groups)} rows differ by "
        f"{difference.largest:.1e} at most (standard deviation of the rewards {difference.spread:.3g})"
    )
    if not difference.largest <= allowed:
        worst = ours[difference.worst]
        where = split.place(groups[difference.worst].id)
        raise RunFailedError(
            f"{result}; {allowed:.1e} is allowed; the largest difference is at {where}",
            f"that row has more than {own.info.max_length} tokens, and a server that gets each answer alone cuts the "
            "prompt differently: compare rows that fit, or take --api rmtrain with `rmtrain serve`"
            if worst is not None and worst.truncated
            else "check that the server runs this model in float32 with its own chat template, or raise --allowed",
        )
    display.note(result)


def score_stream(
    opened: "Callable[[], Scorer]",
    rows: "SourceReader",
    output: Path,
    kind: "Kind",
    tokens_per_batch: int | None,
    display: TerminalDisplay,
    skip_refused: bool,
) -> None:
    """Score the rows of a stream, together with the other processes, and write them with their rewards.

    Raises:
        InputError, RunFailedError: as in `StreamScoring.run`.
        RunFailedError: the rows changed meanwhile; the output holds the earlier rows.
    """
    from rmtrain.data.row_output import join_parts
    from rmtrain.scoring.parts import Parts  # imports torch, which takes long, so not before the input is checked
    from rmtrain.scoring.streams import StreamScoring

    parts, stream = Parts(output, display), rows.stream
    with parts.opened():
        scorer = opened()
        budget = tokens_per_batch or scorer.info.tokens_per_batch
        scoring = StreamScoring(scorer, rows, parts, kind, budget, display, skip_refused)
        scoring.run()
        if not processes.is_main_process():
            return
        tally = scoring.tally()
        join_parts(output, stream, [parts.rows(name) for name in scoring.names], kind)
    parts.remove()
    source = stream.source.description
    for note in tally.notes:
        display.note(f"{source}: {note}")
    length = scorer.info.max_length
    cut = f", {tally.truncated} truncated to {length} tokens" if length else ""
    display.note(f"{tally.rows} rows scored{cut}: {output}")
    if stream.has_changed():
        raise RunFailedError(
            f"{source} changed while it was scored: {output} holds the earlier rows with their rewards",
            "score the file again to get the new rows",
        )


def _check_options(
    output: Path | None, ckpt: str | None, server: FromServer, scoring: options.Scoring, skip_refused: bool
) -> None:
    """Refuse options that need or exclude each other."""
    if output is None and server.verify is None:
        raise InputError("no --output", "name the output file")
    if server.url is None and server.verify is not None:
        raise InputError("--verify compares a server with a checkpoint", "name the server with --url")
    if server.url is not None and server.verify is None:
        scoring.forbid("a server", "leave it out, or give it to the server")
    if server.url is not None and skip_refused:
        raise InputError("--skip-refused is for checkpoints, whose chat template says why", "leave it out")
    if server.url is not None and ckpt is not None:
        raise InputError("--url and --ckpt exclude each other", "to compare the two, give --url and --verify CKPT")


def open_input(path: str | Path, scoring: options.Scoring) -> "contextlib.closing[RowStream]":
    """The rows of a file or a folder of shards, in smaller chunks if several models score each chunk."""
    from rmtrain.data.chunks import FOR_SEVERAL_MODELS, open_stream

    return contextlib.closing(open_stream(str(path), FOR_SEVERAL_MODELS if scoring.combine else 1))


def require_other_file(output: Path, stream: "RowStream") -> None:
    """Refuse an output that would replace its own input.

    Raises:
        InputError: it would.
    """
    written = (output, *(output / Path(name).name for name in stream.names))
    if not {*map(os.path.realpath, written)}.isdisjoint(map(os.path.realpath, stream.names)):
        raise InputError(f"{output} is the input, which would be replaced", "choose another --output")


def open_rows(
    stream: "RowStream", where: str | None, mapping: "ReadAs | None", display: TerminalDisplay
) -> "SourceReader":
    """The rows of a stream, all checked, read by `mapping`, else by the schema of the training data of the checkpoint
    `where`.

    Raises:
        DataError: a row can't be read.
    """
    from rmtrain.data.reader import SourceReader, choose_reading
    from rmtrain.evaluation.sources import data_section, section_for

    own = data_section(where, display.note_once) if where is not None else None
    section, trained = section_for(stream.source.description, own, mapping)
    rows = SourceReader(stream, choose_reading(stream.source, section, trained, display.note_once))
    if not processes.is_child():  # the launching process has checked them
        rows.check(*processes.rank_and_number(), display)
    return rows
