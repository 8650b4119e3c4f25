"""Calibration of a checkpoint: fitted on one part of the prompts, and measured before and after on the others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import InputError
from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of, prompt_key
from rmtrain.json_values import JsonObject
from rmtrain.metrics.calibration import expected_calibration_error, fit_temperature
from rmtrain.metrics.intervals import Interval, percentile_interval
from rmtrain.metrics.lowess import lowess
from rmtrain.metrics.rankings import Floats, Ints, bradley_terry_losses, credits_of, spearman
from rmtrain.model.calibration import Calibration

_PLACES = 65  # the number of lengths at which a curve is given
_RESAMPLES = 500
_LEAST = 20  # preferences and completions


@dataclass(frozen=True)
class Figure:
    """A figure of the held-out rows before and after, with 95 % intervals from a bootstrap over prompts."""

    before: float
    before_interval: Interval
    after: float
    after_interval: Interval
    change_interval: Interval  # after minus before, on the same prompts


@dataclass(frozen=True)
class Shown:
    """Held-out rows before and after calibration."""

    n: int  # preferences
    prompts: int  # number of their prompts
    # by name: accuracy (a tie counts 1/2), loss (nats), ece, and length_correlation (Spearman's, of rewards and lengths
    # of all completions)
    figures: dict[str, Figure]

    def to_json(self) -> JsonObject:
        """The figures as results record them."""
        return asdict(self)


def split_by_prompt(
    groups: Sequence[PreferenceGroup], share: float
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """Groups for the fit, and the share held out to measure it; a digest of the prompt decides which."""
    sides: tuple[list[PreferenceGroup], list[PreferenceGroup]] = [], []
    for group in groups:
        name = prompt_key(group.prompt) if group.prompt else group.id
        drawn = int(hashlib.sha256(f"calibration {name}".encode()).hexdigest()[:8], 16) / 2**32
        sides[drawn < share].append(group)
    return sides


def fit(rows: Sequence[ScoredRow], weights: str, by_length: bool, fitted: JsonObject) -> Calibration:
    """The calibration of a checkpoint from its rows, scored without calibration; `fitted` is the record of these rows.

    Raises:
        InputError: too few rows, or no temperature fits the rows.
    """
    rewards = np.array([reward for row in rows for reward in row.rewards], dtype=np.float64)
    lengths = np.array([length for row in rows for length in row.lengths], dtype=np.float64)
    places = curve = np.zeros(0)
    if by_length:
        if len(lengths) != len(rewards) or len(rewards) < _LEAST:
            raise InputError(
                f"{len(rewards)} completions, {len(lengths)} of known length: too few for a curve over lengths",
                f"give at least {_LEAST}, or add --no-length",
            )
        places = np.unique(np.quantile(lengths, np.linspace(0, 1, _PLACES), method="nearest"))
        curve = lowess(lengths, rewards, places)
        rewards_left = rewards - np.interp(lengths, places, curve)
    else:
        rewards_left = rewards
    calibration = Calibration(
        lengths=tuple(places.tolist()),
        curve=tuple(curve.tolist()),
        offset=float(rewards_left.mean()),
        temperature=1.0,
        reward_mean=float(rewards.mean()),
        reward_std=max(float(rewards.std()), 1e-12),
        weights=weights,
        fitted=fitted,
    )
    gaps = gaps_of(calibrated_rows(calibration, rows)).gaps
    temperature = fit_temperature(gaps)
    if temperature is None or len(gaps) < _LEAST:
        raise InputError(
            f"no temperature fits {len(gaps)} preferences with a mean gap of {gaps.mean() if len(gaps) else 0:.3g}",
            f"give at least {_LEAST} preferences, which the model ranks better than chance but not all correctly"
            + ("; or add --no-length, if the model ranks mostly by length" if by_length else ""),
        )
    return calibration.model_copy(update={"temperature": temperature})


def calibrated_rows(calibration: Calibration, rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """The rows with calibrated rewards."""
    return [row._replace(rewards=calibration.apply(row.rewards, row.lengths)) for row in rows]


def show(calibration: Calibration, rows: Sequence[ScoredRow]) -> Shown:
    """Figures of held-out rows before and after calibration, with intervals from resampled prompts."""
    before, after = _Values.of(rows), _Values.of(calibrated_rows(calibration, rows))
    names, prompts = np.unique(clusters_of(rows), return_inverse=True)
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    drawn = [(before.drawn(count[prompts]), after.drawn(count[prompts])) for count in counts]
    figures = {}
    for name, figure in _FIGURES.items():
        known = figure(before), figure(after)
        if known[0] is None or known[1] is None:
            continue
        draws = np.array([[figure(one), figure(two)] for one, two in drawn], dtype=np.float64)
        intervals = [percentile_interval(each) for each in (draws[:, 0], draws[:, 1], draws[:, 1] - draws[:, 0])]
        figures[name] = Figure(known[0], intervals[0], known[1], intervals[1], intervals[2])
    return Shown(len(before.gaps), len(names), figures)


class _Values(NamedTuple):
    """Of rows: gaps [N] with the row of each, rewards and lengths [C] with the row of each."""

    gaps: Floats
    gap_rows: Ints
    rewards: Floats
    lengths: Floats
    reward_rows: Ints

    @classmethod
    def of(cls, rows: Sequence[ScoredRow]) -> "_Values":
        gaps = gaps_of(rows)
        rewards = np.array([reward for row in rows for reward in row.rewards], dtype=np.float64)
        lengths = np.array([length for row in rows for length in row.lengths], dtype=np.float64)
        places = np.repeat(np.arange(len(rows), dtype=np.int64), [len(row.rewards) for row in rows])
        return cls(gaps.gaps, gaps.groups, rewards, lengths, places)

    def drawn(self, times: Ints) -> "_Values":
        """Repeat every row as many times as it was drawn."""
        gaps = np.repeat(np.arange(len(self.gaps)), times[self.gap_rows])
        rewards = np.repeat(np.arange(len(self.rewards)), times[self.reward_rows])
        lengths = self.lengths[rewards] if len(self.lengths) == len(self.rewards) else self.lengths
        return _Values(self.gaps[gaps], self.gap_rows[gaps], self.rewards[rewards], lengths, self.reward_rows[rewards])


_FIGURES: dict[str, Callable[[_Values], float | None]] = {
    "accuracy": lambda values: float(credits_of(values.gaps).mean()) if len(values.gaps) else None,
    "loss": lambda values: float(bradley_terry_losses(values.gaps).mean()) if len(values.gaps) else None,
    "ece": lambda values: expected_calibration_error(values.gaps),
    "length_correlation": lambda values: (
        spearman(values.rewards, values.lengths) if len(values.lengths) == len(values.rewards) else None
    ),
}
