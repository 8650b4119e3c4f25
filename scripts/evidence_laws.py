"""How the share of wrongly ranked preferences falls with a quantity: a power law for docs/evidence.md.

    log error = log factor - exponent * log quantity

is fitted by least squares to the mean error of each arm over its seeds. The interval comes from fitting anew, each time
to other prompts, drawn with replacement and the same for all arms, and to other seeds of each arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of
from rmtrain.evaluation.seeds import Seeds
from rmtrain.metrics.intervals import Interval, percentile_interval, resampled_means
from rmtrain.metrics.rankings import credits_of

Draws = Float64[np.ndarray, "R arms"]


@dataclass(frozen=True)
class Law:
    """A fitted law, its accuracies at the arms' quantities and at further ones, with 95 % intervals."""

    exponent: float
    interval: Interval
    fitted: Mapping[float, float]  # accuracy by quantity
    predicted: Mapping[float, tuple[float, Interval]]


def law_of(arms: Sequence[tuple[float, Seeds]], further: Sequence[float] = ()) -> Law:
    """Fit the law to arms of known quantities that were scored on the same rows, each with several seeds.

    Args:
        arms: the quantity of each, such as its training prompts, and its scored rows by seed.
        further: quantities to predict the accuracy at.
    """
    quantities = np.array([quantity for quantity, _ in arms])
    measured = [np.mean([_credits(rows).mean() for rows in seeds.values()]) for _, seeds in arms]
    slope, offset = np.polyfit(np.log(quantities), np.log(1 - np.array(measured)), 1)
    draws = np.polyfit(np.log(quantities), np.log(1 - _drawn(arms)).T, 1)  # [2, R]

    def accuracy(quantity: float) -> float:
        return 1 - float(np.exp(offset + slope * np.log(quantity)))

    predicted = {}
    for quantity in further:
        spread = percentile_interval(1 - np.exp(draws[1] + draws[0] * np.log(quantity)))
        predicted[quantity] = accuracy(quantity), spread
    fitted = {float(quantity): accuracy(quantity) for quantity in quantities}
    return Law(-float(slope), percentile_interval(-draws[0]), fitted, predicted)


def _drawn(arms: Sequence[tuple[float, Seeds]]) -> Draws:
    """The accuracy of each arm over other prompts and other seeds."""
    runs = [rows for _, seeds in arms for rows in seeds.values()]
    values = [_credits(rows) for rows in runs]
    clusters = np.concatenate([clusters_of(rows)[gaps_of(rows).groups] for rows in runs])
    each = resampled_means(np.concatenate(values), clusters, np.repeat(np.arange(len(runs)), [*map(len, values)]))
    rng, start, found = np.random.default_rng(0), 0, []
    for count in (len(seeds) for _, seeds in arms):
        seeds: Int64[np.ndarray, "R seeds"] = rng.integers(start, start + count, size=(len(each), count))
        found.append(np.take_along_axis(each, seeds, axis=1).mean(axis=1))
        start += count
    return np.stack(found, axis=1)


def _credits(rows: Sequence[ScoredRow]) -> Float64[np.ndarray, " n"]:
    return credits_of(gaps_of(rows).gaps)
