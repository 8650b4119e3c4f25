"""The calibration beside a checkpoint's weights: what length alone explains of a reward, and its scale."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rmtrain.errors import CheckpointError
from rmtrain.files import write_json
from rmtrain.json_values import read_json
from rmtrain.model.weights import CALIBRATION, fingerprint_of, read_object

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Calibration(BaseModel):
    """How a reward r of an answer of n tokens is calibrated: (r - curve(n) - offset) / temperature, a log-odds.

    The curve is a locally weighted regression of rewards on lengths (arXiv 2409.17407); the sigmoid of the difference
    of two calibrated rewards is the probability that the first answer is preferred.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Literal[1, 2] = 2
    """1: lengths were counted after the tokens that all answers of a group begin with. 2: after the rendered prompt."""
    lengths: tuple[_Finite, ...]
    """Lengths in tokens, ascending, at which the curve is given; it is level beyond them. Empty without a curve."""
    curve: tuple[_Finite, ...]
    """The reward to expect at each of these lengths."""
    offset: _Finite
    """Mean of r - curve(n) over the rows that it was fitted on."""
    temperature: _Positive
    """What the difference of two rewards is divided by."""
    reward_mean: _Finite
    """Mean of the raw rewards."""
    reward_std: _Positive
    """Standard deviation of the raw rewards."""
    weights: str
    """Digest of the weights whose rewards it calibrates, by their content; earlier versions took their times too."""
    fitted: dict[str, Any] = {}
    """A record of the rows that it was fitted on, and of the figures on held-out rows before and after."""

    @model_validator(mode="after")
    def _fits(self) -> "Calibration":
        if len(self.lengths) != len(self.curve) or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError("lengths and curve are not one ascending list of places and its values")
        return self

    @property
    def has_old_lengths(self) -> bool:
        """Whether lengths depended on a group's other answers, so that the curve can't be applied to one answer."""
        return self.format == 1 and bool(self.lengths)

    def apply(self, rewards: tuple[float, ...], lengths: tuple[int, ...]) -> tuple[float, ...]:
        """K calibrated rewards, as float32 values; lengths in tokens."""
        values = np.asarray(rewards, dtype=np.float64)
        if self.lengths:
            values = values - np.interp(np.asarray(lengths, dtype=np.float64), self.lengths, self.curve)
        return tuple(((values - self.offset) / self.temperature).astype(np.float32).tolist())


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration beside a checkpoint's weights; None where there is none.

    Raises:
        CheckpointError: it is damaged, of a later version, or was fitted for other weights.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    try:
        calibration = Calibration.model_validate(read_json(path, error=CheckpointError))
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{path}: can't be used ({'.'.join(map(str, first['loc']))}: {first['msg']})",
            "run `rmtrain calibrate` again",
        ) from error
    if calibration.weights not in (fingerprint_of(folder), fingerprint_of(folder, by_content=True)):
        raise CheckpointError(
            f"{path} was fitted for other weights than those beside it", "run `rmtrain calibrate` again"
        )
    return calibration


def export_calibration(source: Path, folder: Path) -> dict[str, float] | None:
    """Take the calibration of a checkpoint along to the same model in another folder, whose weights are written.

    Its config gets the mean and the standard deviation of the rewards, which OpenRLHF reads as `mean` and `std`; no
    other program has a place for a curve over lengths.

    Returns:
        Mean and standard deviation under those names; None where there is no calibration.
    """
    calibration = read_calibration(source)
    if calibration is None:
        return None
    scale = {"mean": calibration.reward_mean, "std": calibration.reward_std}
    write_json(folder / "config.json", {**read_object(folder / "config.json"), **scale})
    write_calibration(folder, calibration.model_copy(update={"weights": fingerprint_of(folder)}))
    return scale


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Put a calibration beside the weights for which it was fitted; it stays theirs when both are copied elsewhere."""
    if calibration.weights == fingerprint_of(folder):
        calibration = calibration.model_copy(update={"weights": fingerprint_of(folder, by_content=True)})
    write_json(folder / CALIBRATION, calibration.model_dump(mode="json"))
