"""`rmtrain average`: one checkpoint from the weights of several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import choose, require_distinct
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.output import show
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import short_digest

if TYPE_CHECKING:
    from rmtrain.data.split_data import ReadAs
    from rmtrain.evaluation.averaging import Step, Validation
    from rmtrain.model.parts import Part


@dataclass(frozen=True, kw_only=True)
class How:
    """How the weights are averaged."""

    weights: Annotated[
        str | None, Option(metavar="W,W,…", help="A weight for each checkpoint; default: all the same.")
    ] = None
    greedy: Annotated[
        bool, Option("--greedy", help="Keep only checkpoints that do not lower the validation accuracy.")
    ] = False
    extrapolate: Annotated[
        float | None,
        Option(metavar="ALPHA", help="Extrapolate from the start of training: start + (1 + ALPHA) (average - start)."),
    ] = None
    rank: Annotated[
        int | None, Option(min=1, help="Rank of an averaged adapter; default: the sum of all ranks, which is exact.")
    ] = None

    @property
    def method(self) -> str:
        """The method's name in the record."""
        return "greedy" if self.greedy else "given" if self.weights is not None else "equal"


@options.grouped
def average(
    *,
    ckpts: Annotated[list[str], Argument(metavar="CKPT", help="Run folders, checkpoint folders or hub ids.")],
    output: Annotated[Path, Option(metavar="DIR", help="New folder for the average.")],
    how: How,
    data: Annotated[str | None, Option(metavar="SOURCE", help="Score the average and its parts on these rows.")] = None,
    split: Annotated[
        str | None,
        Option(help="Score them on this split of the recipe, or of --data; default with --greedy: validation."),
    ] = None,
    reading: options.Reading,
    work: options.Work,
    json: options.Json = False,
) -> None:
    """Average the weights of checkpoints that were trained from the same base and score head.

    Adapters are averaged exactly, by the weight changes that they make. The result is a checkpoint like any other.

    [dim]rmtrain average runs/a-20260101-120000-ab12 runs/b-20260101-130000-cd34 --output averaged --split validation[/]
    [dim]rmtrain average runs/*/ --greedy --output soup[/]
    [dim]rmtrain average runs/a-20260101-120000-ab12 --extrapolate 0.3 --output further[/]
    """
    given, alpha = _weights(how.weights, len(ckpts), how.greedy), _alpha(how.extrapolate, len(ckpts))
    mapping = reading.mapping()
    with TerminalDisplay() as display, processes.alone(output):
        wheres = [choose(ckpt, Path("runs"), display).where for ckpt in ckpts]
        require_distinct(ckpts, wheres)
        validated = how.greedy or data is not None or split is not None
        if validated:
            processes.spread(work.num_processes)
        from rmtrain.evaluation.averaging import choose_greedily, compare_parts, record_of
        from rmtrain.evaluation.averaging import write_on_main as write
        from rmtrain.evaluation.export import check_output
        from rmtrain.model.averaging import Average
        from rmtrain.model.parts import open_part, require_alike

        check_output(output)
        opened = [open_part(where, not work.no_verify) for where in wheres]
        parts = [replace(part, where=ckpt) for part, ckpt in zip(opened, ckpts, strict=True)]
        require_alike(parts)
        if how.rank is not None and parts[0].files.adapter is None:
            raise InputError("--rank is for adapters, and these checkpoints are whole models", "leave it out")
        validation = _validation(wheres[0], data, split, mapping, output, work, display) if validated else None

        def build(chosen: "Sequence[Part]") -> Average:
            shares = [1 / len(chosen)] * len(chosen) if how.greedy else given
            return Average(tuple(chosen), tuple(shares), alpha, how.rank)

        averaged, steps = build(parts), list["Step"]()
        if how.greedy and validation is not None:
            averaged, steps = choose_greedily(parts, build, validation, output.with_name(f".{output.name}.candidate"))
        record = record_of(averaged, how.method, steps)
        written = write(averaged, output, record)
        scores = compare_parts(parts, output, validation) if validation is not None else None
    if written is not None:
        result = {"output": str(output), **record, "rank": written.rank, "rank_loss": written.lost, "scores": scores}
        _show(result, output, json)


def _validation(
    first: str,
    data: str | None,
    split: str | None,
    mapping: "ReadAs | None",
    output: Path,
    work: options.Work,
    display: TerminalDisplay,
) -> "Validation":
    """The rows that judge the checkpoints; by default those of the first checkpoint's recipe."""
    from rmtrain.evaluation.averaging import Validation
    from rmtrain.evaluation.sources import one_split

    name, rows = one_split(first, data, split, mapping, display.note)
    place = output.resolve()
    folder = Path("results") / f"{place.name}-{short_digest(str(place))}" / "average" / name
    return Validation(rows, folder, work.tokens_per_batch, display, not work.no_verify)


def _show(result: Mapping[str, object], output: Path, as_json: bool) -> None:
    """Write the model card and print the result."""
    from rmtrain.model.weights import SIDECAR, read_object
    from rmtrain.reporting.averages import average_tables
    from rmtrain.reporting.card import write_exported_card

    write_exported_card(output, None, read_object(output / SIDECAR))
    show(result, as_json, average_tables)


def _weights(text: str | None, count: int, greedy: bool) -> list[float]:
    """The weights, scaled to the sum 1."""
    if text is None:
        return [1 / count] * count
    if greedy:
        raise InputError("--weights and --greedy exclude each other", "leave one of them out")
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights {text}: not numbers separated by commas", "such as 0.5,0.3,0.2") from None
    if len(values) != count:
        raise InputError(f"--weights {text}: {len(values)} weights for {count} checkpoints", "give one for each")
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise InputError(f"--weights {text}: each must be above 0", "leave a checkpoint out to give it no weight")
    return [value / sum(values) for value in values]


def _alpha(extrapolate: float | None, count: int) -> float:
    if extrapolate is None:
        if count < 2:
            raise InputError(
                "an average takes at least two checkpoints",
                "name another checkpoint, or add --extrapolate for a single one",
            )
        return 0.0
    if not math.isfinite(extrapolate) or extrapolate <= -1:
        raise InputError(
            f"--extrapolate {extrapolate}: must be above -1, which gives the start of training",
            "take a positive number, such as 0.3, to go further; a negative one goes back towards the base",
        )
    return extrapolate
