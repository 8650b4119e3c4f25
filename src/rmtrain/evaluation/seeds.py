"""Settings trained with several seeds: figures over all seeds, and paired differences on the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from rmtrain.errors import DataError
from rmtrain.evaluation.results import ScoredRow, clusters_of, gaps_of, summarise
from rmtrain.metrics.intervals import clustered_interval, detectable_difference, difference_interval, resampled_means
from rmtrain.metrics.rankings import Floats, Labels, bradley_terry_losses, credits_of

Metric = Literal["accuracy", "loss"]
Seeds = Mapping[int, Sequence[ScoredRow]]  # rows of one split, by the seed of the run that scored them


@dataclass(frozen=True)
class SeedFigures:
    """Figures of a setting, over all its seeds and for each. The intervals are over prompts, for these seeds."""

    n: int  # preferences of one seed
    prompts: int
    accuracy: float  # mean over seeds; a tie counts 1/2
    low: float  # 95 % interval, clustered by prompt
    high: float
    loss: float  # nats, Bradley-Terry, mean over seeds
    length_baseline: float | None  # accuracy of "the longer wins"
    length_correlation: float | None  # Spearman, of reward and length; mean over seeds
    by_seed: Mapping[int, Mapping[Metric, float]]


@dataclass(frozen=True)
class SeedDifference:
    """Setting A minus setting B on the same rows with the same seeds, and its 95 % interval over prompts."""

    metric: Metric
    seeds: int
    n: int  # preferences of one seed
    prompts: int
    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    # smallest true difference that these prompts would detect with a power of 80 %
    detectable: float | None

    @property
    def found(self) -> bool:
        """Whether the interval excludes 0 and every seed has the same sign."""
        signs = {np.sign(value) for value in self.by_seed}
        return not self.low <= 0 <= self.high and signs == {np.sign(self.difference)}


class _Units(NamedTuple):
    """One value for each preference of each seed."""

    values: Floats
    clusters: Labels
    seeds: Labels
    sources: Labels


def seed_figures(seeds: Seeds) -> SeedFigures:
    """Figures of a setting from the rows of each seed; every seed and preference has the same weight.

    Raises:
        DataError: there is no preference.
    """
    each = {seed: summarise(rows) for seed, rows in seeds.items()}
    units = _units(seeds, "accuracy")
    interval = clustered_interval(units.values, units.clusters)
    if interval is None:
        raise DataError("there are no preferences for a comparison of settings", "give the recipe a validation split")
    correlations = [run.reward_length_correlation for run in each.values() if run.reward_length_correlation is not None]
    baselines = [run.length_baseline for run in each.values() if run.length_baseline is not None]
    return SeedFigures(
        n=next(iter(each.values())).n,
        prompts=len(set(units.clusters)),
        accuracy=float(units.values.mean()),
        low=interval.low,
        high=interval.high,
        loss=float(_units(seeds, "loss").values.mean()),
        length_baseline=float(np.mean(baselines)) if baselines else None,
        length_correlation=float(np.mean(correlations)) if correlations else None,
        by_seed={seed: {"accuracy": run.accuracy or 0.0, "loss": run.loss or 0.0} for seed, run in each.items()},
    )


def seed_difference(a: Seeds, b: Seeds, metric: Metric = "accuracy", each_source_alike: bool = False) -> SeedDifference:
    """A minus B over common seeds.

    Every preference weighs the same, or every source: then the difference is the mean of the sources' differences.

    The interval is a paired bootstrap over prompts: a prompt keeps the differences of all its preferences and seeds.
    It covers other prompts, but not other seeds; `by_seed` shows the spread over seeds.

    Raises:
        DataError: they have no common seed, or were scored on different rows.
    """
    shared = [seed for seed in a if seed in b]
    if not shared:
        raise DataError("two settings have no common seed", "train both with the same seeds")
    for seed in shared:
        if [_identity(row) for row in a[seed]] != [_identity(row) for row in b[seed]]:
            raise DataError(
                "two settings were scored on different rows", "do not vary keys that change the validation split"
            )
    ours, theirs = (_units({seed: rows[seed] for seed in shared}, metric) for rows in (a, b))
    values, prompts = ours.values - theirs.values, len(set(ours.clusters))
    strata = np.unique(ours.sources, return_inverse=True)[1] if each_source_alike else np.zeros(len(values), np.int64)
    means = resampled_means(values, ours.clusters, strata)
    interval = difference_interval(np.asarray(means.mean(axis=1)), prompts)
    shares = np.full(means.shape[1], 1 / means.shape[1])
    weights = (shares / np.bincount(strata))[strata]  # one for each preference; their sum is 1
    return SeedDifference(
        metric=metric,
        seeds=len(shared),
        n=len(values) // len(shared),
        prompts=prompts,
        difference=float(weights @ values),
        low=interval.low,
        high=interval.high,
        by_seed=tuple(
            float(weights[here] @ values[here] / weights[here].sum())
            for here in (ours.seeds == seed for seed in shared)
        ),
        detectable=detectable_difference(values, ours.clusters, strata, shares),
    )


def _identity(row: ScoredRow) -> tuple[str, str, tuple[tuple[int, int], ...]]:
    return row.id, row.cluster, row.preferences


def _units(seeds: Seeds, metric: Metric) -> _Units:
    values, clusters, labels, sources = list[Floats](), list[Labels](), list[Labels](), list[Labels]()
    for seed, rows in seeds.items():
        gaps = gaps_of(rows)
        values.append(credits_of(gaps.gaps) if metric == "accuracy" else bradley_terry_losses(gaps.gaps))
        clusters.append(clusters_of(rows)[gaps.groups])
        labels.append(np.full(len(gaps.gaps), seed))
        sources.append(np.array([row.source for row in rows])[gaps.groups])
    return _Units(*map(np.concatenate, (values, clusters, labels, sources)))
