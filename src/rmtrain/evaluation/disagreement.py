"""How far the members of an ensemble agree, from scored rows with the rewards of each member."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of
from rmtrain.json_values import JsonObject
from rmtrain.metrics.intervals import clustered_interval
from rmtrain.metrics.rankings import credits_of, ranking_accuracy
from rmtrain.scoring.scorer import ScorerInfo

_SAME_SCALE = 1.5  # a larger ratio of members' standard deviations of rewards gives a warning


@dataclass(frozen=True)
class MemberFigures:
    """A member's figures on the preferences; None without preferences."""

    ckpt: str
    accuracy: float | None  # a tie counts 1/2
    low: float | None  # 95 % interval, clustered by prompt
    high: float | None
    reward_mean: float
    reward_std: float


@dataclass(frozen=True)
class Disagreement:
    """Figures of an ensemble; None without preferences."""

    n: int  # preferences
    members: tuple[MemberFigures, ...]  # in the order of the ensemble
    accuracy: float | None  # the ensemble's, on all preferences; a tie counts 1/2
    reward_deviation: float  # mean over completions of the standard deviation of their rewards over the members
    split_preferences: float | None  # share of preferences on which the members disagree
    accuracy_agreed: float | None  # the ensemble's accuracy where the members agree
    accuracy_split: float | None  # where they disagree

    @property
    def notes(self) -> list[str]:
        """A warning if the members' scales differ much, since the member with the largest scale then dominates."""
        deviations = [member.reward_std for member in self.members]
        means = [member.reward_mean for member in self.members]
        spread = max(means) - min(means)
        if max(deviations) <= _SAME_SCALE * min(deviations) and spread <= max(deviations):
            return []
        scales = ", ".join(f"{m.ckpt} {m.reward_mean:.3g} ± {m.reward_std:.3g}" for m in self.members)
        return [
            f"the members' rewards have unequal scales (mean ± standard deviation: {scales}), so one of them "
            "dominates: run `rmtrain calibrate` on each, and add --calibrated"
        ]


def ensemble_fields(info: ScorerInfo, rows: Sequence[ScoredRow], notify: Callable[[str], None]) -> JsonObject:
    """The entries on members in an ensemble's result, with a note if their scales differ; empty for single models."""
    if not info.members or not rows:
        return {}
    figures = disagreement(rows, info.members)
    for note in figures.notes:
        notify(note)
    return {"disagreement": asdict(figures)}


def disagreement(rows: Sequence[ScoredRow], names: Sequence[str]) -> Disagreement:
    """The figures of rows scored by an ensemble whose members have these names."""
    alone = [[row._replace(rewards=row.members[place]) for row in rows] for place in range(len(names))]
    gaps = [gaps_of(of_member).gaps for of_member in alone]
    own = gaps_of(rows)
    split = np.ptp(np.sign(np.stack(gaps)), axis=0) > 0
    credit = credits_of(own.gaps)
    clusters = clusters_of(rows)[own.groups]
    rewards = [np.concatenate([np.asarray(row.rewards) for row in of_member]) for of_member in alone]
    members = []
    for name, of_member, values in zip(names, gaps, rewards, strict=True):
        interval = clustered_interval(credits_of(of_member), clusters)
        low, high = (interval.low, interval.high) if interval else (None, None)
        accuracy = ranking_accuracy(of_member).accuracy
        members.append(MemberFigures(name, accuracy, low, high, float(values.mean()), float(values.std())))
    return Disagreement(
        len(credit),
        tuple(members),
        float(credit.mean()) if len(credit) else None,
        float(np.stack(rewards).std(axis=0).mean()),
        float(split.mean()) if len(split) else None,
        float(credit[~split].mean()) if (~split).any() else None,
        float(credit[split].mean()) if split.any() else None,
    )
