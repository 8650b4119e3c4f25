"""The alignment gap of a policy, and the accuracy of reward models on the same preferences (arXiv 2405.19534)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from rmtrain.evaluation.gap_figures import Accuracy, Bar, Difference, Ends, GapFigures, LossBound, RewardModelFigures
from rmtrain.evaluation.graded_groups import best_of_n, rankings, share_of_sums
from rmtrain.evaluation.rater_shares import Alpha
from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of
from rmtrain.metrics.alignment_gap import bar_edges, count_flips, dpo_losses, ideal_gaps, loss_bounds, median_gap_draws
from rmtrain.metrics.intervals import clustered_interval, difference_interval, mcnemar_exact, resampled_means
from rmtrain.metrics.rankings import Floats, Labels, credits_of


class GapRows(NamedTuple):
    """The same groups in the same order, scored by every model.

    Rows of a language model hold summed log-probabilities as rewards, and numbers of response tokens as lengths.
    """

    policy: Sequence[ScoredRow]
    reference: Sequence[ScoredRow] | None
    reward_models: Mapping[str, Sequence[ScoredRow]]


class _LogRatios(NamedTuple):
    """For every preference, the log-probability of the better completion minus that of the worse."""

    sums: Floats  # [n]
    means: Floats  # [n] length-normalised


def measure_gap(
    rows: GapRows,
    alpha: Alpha,
    betas: Sequence[float],
    dpo_beta: float,
    scores: Sequence[Sequence[float] | None],
    gold: str | None = None,
) -> GapFigures:
    """All figures of `rmtrain gap`.

    Without a reference, the ideal starts from the policy itself, and figures of both models are None.

    Args:
        alpha: of every preference, in the order of the rows.
        betas: KL coefficients of the idealised accuracy.
        dpo_beta: beta of the policy's training, for its DPO losses.
        scores: graded scores of each row's completions, if it has any.
        gold: the reward model whose rewards are the scores; it is not judged by them.
    """
    policy = _log_ratios(rows.policy)
    reference = _log_ratios(rows.reference) if rows.reference else None
    start = reference or policy
    clusters = clusters_of(rows.policy)[gaps_of(rows.policy).groups]
    ideal = {f"{beta:g}": _LogRatios(*(ideal_gaps(gaps, alpha.values, beta) for gaps in start)) for beta in betas}
    flips = count_flips(policy.sums, reference.sums) if reference else None
    wrong = (reference.sums < 0) & (policy.sums != 0) if reference else np.zeros(0, dtype=bool)
    gap = _gaps(ideal, policy, clusters)
    flipped = _accuracy(policy.sums[wrong], clusters[wrong])
    choosers = {name: scored for name, scored in rows.reward_models.items() if name != gold}
    models = {"policy": rows.policy, "policy, length-normalised": normalised(rows.policy), **choosers}
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
        gap=gap,
        reward_models={
            name: _reward_model(gaps_of(scored).gaps, policy, ideal, gap["median"], clusters)
            for name, scored in rows.reward_models.items()
        }
        if len(clusters)
        else {},
        flips=flips,
        flip_rate=flipped.accuracy if reference else None,
        flip_rate_interval=Ends(flipped.low, flipped.high, flipped.n) if reference else None,
        loss_bound=_loss_bound(policy.sums[wrong], reference.sums[wrong], dpo_beta) if reference else None,
        log_ratios=_histogram(start.sums, policy.sums),
        ranking=rankings(models, scores),
        best_of_n=best_of_n(models, scores),
        gold=gold,
        minus_reference=_minus(policy, reference, clusters) if reference and len(clusters) else None,
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
    return replace(_accuracy(gaps.sums, clusters), normalised=_accuracy(gaps.means, clusters))


def paired_difference(a: Floats, b: Floats, clusters: Labels) -> Difference:
    """The accuracy of A minus that of B, from the credits of each preference."""
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

    def gaps_by(kind: int) -> dict[str, Difference]:
        measured = credits_of(policy[kind])
        credit = np.column_stack([credits_of(gaps[kind]) for gaps in ideal.values()])
        by_beta = {beta: paired_difference(credit[:, i], measured, clusters) for i, beta in enumerate(ideal)}
        draws = median_gap_draws(credit, measured, clusters)
        interval = difference_interval(draws, len(np.unique(clusters)))
        median = float(np.median(credit.mean(axis=0)) - measured.mean())
        return by_beta | {"median": Difference(median, interval.low, interval.high)}

    sums, means = gaps_by(0), gaps_by(1)
    return {key: replace(gap, normalised=means[key]) for key, gap in sums.items()}


def _minus(a: _LogRatios, b: _LogRatios, clusters: Labels) -> Difference:
    sums, means = (
        paired_difference(credits_of(first), credits_of(second), clusters) for first, second in zip(a, b, strict=True)
    )
    return replace(sums, normalised=means)


def _reward_model(
    gaps: Floats, policy: _LogRatios, ideal: Mapping[str, _LogRatios], gap: Difference, clusters: Labels
) -> RewardModelFigures:
    credit = credits_of(gaps)
    measured = [credits_of(kind) for kind in policy]
    best = [_at_median([credits_of(each[kind]) for each in ideal.values()]) for kind in range(len(policy))]
    (beside, beside_normalised), (of_ideal, of_ideal_normalised) = (
        [paired_difference(credit, other, clusters) for other in others] for others in (measured, best)
    )
    closed, closed_normalised = (
        share_of_sums(credit - own, other - own, clusters) if kind is not None and kind.low > 0 else None
        for own, other, kind in zip(measured, best, (gap, gap.normalised), strict=True)
    )
    accuracy = asdict(_accuracy(gaps, clusters))
    del accuracy["normalised"]
    return RewardModelFigures(
        **accuracy,
        minus_policy=beside.difference,
        minus_low=beside.low,
        minus_high=beside.high,
        mcnemar_p=beside.mcnemar_p,
        minus_policy_normalised=beside_normalised,
        minus_ideal=of_ideal,
        minus_ideal_normalised=of_ideal_normalised,
        closed=closed,
        closed_normalised=closed_normalised,
    )


def _at_median(credit_by_beta: Sequence[Floats]) -> Floats:
    """The credits for the beta with the median accuracy; for an even number, the lower one."""
    by_accuracy = sorted(credit_by_beta, key=lambda credit: float(credit.mean()))
    return by_accuracy[(len(by_accuracy) - 1) // 2]


def _loss_bound(policy: Floats, reference: Floats, beta: float) -> LossBound:
    losses, bounds = dpo_losses(policy, reference, beta), loss_bounds(reference, beta)
    above = policy < 0  # equals losses > bounds, but without rounding
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
