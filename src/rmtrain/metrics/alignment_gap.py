"""The alignment gap (arXiv 2405.19534): how a policy ranks its preferences, compared with its objective's optimum.

Every array holds one number per preference: the log-probability of the better completion minus that of the worse,
summed over response tokens, or averaged for length-normalised figures (eq. 15). Log-probabilities are subtracted and
never divided; only a difference of 0 is a tie.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from rmtrain.metrics.intervals import resampled_sums
from rmtrain.metrics.rankings import Floats, Labels, bradley_terry_losses

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)  # KL coefficients over which the paper takes the median
EPSILON = 0.001  # shares are kept this far from 0 and 1, so that their odds are finite


def ideal_gaps(reference_gaps: Floats, alpha: ArrayLike, beta: float) -> Floats:
    """Log-probability gaps of the objective's optimal policy (theorem 3.1, corollary 3.3).

    log pi*(y_w) - log pi*(y_l) = log pi_ref(y_w) - log pi_ref(y_l) + logit(alpha) / beta. With length-normalised gaps
    of the reference it gives the paper's length-normalised ideal. alpha, one number or n, is the share of raters who
    prefer the better completion; beta > 0 is the KL coefficient of the objective.
    """
    share = np.clip(np.asarray(alpha, dtype=np.float64), EPSILON, 1 - EPSILON)
    return np.asarray(reference_gaps + np.log(share / (1 - share)) / beta)


def dpo_losses(policy_gaps: Floats, reference_gaps: Floats, beta: float) -> Floats:
    """DPO losses in nats, -log sigmoid(beta * (policy gap - reference gap)) (arXiv 2305.18290, eq. 7)."""
    return bradley_terry_losses(beta * (policy_gaps - reference_gaps))


def loss_bounds(reference_gaps: Floats, beta: float) -> Floats:
    """The largest DPO loss at which the policy ranks a preference right, -log sigmoid(beta * c) (theorem 4.1).

    c = log pi_ref(y_l) - log pi_ref(y_w) is the negative of the reference's gap.
    """
    return bradley_terry_losses(-beta * reference_gaps)


@dataclass(frozen=True)
class Flips:
    """Preferences by whether the reference and the policy rank them right; ties of either are counted separately."""

    both: int
    only_reference: int
    only_policy: int  # flipped by training from wrong to right
    neither: int
    ties: int

    @property
    def rate(self) -> float | None:
        """Share of the reference's wrong preferences that the policy ranks right; None without wrong ones."""
        wrong = self.only_policy + self.neither
        return self.only_policy / wrong if wrong else None


def count_flips(policy_gaps: Floats, reference_gaps: Floats) -> Flips:
    """The two-by-two table of the paper's section 4."""
    policy, reference = np.sign(policy_gaps), np.sign(reference_gaps)

    def of(first: int, second: int) -> int:
        return int(((reference == first) & (policy == second)).sum())

    return Flips(of(1, 1), of(1, -1), of(-1, 1), of(-1, -1), int(((policy == 0) | (reference == 0)).sum()))


def median_gap_draws(ideal: Float64[np.ndarray, "n B"], policy: Floats, clusters: Labels) -> Float64[np.ndarray, " R"]:
    """Alignment gaps of R resampled clusters: the median over beta of the ideal accuracy, minus the measured one.

    `ideal` is the credit of the ideal policy at each of B betas, `policy` that of the policy.
    """
    names, places = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), ideal.shape[1] + 2))
    np.add.at(sums, places, np.column_stack([ideal, policy, np.ones(len(policy))]))
    drawn = resampled_sums(sums)
    return np.asarray((np.median(drawn[:, :-2], axis=1) - drawn[:, -2]) / drawn[:, -1])


def bar_edges(gaps: Floats, bars: int = 40) -> Float64[np.ndarray, " edges"]:
    """Edges of about `bars` bars of equal width that hold all gaps; 0 is an edge if the gaps have both signs."""
    if not len(gaps):
        return np.zeros(1)
    width = float(gaps.max() - gaps.min()) / bars or 1.0
    first = np.floor(gaps.min() / width)
    first = min(first, -1) if gaps.min() < 0 else first  # a tiny gap rounds to the bar at 0
    return np.asarray(width * np.arange(first, np.floor(gaps.max() / width) + 2))
