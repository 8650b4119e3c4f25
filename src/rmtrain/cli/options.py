"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rmtrain.errors import InputError

Ckpt = Annotated[
    str | None,
    typer.Option("--ckpt", help="Run folder, checkpoint folder or hub id; default: the newest finished run."),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of another's model: the prompt's name, or a .jinja chat template; default: the model's own.",
    ),
]
Label = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of a model with several labels: name or number of the reward's.")
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="REF", help="CKPT is a policy trained by DPO: score by log-probabilities against this reference model."
    ),
]
PolicyReading = Literal["avg", "sum", "norm"]
ReferenceFree = Annotated[
    PolicyReading | None,
    typer.Option(
        help="CKPT is a policy: score by its log-probabilities alone, their mean, their sum or their negative L2 norm."
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=16, help="Tokens of prompt and one completion; default: the recipe's, or at most 4,096 of another's model."
    ),
]
DtypeName = Literal["float32", "bfloat16", "float16"]
Dtype = Annotated[
    DtypeName | None, typer.Option(help="Run the weights in this; default: as trained, or as the model's config says.")
]
Benchmark = Literal["rewardbench-1", "rewardbench-2", "rm-bench", "judgebench"]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="Most tokens through the backbone at once; default: the recipe's.")
]
Processes = Annotated[int | None, typer.Option(help="Processes to start on this machine; default one a GPU, else one.")]
Runs = Annotated[Path, typer.Option(help="Where run folders lie.")]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Use the checkpoint's files even if they changed since they were saved.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a file that can't be written there, before anything is done for it.

    Raises:
        InputError: it exists, is no regular file, or has no folder.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file", "choose another --output")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists", "choose another --output")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", "make it, or choose another --output")
