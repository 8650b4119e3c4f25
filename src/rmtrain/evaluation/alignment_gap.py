"""The alignment gap of a policy, and what reward models do on the same preferences (arXiv 2405.19534)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from rmtrain.evaluation.graded_groups import Choices, Ranking, best_of_n, rankings
from rmtrain.evaluation.rater_shares import Alpha
from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of
from rmtrain.metrics.alignment_gap import (
    bar_edges,
    count_flips,
    dpo_losses,
    ideal_gaps,
    loss_bounds,
    median_gap_draws,
)
from rmtrain.metrics.intervals import (
    clustered_interval,
    difference_interval,
    mcnemar_exact,
    resampled_means,
)
from rmtrain.metrics.rankings import Floats, Labels, credits_of


class GapRows(NamedTuple):
    """The same groups, in one order, scored by every model.

    Rows of a language model hold summed log-probabilities as rewards, and numbers of response tokens as lengths.
    """

    policy: Sequence[ScoredRow]
    reference: Sequence[ScoredRow] | None
    reward_models: Mapping[str, Sequence[ScoredRow]]


@dataclass(frozen=True)
class Accuracy:
    """Share of preferences ranked right, a tie counting 1/2, with its 95 % interval clustered by prompt."""

    accuracy: float | None
    low: float | None
    high: float | None
    n: int
    ties: int
    normalised: "Accuracy | None" = None  # by mean log-probabilities, of the same preferences


@dataclass(frozen=True)
class Difference:
    """Of two accuracies on the same preferences: paired bootstrap over prompts, and exact McNemar test of prompts."""

    difference: float
    low: float
    high: float
    mcnemar_p: float | None = None
    normalised: "Difference | None" = None


@dataclass(frozen=True)
class RewardModelFigures:
    """A reward model's accuracy, and how far it is from the policy and from the policy's ideal at the median beta."""

    accuracy: Accuracy
    minus_policy: Difference
    minus_policy_normalised: Difference
    minus_ideal: Difference
    minus_ideal_normalised: Difference


@dataclass(frozen=True)
class LossBound:
    """Theorem 4.1 on the preferences that the reference ranks wrong, by the DPO loss at one beta."""

    beta: float
    n: int  # preferences that the reference ranks wrong
    at_or_below: int  # whose loss is at or below its bound: the policy ranks them right
    above: int
    above_though_learnt: int  # of those above, whose loss is below ln 2: the implicit reward ranks them right
    median_bound: float | None  # nats
    median_loss: float | None


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram of the reference's log-ratio, log pi_ref(better) - log pi_ref(worse), in nats."""

    low: float
    high: float
    right: int  # preferences that the policy ranks right
    wrong: int


@dataclass(frozen=True)
class GapFigures:
    """Everything that `rmtrain gap` measures; None for what needs a reference, preferences or graded groups."""

    n: int
    groups: int
    identical: int  # preferences between completions of the same tokens, which are ties
    policy: Accuracy
    reference: Accuracy | None
    implicit: Accuracy | None
    alpha: str
    circular_for: str | None
    ideal_of: str  # the model that the ideal starts from: reference or policy
    idealised: dict[str, Accuracy]  # by beta
    gap: dict[str, Difference]  # by beta, and `median`
    reward_models: dict[str, RewardModelFigures]
    flips: dict[str, int] | None
    flip_rate: Accuracy | None
    loss_bound: LossBound | None
    log_ratios: list[Bar]
    ranking: dict[str, Ranking]
    best_of_n: Choices | None

    def to_json(self) -> dict[str, Any]:
        """As `gap --json` gives it: a reward model's and the flip rate's figures lie flat beside their intervals."""
        values = asdict(self)
        values["flip_rate"] = self.flip_rate.accuracy if self.flip_rate else None
        values["flip_rate_interval"] = values["flips"] and {
            key: getattr(self.flip_rate, key, None) for key in ("low", "high", "n")
        }
        for figures in values["reward_models"].values():
            accuracy, minus = figures.pop("accuracy"), figures.pop("minus_policy")
            del accuracy["normalised"], minus["normalised"]
            figures |= accuracy | {
                "minus_policy": minus["difference"],
                "minus_low": minus["low"],
                "minus_high": minus["high"],
                "mcnemar_p": minus["mcnemar_p"],
            }
        return values


class _LogRatios(NamedTuple):
    """Log-probability of the better completion minus that of the worse, of every preference."""

    sums: Floats  # [n]
    means: Floats  # [n] length-normalised


def measure_gap(
    rows: GapRows,
    alpha: Alpha,
    betas: Sequence[float],
    dpo_beta: float,
    scores: Sequence[Sequence[float] | None],
) -> GapFigures:
    """All figures of `rmtrain gap`.

    Without a reference, the ideal is that of tuning the policy itself further, and figures of both models are None.

    Args:
        rows: of every model.
        alpha: of every preference, in the order of the rows.
        betas: KL coefficients of the idealised accuracy.
        dpo_beta: that the policy was trained with, for its DPO losses.
        scores: graded scores of each row's completions, where it has any.
    """
    policy = _log_ratios(rows.policy)
    reference = _log_ratios(rows.reference) if rows.reference else None
    start = reference or policy
    clusters = clusters_of(rows.policy)[gaps_of(rows.policy).groups]
    ideal = {f"{beta:g}": _LogRatios(*(ideal_gaps(gaps, alpha.values, beta) for gaps in start)) for beta in betas}
    flips = count_flips(policy.sums, reference.sums) if reference else None
    wrong = (reference.sums < 0) & (policy.sums != 0) if reference else np.zeros(0, dtype=bool)
    models = {"policy": rows.policy, "policy, length-normalised": normalised(rows.policy), **rows.reward_models}
    return GapFigures(
        n=len(clusters),
        groups=len(rows.policy),
        identical=sum(row.identical for row in rows.policy),
        policy=_accuracies(policy, clusters),
        reference=_accuracies(reference, clusters) if reference else None,
        implicit=_accuracies(_LogRatios(*np.subtract(policy, reference)), clusters) if reference else None,
        alpha=alpha.origin,
        circular_for=alpha.circular_for,
        ideal_of="reference" if reference else "policy",
        idealised={beta: _accuracies(gaps, clusters) for beta, gaps in ideal.items()},
        gap=_gaps(ideal, policy, clusters),
        reward_models={
            name: _reward_model(gaps_of(scored).gaps, policy, ideal, clusters)
            for name, scored in rows.reward_models.items()
        }
        if len(clusters)
        else {},
        flips=asdict(flips) if flips else None,
        flip_rate=_accuracy(policy.sums[wrong], clusters[wrong]) if reference else None,
        loss_bound=_loss_bound(policy.sums[wrong], reference.sums[wrong], dpo_beta) if reference else None,
        log_ratios=_histogram(start.sums, policy.sums),
        ranking=rankings(models, scores),
        best_of_n=best_of_n(models, scores),
    )


def normalised(rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """Rows of a language model with mean log-probabilities as rewards."""
    return [
        row._replace(rewards=tuple(s / max(1, n) for s, n in zip(row.rewards, row.lengths, strict=True)))
        for row in rows
    ]


def _log_ratios(rows: Sequence[ScoredRow]) -> _LogRatios:
    return _LogRatios(gaps_of(rows).gaps, gaps_of(normalised(rows)).gaps)


def _accuracy(gaps: Floats, clusters: Labels) -> Accuracy:
    credit = credits_of(gaps)
    interval = clustered_interval(credit, clusters)
    if interval is None:
        return Accuracy(None, None, None, 0, 0)
    return Accuracy(float(credit.mean()), interval.low, interval.high, len(gaps), int((gaps == 0).sum()))


def _accuracies(gaps: _LogRatios, clusters: Labels) -> Accuracy:
    return Accuracy(**{**asdict(_accuracy(gaps.sums, clusters)), "normalised": _accuracy(gaps.means, clusters)})


def paired_difference(a: Floats, b: Floats, clusters: Labels) -> Difference:
    """The accuracy of A minus that of B, by the credits of each preference."""
    names, places = np.unique(clusters, return_inverse=True)
    draws = resampled_means(a - b, clusters, np.zeros(len(a), dtype=np.int64))[:, 0]
    interval = difference_interval(draws, len(names))
    net = np.bincount(places, weights=a - b)
    p = mcnemar_exact(int((net > 0).sum()), int((net < 0).sum()))
    return Difference(float((a - b).mean()), interval.low, interval.high, p)


def _gaps(ideal: Mapping[str, _LogRatios], policy: _LogRatios, clusters: Labels) -> dict[str, Difference]:
    """The ideal accuracy minus the policy's, by beta and at the median over beta, summed and length-normalised."""
    if not len(clusters):
        return {}

    def of(kind: int) -> dict[str, Difference]:
        measured = credits_of(policy[kind])
        credit = np.column_stack([credits_of(gaps[kind]) for gaps in ideal.values()])
        by_beta = {beta: paired_difference(credit[:, i], measured, clusters) for i, beta in enumerate(ideal)}
        draws = median_gap_draws(credit, measured, clusters)
        interval = difference_interval(draws, len(np.unique(clusters)))
        median = float(np.median(credit.mean(axis=0)) - measured.mean())
        return by_beta | {"median": Difference(median, interval.low, interval.high)}

    sums, means = of(0), of(1)
    return {key: Difference(**{**asdict(found), "normalised": means[key]}) for key, found in sums.items()}


def _reward_model(
    gaps: Floats, policy: _LogRatios, ideal: Mapping[str, _LogRatios], clusters: Labels
) -> RewardModelFigures:
    credit = credits_of(gaps)

    def minus_median(kind: int) -> Difference:
        by_accuracy = sorted((credits_of(each[kind]) for each in ideal.values()), key=lambda right: float(right.mean()))
        return paired_difference(credit, by_accuracy[(len(by_accuracy) - 1) // 2], clusters)

    return RewardModelFigures(
        _accuracy(gaps, clusters),
        paired_difference(credit, credits_of(policy.sums), clusters),
        paired_difference(credit, credits_of(policy.means), clusters),
        minus_median(0),
        minus_median(1),
    )


def _loss_bound(policy: Floats, reference: Floats, beta: float) -> LossBound:
    losses, bounds = dpo_losses(policy, reference, beta), loss_bounds(reference, beta)
    above = policy < 0  # which is losses > bounds, without its rounding
    return LossBound(
        beta,
        n=len(losses),
        at_or_below=int((~above).sum()),
        above=int(above.sum()),
        above_though_learnt=int((above & (policy > reference)).sum()),
        median_bound=float(np.median(bounds)) if len(bounds) else None,
        median_loss=float(np.median(losses)) if len(losses) else None,
    )


def _histogram(log_ratios: Floats, policy: Floats) -> list[Bar]:
    edges, right = bar_edges(log_ratios), policy > 0
    counts = [np.histogram(log_ratios[which], edges)[0].tolist() for which in (right, ~right)]
    return [Bar(*bar) for bar in zip(edges[:-1].tolist(), edges[1:].tolist(), *counts, strict=True)]
