"""Groups with graded scores: how well rewards rank a prompt's K completions, and the gain of best-of-N."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, log

import numpy as np
from jaxtyping import Float64

Values = Sequence[float] | Float64[np.ndarray, " K"]  # one for each completion

_LARGEST_SCORE = 1000  # largest score with a finite gain 2^score - 1


def exact_match(rewards: Values, scores: Values) -> bool:
    """Whether the rewards rank all K completions as the scores do (arXiv 2405.19534, def. A.8); scores are distinct.

    A random ranking is right with probability 1/K!. This is not a pairwise accuracy and can't be compared with one.
    """
    ranked = np.asarray(rewards)[np.argsort(scores)]
    return bool((np.diff(ranked) > 0).all())


def kendall_tau_b(x: Values, y: Values) -> float | None:
    """Kendall's tau-b, which corrects for ties on both sides (Kendall 1945); None if either side is all tied."""
    first, second = np.triu_indices(len(x), 1)
    of_x, of_y = (np.sign(values[first] - values[second]) for values in (np.asarray(x, float), np.asarray(y, float)))
    scale = np.sqrt((of_x**2).sum() * (of_y**2).sum())
    return float((of_x * of_y).sum() / scale) if scale > 0 else None


def ndcg(rewards: Values, scores: Values) -> float | None:
    """Normalised discounted cumulative gain over all K, with gain 2^score - 1 and discount 1 / log2(rank + 1).

    Completions of equal reward share the mean of their discounts, as if ordered at random (McSherry & Najork 2008).
    None if no score is above 0, or if one is below 0 or above 1,000.
    """
    if min(scores) < 0 or not 0 < max(scores) <= _LARGEST_SCORE:
        return None
    gains = np.exp2(np.asarray(scores, dtype=np.float64)) - 1
    discounts = 1 / np.log2(np.arange(len(gains)) + 2)
    _, places, counts = np.unique(-np.asarray(rewards), return_inverse=True, return_counts=True)
    shared = np.bincount(np.sort(places), weights=discounts) / counts
    return float(shared[places] @ gains / (discounts @ np.sort(gains)[::-1]))


def top1_credit(rewards: Values, scores: Values) -> float:
    """Probability that the completion with the highest reward has the highest score; ties are broken at random."""
    chosen = np.asarray(rewards) == max(rewards)
    return float((np.asarray(scores)[chosen] == max(scores)).mean())


def expected_best_of_n(rewards: Values, scores: Values) -> Float64[np.ndarray, " K"]:
    """For N = 1 ... K, the expected score of the completion of highest reward among N drawn without replacement.

    Exact over all subsets: with rewards in ascending order, the i-th of them is the best of C(i - 1, N - 1) of the
    C(K, N) subsets. Ties are broken at random, so completions of equal reward share their mean score.
    """
    _, places, counts = np.unique(np.asarray(rewards), return_inverse=True, return_counts=True)
    ordered = (np.bincount(places, weights=np.asarray(scores, dtype=np.float64)) / counts)[np.sort(places)]
    return np.asarray(_best_of_n_weights(len(ordered)) @ ordered)


@cache
def _best_of_n_weights(k: int) -> Float64[np.ndarray, "K K"]:
    """For each N, the share of subsets in which each completion, in ascending order, is the best."""
    return np.array([[comb(i, n - 1) / comb(k, n) for i in range(k)] for n in range(1, k + 1)])


def best_of_n_kl(n: int) -> float:
    """KL divergence in nats of best-of-N from the sampled policy: ln N - (N - 1) / N (arXiv 2210.10760, 2)."""
    return log(n) - (n - 1) / n


@dataclass(frozen=True)
class BestOfNFit:
    """Gain = d * (alpha - beta * d) with d = sqrt(KL) (arXiv 2210.10760, eq. 1)."""

    alpha: float
    beta: float

    @property
    def peak_kl(self) -> float | None:
        """The KL with the largest gain, (alpha / 2 beta)^2; None if the fit has no maximum."""
        return (self.alpha / (2 * self.beta)) ** 2 if self.alpha > 0 and self.beta > 0 else None


def fit_best_of_n(gains: Values) -> BestOfNFit | None:
    """Least squares over the gains of best-of-1 ... K over best-of-1; None for fewer than three points beside N = 1."""
    if len(gains) < 4:
        return None
    d = np.sqrt([best_of_n_kl(n) for n in range(1, len(gains) + 1)])
    (alpha, beta), *_ = np.linalg.lstsq(np.column_stack([d, -(d**2)]), np.asarray(gains, dtype=np.float64))
    return BestOfNFit(float(alpha), float(beta))
