"""Options that several verbs share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmtrain.data.benchmarks import BENCHMARKS
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
if TYPE_CHECKING:
    BenchmarkName = str
else:
    BenchmarkName = Literal[*BENCHMARKS]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=COLUMN,…",
        help="Which column of the rows is read as which, such as chosen=answer_a; default: as the checkpoint was "
        "trained where the columns fit, else told by the columns.",
    ),
]
RowSchema = Annotated[
    str | None, typer.Option(metavar="NAME", help="Row schema of the rows; default: as for --columns.")
]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="Most tokens through the backbone at once; default: the recipe's.")
]
Processes = Annotated[int | None, typer.Option(help="Processes to start on this machine; default one a GPU, else one.")]
Runs = Annotated[Path, typer.Option(help="Where run folders lie.")]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Use the checkpoint's files even if they changed since they were saved.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


_LONGEST_OUTPUT = 180  # bytes of a name, of which 255 can be had


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a file that can't be written there, before anything is done for it.

    Raises:
        InputError: it exists, is no regular file, or has no folder.
    """
    if len(os.fsencode(path.name)) > _LONGEST_OUTPUT:
        raise InputError(
            f"--output {path.name[:40]}…: the name has more than {_LONGEST_OUTPUT} bytes",
            "choose a shorter one: files beside it get longer names while it is written",
        )
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file", "choose another --output")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists", "choose another --output")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", "make it, or choose another --output")


def given_mapping(columns: str | None, row_schema: str | None) -> dict[str, Any] | None:
    """What --columns and --row-schema say of how rows are read; None where neither is given.

    Raises:
        InputError: they are not of their form, or there is no such schema.
    """
    if columns is None and row_schema is None:
        return None
    from pydantic import ValidationError

    from rmtrain.recipe.schema import MAPPING, DataSection

    pairs = [pair.partition("=") for pair in columns.split(",")] if columns is not None else []
    renamed = {key: column for key, _, column in pairs if key and column}
    if len(renamed) < len(pairs):
        raise InputError(f"--columns {columns}: not KEY=COLUMN,…", "such as chosen=answer_a,rejected=answer_b")
    try:
        values = {"source": "demo", "columns": renamed, "row_schema": row_schema or "auto"}
        section = DataSection.model_validate(values)
    except ValidationError as error:
        known = error.errors()[0].get("ctx", {}).get("expected", "")
        raise InputError(f"--row-schema {row_schema}: there is no such row schema", f"it is {known}") from None
    return {name: getattr(section, name) for name in MAPPING}
