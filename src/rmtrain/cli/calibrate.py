"""`rmtrain calibrate`: what length alone explains of a checkpoint's rewards, and their scale."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rmtrain.cli import options, output, processes
from rmtrain.cli.checkpoints import CheckpointRef, choose, load
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import CheckpointError, InputError, command_line
from rmtrain.json_values import JsonObject


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How the calibration is fitted and measured."""

    holdout: Annotated[
        float, Option(min=0.05, max=0.95, help="Share of the prompts held out to measure the calibration.")
    ] = 0.5
    length: Annotated[
        bool, Option("--length/--no-length", help="Subtract what an answer's length explains of its reward.")
    ] = True


@options.grouped
def calibrate(
    *,
    ckpt: Annotated[
        str | None, Argument(metavar="CKPT", help="Run or checkpoint folder; default: the newest finished run.")
    ] = None,
    data: Annotated[
        str | None, Option(metavar="SOURCE", help="Rows; default: the validation split of the recipe.")
    ] = None,
    split: Annotated[str | None, Option(help="Split of --data or of the recipe; default: validation.")] = None,
    fitting: Fit,
    reading: options.Reading,
    work: options.Work,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Calibrate the rewards of a checkpoint: subtract the effect of length, and scale gaps so that their sigmoid is a
    probability.

    Fits on one part of the prompts and shows the figures before and after on the rest. Leaves the weights unchanged: it
    writes calibration.json beside them, which eval, score and rewardbench apply with --calibrated.

    [dim]rmtrain calibrate runs/mistral_lora-20260101-120000-ab12 --data pairs.jsonl[/]
    """
    mapping = reading.mapping()
    with TerminalDisplay() as display:
        ref = _own(choose(ckpt, runs, display, verify=not work.no_verify))
        processes.spread(work.num_processes)
        from rmtrain.evaluation.calibration import fit, show, split_by_prompt
        from rmtrain.evaluation.sources import one_split
        from rmtrain.evaluation.splits import score_once
        from rmtrain.model.calibration import write_calibration
        from rmtrain.model.weights import CALIBRATION

        name, rows = one_split(ref.where, data, split, mapping, display.note)
        scorer = load(ref, display, needs_rewards="calibrate")
        scored = score_once(scorer, name, rows, work.tokens_per_batch, ref.results / "calibration", display).rows
        held_out_ids = {group.id for group in split_by_prompt(rows.groups, fitting.holdout)[1]}
        held_out = [row for row in scored if row.id in held_out_ids]
        fitted = [row for row in scored if row.id not in held_out_ids]
        if not held_out or not fitted:
            raise InputError(
                f"{name}: no prompt would be left to fit or to measure with --holdout {fitting.holdout}",
                "give more prompts, or another share",
            )
        record: JsonObject = {"data": rows.origin, "groups": len(fitted), "held_out": len(held_out)}
        calibration = fit(fitted, scorer.info.weights, fitting.length, record)
        shown = show(calibration, held_out).to_json()
        path = Path(ref.where) / CALIBRATION
        if not processes.is_main_process():
            return
        write_calibration(path.parent, calibration.model_copy(update={"fitted": {**record, **shown}}))
    result = {"ckpt": ref.where, "calibration": str(path), **calibration.model_dump(mode="json", exclude={"fitted"})}
    result |= {**record, **shown}
    from rmtrain.reporting.calibration import calibration_tables

    how = f"{command_line('eval', '--ckpt', ref.where, '--calibrated')} applies the calibration"
    output.show(result, json, calibration_tables, f"written: {path}; {how}")


def _own(ref: CheckpointRef) -> CheckpointRef:
    """The checkpoint; its folder must be the user's own, since the calibration is written there."""
    if not Path(ref.where).is_dir():
        raise CheckpointError(
            f"{ref.where}: the calibration is written beside the weights, so they must be in a local folder",
            "download the model with `hf download`, and give its folder",
        )
    if not os.access(ref.where, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{ref.where} can't be written, and the calibration is kept there, beside the weights",
            "copy the folder to a place of your own, and give that",
        )
    return ref
