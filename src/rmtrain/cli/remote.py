"""A running server as the scorer of a command, and its rewards beside those of a checkpoint."""

import os
from itertools import islice
from typing import TYPE_CHECKING

from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import RunFailedError

if TYPE_CHECKING:
    from rmtrain.data.reader import SourceReader
    from rmtrain.scoring.remote import Api, RemoteScorer
    from rmtrain.scoring.scorer import Scorer

TOKEN = "RMTRAIN_SERVE_TOKEN"  # the environment variable that rmtrain serve reads too
_ROWS = 32  # rows to compare


def open_server(url: str, api: "Api", own: "Scorer | None") -> "RemoteScorer":
    """A server as a scorer; for APIs that take text, the tokenizer of the checkpoint `own` renders it.

    Raises:
        InputError: the address is invalid, or the API needs a checkpoint.
        RunFailedError: no server answers.
    """
    from rmtrain.scoring.remote import RemoteScorer, Server

    renderer = own.info.renderer if own is not None else None
    return RemoteScorer.at(Server.at(url, api, os.environ.get(TOKEN, ""), renderer))


def verify_server(
    server: "RemoteScorer", own: "Scorer", rows: "SourceReader", allowed: float, display: TerminalDisplay
) -> None:
    """Compare the rewards of a server with those of a checkpoint, on the first rows of a source.

    Raises:
        RunFailedError: a reward differs by more than `allowed`.
    """
    from rmtrain.scoring.remote import compare_rewards
    from rmtrain.scoring.scorer import ScoringTask

    _, split = rows.read(rows.stream.chunks[0])
    groups = list(islice(split.groups, _ROWS))
    tasks = [
        ScoringTask("sample rows", groups, scorer.info.tokens_per_batch, None, display, split.place)
        for scorer in (server, own)
    ]
    difference = compare_rewards(server.score(tasks[0]), own.score(tasks[1]))
    result = (
        f"{server.info.where} and {own.info.where}: {difference.n} rewards of {len(groups)} rows differ by "
        f"{difference.largest:.1e} at most (standard deviation of the rewards {difference.spread:.3g})"
    )
    if not difference.largest <= allowed:
        raise RunFailedError(
            f"{result}; {allowed:.1e} is allowed",
            "check that the server runs this model in float32 with its own chat template, or raise --allowed",
        )
    display.note(result)
