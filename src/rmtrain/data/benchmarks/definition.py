"""The type of a benchmark: where its rows are, how a row becomes a preference group, and the formulas of its scores."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rmtrain.data.types import PreferenceGroup, Row
from rmtrain.metrics.rankings import Floats

Weights = Mapping[str, float]  # subset → weight; weights may have any sum above 0
Sizes = Mapping[str, int]  # subset → number of rows


@dataclass(frozen=True)
class Era:
    """One formula for the overall score. Each part is a weighted mean of subsets; an empty part has no score."""

    overall: Weights
    sections: Mapping[str, Weights] = field(default_factory=dict)
    prior: Weights = field(default_factory=dict)  # of the prior sets
    with_prior: Weights = field(default_factory=dict)  # of subsets and prior sets together


@dataclass(frozen=True)
class PriorSets:
    """Older test sets that the overall score may include; each is a split of one dataset."""

    counts: Sizes  # of the reported sets
    in_score: tuple[str, ...]
    left_out: tuple[str, ...]  # splits that are neither reported nor scored
    hub_id: str = ""


class ScoredPrompt(NamedTuple):
    """The rewards of one row's completions, the right completions first."""

    id: str
    rewards: Sequence[float]
    right: int  # number of right completions


class FormulaScore(NamedTuple):
    """A subset's score by its own formula, and the formula's terms; None for a term that no prompt defines."""

    score: float | None
    terms: dict[str, float | None]
    draws: Floats  # [R] scores of resampled prompts


@dataclass(frozen=True)
class OwnFormula:
    """The formula of a subset whose score is not a mean over its rows, such as Ties of RewardBench 2."""

    score: Callable[[Sequence[ScoredPrompt], int], FormulaScore]  # the integer is the seed of the resampling
    difference_draws: Callable[[Sequence[ScoredPrompt], Sequence[ScoredPrompt], int], Floats]  # [R] A minus B
    prompt_of: Callable[[str], str]  # row id → prompt; the rows of a prompt are resampled together
    prompts: int  # number of prompts in the published subset
    excess: float  # how far a score can exceed the range from 0 to 1


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. Its subsets are those in its sections."""

    name: str  # on the command line and in results
    title: str  # in tables and model cards
    hub_id: str
    split: str  # the split that is scored
    read: Callable[[Row], PreferenceGroup]  # puts the right completions first; raises ValueError for a faulty row
    sections: Callable[[Sizes], Mapping[str, Weights]]  # section → subset → weight
    eras: Callable[[Sizes, Collection[str]], Mapping[str, Era]]  # of the sizes of subsets and the prior sets scored
    counts: Sizes = field(default_factory=dict)  # published number of rows by subset
    split_sizes: tuple[int, ...] = ()  # published number of rows by split, if not published by subset
    # pairs: every preference counts 1 if the better reward is strictly higher. best: a row counts 1 if its right
    # completion has the highest reward, and 1/k if k completions share it
    rule: Literal["pairs", "best"] = "pairs"
    needs_rewards: bool = False  # needs rewards: margins between two completions do not suffice
    prior: PriorSets | None = None
    own_formulas: Mapping[str, OwnFormula] = field(default_factory=dict)  # by subset
    # further figures of a section's rows, computed from [n, K] rewards with n > 0, and their names
    details: Callable[[Floats], dict[str, float]] | None = None
    detail_names: tuple[str, ...] = ()

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of all subsets, in the order of the sections."""
        return tuple(subset for weights in self.sections({}).values() for subset in weights)

    @property
    def prior_counts(self) -> Sizes:
        """Published number of rows by prior set; empty for a benchmark without prior sets."""
        return self.prior.counts if self.prior else {}


def single_subset_sections(*subsets: str) -> Callable[[Sizes], Mapping[str, Weights]]:
    """Sections of one subset each, with the subset's name."""
    return lambda sizes: {subset: {subset: 1} for subset in subsets}


def weighted_mean(accuracies: Mapping[str, float], weights: Weights) -> float | None:
    """Weighted mean over subsets; None if a subset is missing or there are no weights."""
    if not weights or any(subset not in accuracies for subset in weights):
        return None
    return sum(weight * accuracies[subset] for subset, weight in weights.items()) / sum(weights.values())


class EraScore(NamedTuple):
    """The scores that one formula gives."""

    sections: dict[str, float | None]
    prior_sets: float | None
    mean_of_sections: float | None
    with_prior_sets: float | None


def era_scores(
    benchmark: Benchmark, accuracies: Mapping[str, float], prior: Mapping[str, float], sizes: Sizes
) -> dict[str, EraScore]:
    """Scores by each of the benchmark's formulas, from accuracies by subset and by prior set."""
    return {
        name: EraScore(
            sections={section: weighted_mean(accuracies, weights) for section, weights in era.sections.items()},
            prior_sets=weighted_mean(prior, era.prior),
            mean_of_sections=weighted_mean(accuracies, era.overall),
            with_prior_sets=weighted_mean({**accuracies, **prior}, era.with_prior),
        )
        for name, era in benchmark.eras(sizes, prior).items()
    }
