"""95 % intervals of accuracies and of differences between two models, with preferences clustered by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from rmtrain.metrics.rankings import Floats, Ints, Labels

Z = 1.959963984540054  # the normal's 97.5 % quantile
Z_POWER = 0.8416212335729143  # the 80 % quantile of the normal distribution
RESAMPLES = 10_000
_BLOCK = 4_000_000  # number of counts drawn at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, both ends included."""

    low: float
    high: float


def wilson_interval(accuracy: float, n: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); n may be an effective size and need not be whole."""
    shrink = 1 + Z**2 / n
    centre = (accuracy + Z**2 / (2 * n)) / shrink
    half = Z / shrink * np.sqrt(accuracy * (1 - accuracy) / n + Z**2 / (4 * n**2))
    low, high = float(centre - half), float(centre + half)  # rounding may put them on the wrong side of 0 or 1
    return Interval(max(0.0, min(accuracy, low)), min(1.0, max(accuracy, high)))


def effective_size(credit: Floats, clusters: Labels) -> float:
    """Number of independent preferences that determine the accuracy as precisely as these n clustered ones.

    It is n divided by the design effect: the variance of the mean under clustering over that of n independent draws, at
    least 1. The estimate adds two entirely right and two entirely wrong clusters, as in Agresti & Coull 1998, so that
    the preferences of a prompt count as dependent even near an accuracy of 0 or 1, where the data can't show it.
    Each credit is between 0 and 1; n > 0.
    """
    _, labels = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(labels)
    mean_size = len(credit) / len(sizes)
    totals = np.append(np.bincount(labels, weights=credit), [mean_size, mean_size, 0, 0])
    sizes = np.append(sizes, [mean_size] * 4)
    n_added, mean = sizes.sum(), totals.sum() / sizes.sum()
    clustered = ((totals - sizes * mean) ** 2).sum() * len(sizes) / (len(sizes) - 1) / n_added**2
    independent = mean * (1 - mean) / (n_added - 1)
    return float(len(credit) / max(1.0, clustered / independent))


def clustered_interval(credit: Floats, clusters: Labels) -> Interval | None:
    """Wilson's interval at the effective size of clustered credit between 0 and 1; None without data.

    The method of Korn & Graubard 1998 with Wilson's limits, one of the best in the comparison of Franco et al. 2019 (J.
    Survey Stat. Methodol. 7). Without clustering and ties it equals Wilson's interval; its width is never 0.
    """
    return wilson_interval(float(credit.mean()), effective_size(credit, clusters)) if len(credit) else None


def stratified_interval(accuracies: Sequence[float], sizes: Sequence[float], weights: Sequence[float]) -> Interval:
    """Interval of a weighted mean of accuracies of independent strata: Wilson's, at its effective size.

    The size is the weights' effective size (Kish 1965) divided by the design effect of the strata's variances, at least
    1. Resampling would give strata with accuracy 1 no variance, and so too narrow an interval near 1.

    Args:
        sizes: effective number of preferences in each.
        weights: one per stratum, with any sum above 0.
    """
    shares, p = np.array(weights, dtype=np.float64) / np.sum(weights), np.array(accuracies, dtype=np.float64)
    size = 1 / float(np.sum(shares**2 / sizes))
    mean = float(shares @ p)
    pulled = (mean * size + 2) / (size + 4)  # as in Agresti & Coull 1998, which keeps the variance above 0
    design_effect = size * float(np.sum(shares**2 * p * (1 - p) / sizes)) / (pulled * (1 - pulled))
    return wilson_interval(mean, size / max(1.0, design_effect))


def percentile_interval(draws: Float64[np.ndarray, " R"]) -> Interval:
    """The middle 95 % of R resampled figures (Efron & Tibshirani 1993, ch. 13); NaN marks an undefined one."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(float(low), float(high))


def resampled_sums(
    sums: Float64[np.ndarray, "G C"], resamples: int = RESAMPLES, seed: int = 0
) -> Float64[np.ndarray, "{resamples} C"]:
    """Sums over G clusters drawn with replacement, from the sums of each.

    Clusters with equal sums are drawn together from a multinomial: the same distribution as drawing them one by one.
    """
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // len(kinds))
    drawn = [
        rng.multinomial(len(sums), counts / len(sums), size=min(step, resamples - start)) @ kinds
        for start in range(0, resamples, step)
    ]
    return np.concatenate(drawn)


def resampled_means(
    values: Floats, clusters: Labels, strata: Ints, resamples: int = RESAMPLES, seed: int = 0
) -> Float64[np.ndarray, "{resamples} S"]:
    """Means of values by stratum over clusters drawn with replacement; a cluster may be in several strata.

    A mean is NaN if a resample has no value of the stratum.

    Args:
        values: credit of each preference, or credit of A minus that of B; n > 0.
        strata: stratum of each preference, such as its subset, 0 to S - 1; no stratum is empty.
    """
    names, places = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), 2 * (strata.max() + 1)))
    np.add.at(sums, (places, 2 * strata), values)
    np.add.at(sums, (places, 2 * strata + 1), 1)
    drawn = resampled_sums(sums, resamples, seed)
    with np.errstate(invalid="ignore"):
        return np.asarray(drawn[:, ::2] / drawn[:, 1::2])


def difference_interval(draws: Float64[np.ndarray, " R"], clusters: int) -> Interval:
    """Percentile bootstrap interval of the difference of two models, from R draws over a number of clusters.

    If the models agree on every cluster, resampling shows no variance. Then Wilson's upper limit for the share of
    differing clusters bounds the difference on both sides.
    """
    if draws.any():
        return percentile_interval(draws)
    bound = wilson_interval(0.0, clusters).high
    return Interval(-bound, bound)


def detectable_difference(
    differences: Floats, clusters: Labels, strata: Ints, shares: Float64[np.ndarray, " S"]
) -> float | None:
    """Smallest true difference that a paired comparison of this size detects at the 5 % level with a power of 80 %.

    (z_0.975 + z_0.8) times the clustered standard error of the weighted mean difference (arXiv 2411.00640). With one
    preference per prompt the error is sqrt((r - d^2) / n), for a share r of discordant preferences and a mean
    difference d. None for a single cluster, or if the models agree on every cluster.

    Args:
        differences: credit of A minus that of B.
        strata: stratum of each preference, 0 to S - 1.
        shares: how much each stratum counts in the mean; their sum is 1.
    """
    names, labels = np.unique(clusters, return_inverse=True)
    if len(names) < 2 or not differences.any():
        return None
    sizes = np.bincount(strata)
    residuals = differences - (np.bincount(strata, weights=differences) / sizes)[strata]
    of_clusters = np.bincount(labels, weights=(shares / sizes)[strata] * residuals)
    return float((Z + Z_POWER) * np.sqrt((of_clusters**2).sum() * len(names) / (len(names) - 1)))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test: p that the units on which one model alone is right split this unevenly by chance.

    Twice the binomial(only_a + only_b, 1/2) tail, at most 1 (McNemar 1947); summed in log space, so large counts do not
    underflow.
    """
    n, least = only_a + only_b, min(only_a, only_b)
    k = np.arange(1, least + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(n - k + 1) - np.log(k))])  # log C(n, 0..least)
    return float(min(1.0, np.exp(np.logaddexp.reduce(log_choose) - (n - 1) * np.log(2))))
