"""Scored rows, their file, and the figures that `eval` computes from them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from rmtrain.data.types import Conversation, PreferenceGroup, has_votes
from rmtrain.errors import DataError, RunFailedError
from rmtrain.files import read_text, write_atomic
from rmtrain.metrics.calibration import brier_score, expected_calibration_error
from rmtrain.metrics.intervals import clustered_interval, effective_size, wilson_interval
from rmtrain.metrics.rankings import (
    Floats,
    Labels,
    RewardGaps,
    bradley_terry_losses,
    credits_of,
    join_gaps,
    preference_gaps,
    ranking_accuracy,
    spearman,
)
from rmtrain.scoring.scorer import GroupScore

_ROWS_LIMIT = 8 << 30  # bytes, for a rows file
NO_SOURCE = "(none)"  # the key in by_source for rows without a source


class ScoredRow(NamedTuple):
    """A group's rewards, and everything else that its figures depend on."""

    id: str
    source: str
    rewards: tuple[float, ...]  # K, float32 values; empty if the model only compares completions
    preferences: tuple[tuple[int, int], ...]  # (better, worse)
    truncated: bool
    lengths: tuple[int, ...] = ()  # K, tokens of each completion; empty if unknown
    cluster: str = ""  # shared by rows with the same prompt; empty: the row is its own cluster
    margins: tuple[float, ...] = ()  # one per preference (better over worse), if the model only compares
    identical: int = 0  # preferences between completions of the same tokens, which are ties
    members: tuple[tuple[float, ...], ...] = ()  # M times K: the rewards of each member of an ensemble
    probabilities: tuple[float, ...] = ()  # one per preference: share of raters for the better one; empty: all are 1


def prompt_key(prompt: Conversation) -> str:
    """A short digest of a prompt."""
    turns = [message if message.fields else message[:2] for message in prompt]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:16]


def scored_row(group: PreferenceGroup, score: GroupScore) -> ScoredRow:
    """A group and its score as a row; groups of the same prompt get the same cluster."""
    return ScoredRow(
        id=group.id,
        source=group.source,
        rewards=tuple(float(reward) for reward in score.rewards),
        preferences=tuple((preference.better, preference.worse) for preference in group.preferences),
        truncated=score.truncated,
        lengths=tuple(int(length) for length in score.lengths),
        cluster=prompt_key(group.prompt) if group.prompt else "",
        margins=score.margins,
        identical=score.identical,
        members=score.members,
        probabilities=tuple(p.probability for p in group.preferences) if has_votes([group]) else (),
    )


def gaps_of(rows: Sequence[ScoredRow]) -> RewardGaps:
    """Reward gaps of all preferences of the rows.

    Raises:
        ValueError: a reward is not finite, or a preference does not fit its row.
    """
    return join_gaps([row.margins or preference_gaps(row.rewards, row.preferences, row.id) for row in rows])


def with_lengths_as_rewards(rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """The rows with lengths as rewards; empty if the lengths of a row with preferences are unknown."""
    known = all(row.lengths or not row.preferences for row in rows)
    return [row._replace(rewards=tuple(map(float, row.lengths)), margins=()) for row in rows if known]


def clusters_of(rows: Sequence[ScoredRow]) -> Labels:
    """[G] label of each row's cluster."""
    return np.array([f"prompt {row.cluster}" if row.cluster else f"row {row.id}" for row in rows], dtype=object)


@dataclass(frozen=True)
class SourceFigures:
    """Accuracy of the preferences of one source; a tie counts 1/2."""

    n: int
    accuracy: float
    low: float  # 95 % interval, clustered by prompt
    high: float


@dataclass(frozen=True)
class VoteFigures:
    """How rewards agree with the votes of raters, if rows have votes; every preference has the same weight."""

    n: int  # preferences with votes
    accuracy: float  # agreement with the majority; a tie of rewards counts 1/2
    raters: float  # mean share of the raters who agree with the majority
    log_likelihood: float  # nats per vote: mean of p log sigmoid(d) + (1 - p) log sigmoid(-d), d the reward gap
    log_likelihood_best: float  # that of a model which predicts the raters' shares exactly: minus their entropy


@dataclass(frozen=True)
class SplitFigures:
    """Figures of a split, with the same weight for every preference; None if undefined."""

    n: int  # preferences
    groups: int
    accuracy: float | None  # a tie counts 1/2
    accuracy_low: float | None  # 95 % interval, clustered by prompt
    accuracy_high: float | None
    accuracy_strict: float | None  # a tie counts 0
    ties: int
    identical: int  # ties between completions of the same tokens
    loss: float | None  # nats, Bradley-Terry
    reward_gap: float | None  # mean
    length_baseline: float | None  # accuracy of "the longer wins"; equal lengths count 1/2
    reward_length_correlation: float | None  # Spearman
    ece: float | None
    brier: float | None
    truncated: int  # groups
    votes: VoteFigures | None  # None: the rows have no votes
    by_source: dict[str, SourceFigures]


def summarise(rows: Sequence[ScoredRow]) -> SplitFigures:
    """The figures of all rows of a split.

    Raises:
        ValueError: a reward is not finite.
    """
    gaps, length_gaps = gaps_of(rows), gaps_of(with_lengths_as_rewards(rows))
    ranking, credit, clusters = ranking_accuracy(gaps.gaps), credits_of(gaps.gaps), clusters_of(rows)[gaps.groups]
    interval = clustered_interval(credit, clusters)
    sources = np.array([row.source or NO_SOURCE for row in rows], dtype=object)[gaps.groups]
    with_lengths = [row for row in rows if row.lengths and row.rewards]
    return SplitFigures(
        n=ranking.n,
        groups=len(rows),
        accuracy=ranking.accuracy,
        accuracy_low=interval.low if interval else None,
        accuracy_high=interval.high if interval else None,
        accuracy_strict=ranking.strict,
        ties=ranking.ties,
        identical=sum(row.identical for row in rows),
        loss=ranking.loss,
        reward_gap=ranking.mean_gap,
        length_baseline=ranking_accuracy(length_gaps.gaps).accuracy,
        reward_length_correlation=spearman(
            [reward for row in with_lengths for reward in row.rewards],
            [length for row in with_lengths for length in row.lengths],
        ),
        ece=expected_calibration_error(gaps.gaps),
        brier=brier_score(gaps.gaps),
        truncated=sum(row.truncated for row in rows),
        votes=_votes([row for row in rows if row.probabilities]),
        by_source=_by_source(sources, credit, clusters),
    )


def _votes(rows: Sequence[ScoredRow]) -> VoteFigures | None:
    if not rows:
        return None
    shares = np.array([share for row in rows for share in row.probabilities], dtype=np.float64)
    gaps = gaps_of(rows).gaps
    against = 1 - shares
    entropy = -(shares * np.log(shares) + against * np.log(np.where(against > 0, against, 1.0)))
    return VoteFigures(
        n=len(gaps),
        accuracy=float(credits_of(gaps).mean()),
        raters=float(shares.mean()),
        log_likelihood=-float((shares * bradley_terry_losses(gaps) + against * bradley_terry_losses(-gaps)).mean()),
        log_likelihood_best=-float(entropy.mean()),
    )


def _by_source(sources: Labels, credit: Floats, clusters: Labels) -> dict[str, SourceFigures]:
    figures = {}
    for source in sorted(set(sources)):
        here = sources == source
        interval = wilson_interval(accuracy := float(credit[here].mean()), effective_size(credit[here], clusters[here]))
        figures[source] = SourceFigures(int(here.sum()), accuracy, interval.low, interval.high)
    return figures


def write_rows(path: Path, rows: Iterable[ScoredRow]) -> None:
    """Write rows as JSON lines, whole or not at all.

    Raises:
        RunFailedError: a reward is not finite.
        OSError: the file can't be written.
    """
    write_atomic(path, "".join(_row_line(row) for row in rows))


def _row_line(row: ScoredRow) -> str:
    values = {**row._asdict(), "rewards": [float(reward) for reward in row.rewards]}
    for name in ("margins", "identical", "members", "probabilities"):
        if not values[name]:
            del values[name]
    try:
        return json.dumps(values, allow_nan=False) + "\n"
    except ValueError:
        raise RunFailedError(f"group {row.id}: a reward is not finite", "check the checkpoint") from None


_Float32 = Annotated[float, Field(ge=-3.5e38, le=3.5e38)]


class _Line(BaseModel):
    """A line of a rows file, with the fields of ScoredRow; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: str
    source: str
    rewards: tuple[_Float32, ...]
    preferences: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
    truncated: bool
    lengths: tuple[Annotated[int, Field(ge=0, lt=2**53)], ...] = ()
    cluster: str = ""
    margins: tuple[_Float32, ...] = ()
    identical: Annotated[int, Field(ge=0, lt=2**53)] = 0
    members: tuple[tuple[_Float32, ...], ...] = ()
    probabilities: tuple[Annotated[float, Field(ge=0.5, le=1)], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        k = len(self.rewards) or len(self.lengths)
        if not self.rewards and not self.margins:
            raise ValueError("neither rewards nor margins")
        if any(better == worse or max(better, worse) >= k for better, worse in self.preferences):
            raise ValueError(f"preferences must be pairs of different completions from 0 to {k - 1}")
        if len(self.margins) not in (0, len(self.preferences)):
            raise ValueError("margins must be one number per preference")
        if len(self.probabilities) not in (0, len(self.preferences)):
            raise ValueError("probabilities must be one number per preference")
        if len(self.lengths) not in (0, k):
            raise ValueError("lengths must be one token count per completion")
        if any(len(rewards) != k for rewards in self.members):
            raise ValueError("members must have one reward per completion")
        return self


def read_rows(path: Path) -> list[ScoredRow]:
    """Read a rows file.

    Raises:
        DataError: the file can't be read, or a line is not a scored row; with file and line.
    """
    lines: dict[str, int] = {}
    rows: list[ScoredRow] = []
    text = read_text(path, limit=_ROWS_LIMIT, error=DataError)
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        try:
            row = ScoredRow(**dict(_Line.model_validate_json(line)))
        except ValidationError as error:
            place, fault = error.errors()[0]["loc"], error.errors()[0]["msg"].removeprefix("Value error, ")
            message = f"{path}:{number}: {'.'.join(map(str, place))}{': ' if place else ''}{fault}"
            hint = "rows files are written by eval and rewardbench; --data names rows to score"
            raise DataError(message, hint) from None
        if row.id in lines:
            raise DataError(f"{path}:{number}: id {row.id!r} is already on line {lines[row.id]}")
        lines[row.id] = number
        rows.append(row)
    return rows
