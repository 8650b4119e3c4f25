"""Options that several commands share, alone and in groups."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_type_hints

from typer import Argument, Option

from rmtrain.cli.processes import joined
from rmtrain.data.benchmarks import BENCHMARKS
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    from rmtrain.data.split_data import ReadAs

Recipe = Annotated[Path, Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    Argument(metavar="[KEY=VALUE]...", help="Values that override the recipe, such as optim.epochs=2."),
]
Ckpt = Annotated[
    str | None, Option("--ckpt", help="Run folder, checkpoint folder or hub id; default: the newest finished run.")
]
Prompt = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Third-party models: name of a built-in prompt, or a .jinja chat template; default: the model's own.",
    ),
]
Label = Annotated[
    str | None, Option(metavar="NAME", help="Models with several labels: name or number of the reward's label.")
]
PolicyReading = Literal["avg", "sum", "norm"]
Calibrated = Annotated[
    bool, Option("--calibrated", help="Apply the checkpoint's calibration, as fitted by `rmtrain calibrate`.")
]
MaxLength = Annotated[
    int | None,
    Option(
        min=16, help="Maximum tokens of prompt and completion; default: as trained, or up to 4,096 for other models."
    ),
]


def _same_everywhere(dtype: str | None) -> str | None:
    """Replace auto where several processes run the command: each may find another type the fastest."""
    if dtype != "auto" or not joined():
        return dtype
    from rmtrain.model.compute_type import fastest_of_all_processes

    return fastest_of_all_processes().name


Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    Option(
        callback=_same_everywhere,
        help="Precision of the weights; auto: the fastest here; default: as trained, or as in the model's config.",
    ),
]
if TYPE_CHECKING:
    BenchmarkName = str
else:
    BenchmarkName = Literal[*BENCHMARKS]
Tokens = Annotated[int | None, Option(min=1, help="Maximum tokens per forward pass; default: as in the recipe.")]
Processes = Annotated[
    int | None, Option(help="Processes to start on this machine; default: one per GPU, or one without GPUs.")
]
Runs = Annotated[Path, Option(help="Folder of the runs.")]
NoVerify = Annotated[
    bool, Option("--no-verify", help="Load the checkpoint even if its files changed since they were saved.")
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an existing output file.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document to standard output.")]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the checkpoint gives rewards."""

    prompt: Prompt = None
    label: Label = None
    reference: Annotated[
        str | None, Option(metavar="REF", help="Score CKPT as a policy, trained by DPO from this reference model.")
    ] = None
    reference_free: Annotated[
        PolicyReading | None,
        Option(
            help="Score CKPT as a policy without a reference: by the mean, the sum or the negative L2 norm of the "
            "completion's log-probabilities."
        ),
    ] = None
    combine: Annotated[
        str | None,
        Option(
            metavar="HOW",
            help="Score by several checkpoints, as in --ckpt A,B,C: mean, min, or mean-minus-variance of their "
            "rewards.",
        ),
    ] = None
    calibrated: Calibrated = False
    max_length: MaxLength = None
    dtype: Dtype = None

    @property
    def options(self) -> ScoringOptions:
        """The options in the form that scorers take."""
        return ScoringOptions(**vars(self))

    def forbid(self, whose: str, hint: str) -> None:
        """Refuse options that would not change rewards given elsewhere."""
        if given := names(vars(self)):
            raise InputError(f"the rewards of {whose} do not depend on {given}", hint)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are read."""

    columns: Annotated[
        str | None,
        Option(
            metavar="KEY=COLUMN,…",
            help="Columns to read, such as chosen=answer_a; default: as in training if they exist, else detected.",
        ),
    ] = None
    row_schema: Annotated[str | None, Option(metavar="NAME", help="Row schema; default: as for --columns.")] = None

    def mapping(self) -> "ReadAs | None":
        """The keys of a data section that the options set; None if neither is given.

        Raises:
            InputError: one of them is malformed, or the schema does not exist.
        """
        if self.columns is None and self.row_schema is None:
            return None
        from pydantic import ValidationError

        from rmtrain.recipe.data_schema import MAPPING, DataSection

        pairs = [pair.partition("=") for pair in self.columns.split(",")] if self.columns is not None else []
        renamed = {key: column for key, _, column in pairs if key and column}
        if len(renamed) < len(pairs):
            raise InputError(
                f"--columns {self.columns}: must be KEY=COLUMN,…", "such as chosen=answer_a,rejected=answer_b"
            )
        try:
            values = {"source": "demo", "columns": renamed, "row_schema": self.row_schema or "auto"}
            section = DataSection.model_validate(values)
        except ValidationError as error:
            known = error.errors()[0].get("ctx", {}).get("expected", "")
            raise InputError(f"--row-schema {self.row_schema}: no such row schema", f"choose from {known}") from None
        return {name: getattr(section, name) for name in MAPPING}


@dataclass(frozen=True, kw_only=True)
class Work:
    """How the checkpoint is opened and run."""

    tokens_per_batch: Tokens = None
    num_processes: Processes = None
    no_verify: NoVerify = False


def names(values: Mapping[str, object]) -> str:
    """The options that the user gave, as typed, from their values by parameter name."""
    return ", ".join(f"--{name.replace('_', '-')}" for name, value in values.items() if value)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Turn each field of a command's dataclass parameters into an option of the command."""
    types = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in types.items() if isinstance(kind, type) and is_dataclass(kind)}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            options += inspect.signature(groups[name]).parameters.values()
            types |= get_type_hints(groups[name], include_extras=True)
        else:
            options.append(parameter)

    def flat(*values: object, **named: object) -> None:
        named |= dict(zip((option.name for option in options), values, strict=False))
        for name, group in groups.items():
            named[name] = group(**{each.name: named.pop(each.name) for each in fields(group) if each.name in named})
        command(**named)

    keyword = inspect.Parameter.KEYWORD_ONLY  # so that options with defaults may come before others
    described = [option.replace(kind=keyword, annotation=types[option.name]) for option in options]
    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__signature__ = inspect.Signature(described)  # type: ignore[attr-defined]
    flat.__annotations__ = {option.name: option.annotation for option in described}
    return flat


_LONGEST_OUTPUT = 180  # bytes; temporary files add to the name, and 255 is the limit


def check_output(path: Path, overwrite: bool | None = None, folder: bool = False, formats: Sequence[str] = ()) -> None:
    """Refuse an output file that can't be written, before any work is done.

    Args:
        overwrite: whether it may exist; None: not, and the command has no --overwrite.
        formats: the suffixes of data files that the command can write; any for none.

    Raises:
        InputError: it exists, is no regular file, has no folder, or its suffix is that of another format.
    """
    from rmtrain.data.files import suffix_of

    if formats and (suffix := suffix_of(path.name)) not in (None, *formats):
        raise InputError(f"--output {path}: {suffix} files are not written", f"choose a name ending in {formats[0]}")
    if len(os.fsencode(path.name)) > _LONGEST_OUTPUT:
        raise InputError(
            f"--output {path.name[:40]}…: the name has more than {_LONGEST_OUTPUT} bytes",
            "choose a shorter name: temporary files beside it have longer ones",
        )
    if path.exists() and not path.is_file() and not (folder and path.is_dir()):
        raise InputError(f"{path} is not a regular file", "choose another --output")
    if path.exists() and not overwrite:
        way = "" if overwrite is None else ", or replace it with --overwrite"
        raise InputError(f"{path} exists", f"choose another --output{way}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", "make it, or choose another --output")
