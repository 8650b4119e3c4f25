"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated, Literal

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
        help="Of another's model: the prompt's name, or a .jinja chat template; default: the model's own.",
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option("--label", metavar="NAME", help="Of a model with several labels: name or number of the reward's."),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="REF",
        help="CKPT is a policy trained by DPO: score by log-probabilities against this reference model.",
    ),
]
ReferenceFree = Literal["avg", "sum", "norm"]
ReferenceFreeOption = Annotated[
    ReferenceFree | None,
    typer.Option(
        help="CKPT is a policy: score by its log-probabilities alone, their mean, their sum or their negative L2 norm."
    ),
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(
        min=16, help="Tokens of prompt and one completion; default: the recipe's, or at most 4,096 of another's model."
    ),
]
Dtype = Literal["float32", "bfloat16", "float16"]
DtypeOption = Annotated[
    Dtype | None, typer.Option(help="Run the weights in this; default: as trained, or as the model's config says.")
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
