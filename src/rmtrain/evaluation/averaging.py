"""Averages of checkpoints on a validation split: the greedy soup, and a comparison of an average with its parts."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmtrain.data.split_data import SplitData
from rmtrain.display import Display
from rmtrain.evaluation.differences import compare_rows
from rmtrain.evaluation.results import ScoredRow, SplitFigures, summarise
from rmtrain.evaluation.splits import score_once
from rmtrain.files import write_json
from rmtrain.json_values import JsonObject
from rmtrain.model.averaging import Average, Written, write_average
from rmtrain.model.devices import process_state
from rmtrain.model.parts import Part
from rmtrain.model.weights import SIDECAR, read_object
from rmtrain.scoring.kinds import open_scorer
from rmtrain.scoring.scorer import ScorerRequest


@dataclass(frozen=True)
class Validation:
    """The rows that choose and compare models."""

    split: SplitData
    folder: Path  # where the rows files are
    tokens_per_batch: int | None  # maximum tokens per forward pass; None takes each checkpoint's own
    display: Display
    verify: bool = True  # check the checkpoints' files against their recorded digests

    def rows(self, name: str, where: Path) -> list[ScoredRow]:
        """Rewards of a checkpoint, which is freed before the next is loaded."""
        scorer = open_scorer(ScorerRequest(str(where), verify=self.verify))
        return score_once(scorer, name, self.split, self.tokens_per_batch, self.folder, self.display).rows


@dataclass(frozen=True)
class Step:
    """A step of the greedy soup: the accuracy of the average with one more model."""

    ckpt: str
    accuracy: float
    kept: bool


def choose_greedily(
    parts: Sequence[Part], build: Callable[[Sequence[Part]], Average], validation: Validation, candidate: Path
) -> tuple[Average, list[Step]]:
    """The greedy soup (arXiv 2203.05482).

    Models are tried by accuracy, the best first, and a model is kept if the average with it is at least as accurate as
    without it. Trial averages are written to the folder `candidate`.
    """
    figures = {part.where: summarise(validation.rows(part.where, part.files.folder)) for part in parts}
    ranked = sorted(parts, key=lambda part: (-(figures[part.where].accuracy or 0.0), figures[part.where].loss or 0.0))
    kept, best = [ranked[0]], figures[ranked[0].where].accuracy or 0.0
    steps = [Step(ranked[0].where, best, True)]
    try:
        for part in ranked[1:]:
            tried = build([*kept, part])
            write_on_main(tried, candidate, {"parts": [part.where for part in tried.parts]}, replace=True)
            accuracy = summarise(validation.rows(f"average of {len(tried.parts)}", candidate)).accuracy or 0.0
            steps.append(Step(part.where, accuracy, accuracy >= best))
            if accuracy >= best:
                kept, best = list(tried.parts), accuracy
    finally:
        if process_state().is_main_process:
            shutil.rmtree(candidate, ignore_errors=True)
    return build(kept), steps


def write_on_main(average: Average, folder: Path, record: Mapping[str, Any], replace: bool = False) -> Written | None:
    """Write an average on the main process while the others wait; returns its record, or None on the others."""
    state = process_state()
    written = write_average(average, folder, dict(record), replace) if state.is_main_process else None
    state.wait_for_everyone()
    return written


def record_of(average: Average, method: str, steps: Sequence[Step]) -> JsonObject:
    """The record of how an average was made, for its rmtrain.json."""
    weights = zip(average.parts, average.weights, strict=True)
    return {
        "method": method,
        "parts": [
            {"ckpt": part.where, "weights_fingerprint": part.fingerprint, "weight": weight} for part, weight in weights
        ],
        "extrapolate": average.extrapolate or None,
        "steps": [asdict(step) for step in steps] or None,
    }


def compare_parts(parts: Sequence[Part], output: Path, validation: Validation) -> JsonObject:
    """The average's figures beside those of all candidate parts, on the same rows; also written to its rmtrain.json.

    Returns:
        Figures as in `eval`, with the parts under `parts`. The difference is the average minus the part, paired by
        prompt.
    """
    own_rows = validation.rows(output.name, output)
    own, parts_json = summarise(own_rows), list[JsonObject]()
    for part in parts:
        rows = validation.rows(part.where, part.files.folder)
        paired = compare_rows(own_rows, rows).overall
        differences = {"difference": paired.difference, "difference_low": paired.low, "difference_high": paired.high}
        figures = {**_shown(summarise(rows)), **differences, "mcnemar_p": paired.mcnemar_p}
        parts_json.append({"ckpt": part.where, **figures})
    data, split = validation.split.origin, validation.split.name
    result: JsonObject = {"data": data, "split": split, "n": own.n, **_shown(own), "parts": parts_json}
    if process_state().is_main_process:
        sidecar = read_object(output / SIDECAR)
        write_json(output / SIDECAR, {**sidecar, "averaged": {**sidecar["averaged"], "scores": result}})
    return result


def _shown(figures: SplitFigures) -> JsonObject:
    interval = {"low": figures.accuracy_low, "high": figures.accuracy_high}
    return {"accuracy": figures.accuracy, **interval, "loss": figures.loss}
