"""How far the members of an ensemble agree: figures of scored rows that hold the rewards of each member."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of
from rmtrain.json_values import JsonObject
from rmtrain.metrics.intervals import clustered_interval
from rmtrain.metrics.rankings import credits_of, ranking_accuracy
from rmtrain.scoring.scorer import ScorerInfo

_SAME_SCALE = 1.5  # of the largest standard deviation of a member's rewards over the smallest: more is told


@dataclass(frozen=True)
class MemberFigures:
    """A member's own ranking of the preferences; None without preferences."""

    ckpt: str
    accuracy: float | None  # a tie counts 1/2
    low: float | None  # 95 % interval, clustered by prompt
    high: float | None
    reward_mean: float
    reward_std: float


@dataclass(frozen=True)
class Disagreement:
    """Figures of an ensemble; None without preferences.

    Attributes:
        n: preferences.
        members: in the order of the ensemble.
        accuracy: of the ensemble on all preferences; a tie counts 1/2.
        reward_deviation: mean over completions of the standard deviation of their rewards over the members.
        split_preferences: share of the preferences that the members do not all rank alike.
        accuracy_agreed: the ensemble's accuracy on the other preferences.
        accuracy_split: on these.
    """

    n: int
    members: tuple[MemberFigures, ...]
    accuracy: float | None
    reward_deviation: float
    split_preferences: float | None
    accuracy_agreed: float | None
    accuracy_split: float | None

    @property
    def notes(self) -> list[str]:
        """What a user should know of the members' scales: a combination of unequal ones is mostly one of them."""
        deviations = [member.reward_std for member in self.members]
        means = [member.reward_mean for member in self.members]
        spread = max(means) - min(means)
        if max(deviations) <= _SAME_SCALE * min(deviations) and spread <= max(deviations):
            return []
        told = ", ".join(f"{m.ckpt} {m.reward_mean:.3g} ± {m.reward_std:.3g}" for m in self.members)
        return [
            f"the members' rewards have unequal scales (mean ± standard deviation: {told}), so the ensemble is not an "
            "even one: run `rmtrain calibrate` on each, and add --calibrated"
        ]


def ensemble_fields(info: ScorerInfo, rows: Sequence[ScoredRow], notify: Callable[[str], None]) -> JsonObject:
    """What the result of an ensemble says of its members, with a note where their scales differ; nothing of others."""
    if not info.members or not rows:
        return {}
    figures = disagreement(rows, info.members)
    for note in figures.notes:
        notify(note)
    return {"disagreement": asdict(figures)}


def disagreement(rows: Sequence[ScoredRow], names: Sequence[str]) -> Disagreement:
    """The figures of rows that were scored by an ensemble of models with these names."""
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
