"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

CkptOption = Annotated[
    str | None,
    typer.Option("--ckpt", help="Run folder, checkpoint folder or hub id; default: the newest finished run."),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="NAME",
        help="Of a published model: the prompt's name, or a .jinja chat template; default: the model's own.",
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option("--label", metavar="NAME", help="Of a model with several labels: name or number of the reward's."),
]
TokensOption = Annotated[
    int | None,
    typer.Option("--tokens-per-batch", min=1, help="Most tokens through the backbone at once; default: the recipe's."),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--num-processes", help="Processes to start on this machine; default one a GPU, else one."),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where run folders lie.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
