"""Figures of `rmtrain gap` on made-up rewards, against plain loops."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.errors import DataError, InputError
from rmtrain.evaluation.alignment_gap import GapRows, measure_gap
from rmtrain.evaluation.gap_figures import GapFigures, GapResult
from rmtrain.evaluation.rater_shares import Alpha, find_alpha, parse_alpha, vote_share
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics.alignment_gap import Flips

BETAS = (0.1, 1.0, 10.0)


def rows(rng: np.random.Generator, sizes: list[int], scale: float = 20.0) -> list[ScoredRow]:
    """Every pair of a group is a preference for the earlier completion; three groups share a prompt."""
    made = []
    for number, k in enumerate(sizes):
        pairs = tuple((a, b) for a in range(k) for b in range(a + 1, k))
        lengths = tuple(rng.integers(5, 40, k).tolist())
        rewards = tuple((scale * rng.normal(size=k) - 2.0 * np.array(lengths)).tolist())
        made.append(ScoredRow(f"g{number}", "s", rewards, pairs, False, lengths, f"prompt {number // 3}"))
    return made


def with_rewards(like: list[ScoredRow], rng: np.random.Generator, **changes: Any) -> list[ScoredRow]:
    return [row._replace(rewards=tuple(rng.normal(size=len(row.rewards)).tolist()), **changes) for row in like]


def as_reference(policy: list[ScoredRow], rng: np.random.Generator) -> list[ScoredRow]:
    return [row._replace(rewards=tuple(r + 6 * rng.normal() for r in row.rewards)) for row in policy]


class Case:
    """Rows of a policy, its reference and a reward model, with the figures measured."""

    def __init__(self, sizes: list[int], alpha: np.ndarray | float = 0.8) -> None:
        rng = np.random.default_rng(1)
        self.policy = rows(rng, sizes)
        self.reference = as_reference(self.policy, rng)
        self.reward_model = with_rewards(self.policy, rng)
        self.scores = [tuple(rng.integers(0, 4, k).astype(float).tolist()) for k in sizes]
        n = sum(len(row.preferences) for row in self.policy)
        self.alpha = np.broadcast_to(alpha, n).astype(float)
        self.figures = self.measure()

    def measure(self, reference: bool = True, **rewards: list[ScoredRow]) -> GapFigures:
        of_all = GapRows(self.policy, self.reference if reference else None, rewards or {"rm": self.reward_model})
        return measure_gap(of_all, Alpha(self.alpha, "made up"), BETAS, 0.1, self.scores)

    def gaps(self, made: list[ScoredRow], normalised: bool = False) -> np.ndarray:
        found = []
        for row in made:
            values = [r / n if normalised else r for r, n in zip(row.rewards, row.lengths, strict=True)]
            found += [values[better] - values[worse] for better, worse in row.preferences]
        return np.array(found)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case([2] * 30 + [3] * 20 + [4] * 20)


@pytest.mark.parametrize("normalised", [False, True])
def test_every_accuracy_is_a_share_of_preferences(case: Case, normalised: bool) -> None:
    policy, reference = case.gaps(case.policy, normalised), case.gaps(case.reference, normalised)
    expected: dict[str, float] = {
        "policy": (policy > 0).mean(),
        "reference": (reference > 0).mean(),
        "implicit": (policy - reference > 0).mean(),
        **{f"{beta:g}": (-reference < logit(0.8) / beta).mean() for beta in BETAS},
    }
    figures = case.figures
    measured = {"policy": figures.policy, "reference": figures.reference, "implicit": figures.implicit}
    for name, of in {**measured, **figures.idealised}.items():
        assert of is not None
        found = of.normalised if normalised else of
        assert found is not None
        assert found.accuracy == pytest.approx(expected[name]), name
        assert found.n == figures.n == len(policy)
        assert found.low is not None
        assert found.high is not None
        assert found.low - 1e-9 <= found.accuracy <= found.high + 1e-9


def test_gaps_are_paired_differences_and_the_median_is_over_beta(case: Case) -> None:
    ideal = [of.accuracy for of in case.figures.idealised.values()]
    for beta, of in case.figures.idealised.items():
        gap = case.figures.gap[beta]
        assert gap.difference == pytest.approx(of.accuracy - case.figures.policy.accuracy)  # type: ignore[operator]
        assert gap.low <= gap.difference <= gap.high
    median = case.figures.gap["median"]
    assert median.difference == pytest.approx(np.median(ideal) - case.figures.policy.accuracy)  # type: ignore[arg-type, operator]
    assert median.low <= median.difference <= median.high
    assert median.normalised is not None


def test_a_reward_model_is_compared_with_the_policy_and_its_ideal(case: Case) -> None:
    found = case.figures.reward_models["rm"]
    credit = (case.gaps(case.reward_model) > 0).astype(float)
    policy = (case.gaps(case.policy) > 0).astype(float)
    assert found.accuracy == credit.mean()
    assert found.minus_policy == pytest.approx((credit - policy).mean())
    assert found.minus_ideal.difference == pytest.approx(
        credit.mean() - float(np.median([of.accuracy for of in case.figures.idealised.values()]))  # type: ignore[arg-type]
    )
    clusters = np.array([row.cluster for row in case.policy for _ in row.preferences])
    net = [float((credit - policy)[clusters == name].sum()) for name in np.unique(clusters)]
    from scipy.stats import binomtest

    better, worse = sum(value > 0 for value in net), sum(value < 0 for value in net)
    assert found.mcnemar_p == pytest.approx(binomtest(better, better + worse).pvalue)


@pytest.mark.parametrize("normalised", [False, True])
def test_what_a_reward_model_closes_is_its_share_of_the_ideal_s_lead(case: Case, normalised: bool) -> None:
    found = case.figures.reward_models["rm"]
    share = found.closed_normalised if normalised else found.closed
    credit = (case.gaps(case.reward_model) > 0).mean()
    policy = (case.gaps(case.policy, normalised) > 0).mean()
    ideal = np.median([(case.gaps(case.reference, normalised) + logit(0.8) / b > 0).mean() for b in BETAS])
    gap = case.figures.gap["median"].normalised if normalised else case.figures.gap["median"]
    assert gap is not None
    assert (share is None) == (gap.low <= 0)
    if share is not None:
        assert share.value == pytest.approx((credit - policy) / (ideal - policy))
        assert share.low <= share.value <= share.high


def test_what_tuning_changed_is_a_paired_difference(case: Case) -> None:
    found = case.figures.minus_reference
    assert found is not None
    assert found.normalised is not None
    for of, normalised in ((found, False), (found.normalised, True)):
        policy, reference = (case.gaps(rows, normalised) > 0 for rows in (case.policy, case.reference))
        assert of.difference == pytest.approx(policy.mean() - reference.mean())
        assert of.low <= of.difference <= of.high
    assert case.measure(reference=False).minus_reference is None


def test_a_result_is_read_back_as_it_was_written_or_refused(case: Case) -> None:
    setting = {"refused": 0, "models": {"policy": {"where": "p", "rendering": {}}}, "data": {"source": "rows"}}
    values = json.loads(json.dumps(case.figures.to_json())) | setting
    assert GapResult.from_json(values).figures == case.figures
    older = {key: value for key, value in values.items() if key not in ("minus_reference", "gold", "log_ratios")}
    assert GapResult.from_json(older).figures.policy == case.figures.policy
    for wrong, words in (
        ({"n": "many"}, "n: "),
        ({"gap": {"0.1": {"difference": 1}}}, "gap.0.1.low: field required"),
        ({"models": {}}, "models.policy: field required"),
    ):
        with pytest.raises(DataError, match=words):
            GapResult.from_json(values | wrong)


def test_flips_and_the_bound_of_theorem_4_1(case: Case) -> None:
    policy, reference, beta = case.gaps(case.policy), case.gaps(case.reference), 0.1
    wrong = reference < 0
    losses, bounds = -np.log(expit(beta * (policy - reference))), -np.log(expit(beta * -reference))
    bound, flips = case.figures.loss_bound, case.figures.flips
    assert bound is not None
    assert flips is not None
    assert (bound.n, bound.at_or_below) == (wrong.sum(), (wrong & (losses <= bounds)).sum())
    assert bound.above_though_learnt == (wrong & (losses > bounds) & (losses < np.log(2))).sum() > 0
    assert bound.median_bound == pytest.approx(np.median(bounds[wrong]))
    assert flips.only_policy == bound.at_or_below
    assert sum(asdict(flips).values()) == case.figures.n
    assert case.figures.flip_rate == pytest.approx(bound.at_or_below / bound.n)
    assert sum(bar.right for bar in case.figures.log_ratios) == (policy > 0).sum()
    below = [bar for bar in case.figures.log_ratios if bar.high <= 0]
    assert sum(bar.right + bar.wrong for bar in below) == wrong.sum()


def test_graded_groups_of_three_or_more_are_ranked_and_chosen_from(case: Case) -> None:
    large = [i for i, row in enumerate(case.policy) if len(row.rewards) > 2]
    ranking, best = case.figures.ranking, case.figures.best_of_n
    assert set(ranking) == {"policy", "policy, length-normalised", "rm"}
    untied = [i for i in large if len(set(case.scores[i])) == len(case.scores[i])]
    expected = [
        np.argsort(case.reward_model[i].rewards).tolist() == np.argsort(case.scores[i]).tolist() for i in untied
    ]
    exact = ranking["rm"].exact_match
    assert exact is not None
    assert (exact.n, exact.value) == (len(untied), pytest.approx(np.mean(expected)))
    assert ranking["rm"].chance == pytest.approx(np.mean([1 / (6 if len(case.scores[i]) == 3 else 24) for i in untied]))
    assert best is not None
    chosen = [case.scores[i][int(np.argmax(case.reward_model[i].rewards))] for i in large]
    random, highest = [np.mean(case.scores[i]) for i in large], [max(case.scores[i]) for i in large]
    assert best.choosers["rm"].score.value == pytest.approx(np.mean(chosen))
    assert best.random.value == pytest.approx(np.mean(random))
    share = best.choosers["rm"].share
    assert share is not None
    assert share.value == pytest.approx((np.mean(chosen) - np.mean(random)) / (np.mean(highest) - np.mean(random)))
    assert share.low <= share.value <= share.high
    assert len(best.kl) == len(best.choosers["rm"].curve) == 3
    assert best.choosers["rm"].curve[0].value == pytest.approx(best.random.value)
    assert best.best_curve[0].value == pytest.approx(best.random.value)


def test_a_model_that_only_compares_is_ranked_by_pairs_alone(case: Case) -> None:
    rng = np.random.default_rng(5)
    margins = [row._replace(rewards=(), margins=tuple(rng.normal(size=len(row.preferences)))) for row in case.policy]
    figures = case.measure(pairs=margins)
    assert figures.reward_models["pairs"].n == figures.n
    assert "pairs" not in figures.ranking


def test_without_a_reference_the_ideal_starts_from_the_policy(case: Case) -> None:
    figures = case.measure(reference=False)
    assert figures.ideal_of == "policy"
    assert figures.reference is figures.implicit is figures.flips is figures.loss_bound is figures.flip_rate is None
    assert figures.idealised["1"].accuracy == pytest.approx((-case.gaps(case.policy) < logit(0.8)).mean())
    values = figures.to_json()
    assert values["flip_rate"] is None
    json.dumps(values, allow_nan=False)


def test_ties_count_a_half_and_are_no_flips() -> None:
    tied = [ScoredRow(str(i), "", (1.0, 1.0), ((0, 1),), False, (3, 3), str(i), identical=1) for i in range(4)]
    figures = measure_gap(GapRows(tied, tied, {"rm": tied}), Alpha(np.full(4, 0.5), ""), BETAS, 0.1, [None] * 4)
    assert (figures.policy.accuracy, figures.policy.ties, figures.identical) == (0.5, 4, 4)
    assert figures.flips == Flips(0, 0, 0, 0, ties=4)
    assert (figures.ranking, figures.best_of_n) == ({}, None)
    json.dumps(figures.to_json(), allow_nan=False)


def test_rows_without_preferences_have_no_figures_of_pairs() -> None:
    alone = [ScoredRow("1", "", (1.0, 2.0, 0.0), (), False, (3, 3, 2))]
    figures = measure_gap(GapRows(alone, alone, {"rm": alone}), Alpha(np.zeros(0), ""), BETAS, 0.1, [(1.0, 2.0, 3.0)])
    assert (figures.n, figures.policy.accuracy, figures.gap, figures.reward_models) == (0, None, {}, {})
    assert figures.ranking["rm"].top1 is not None
    json.dumps(figures.to_json(), allow_nan=False)


def test_the_json_has_the_promised_fields(case: Case) -> None:
    values = case.figures.to_json()
    promised = {"n", "groups", "policy", "reference", "implicit", "idealised", "gap", "reward_models", "flip_rate"}
    assert promised | {"ranking", "best_of_n"} <= set(values)
    for name in ("policy", "reference", "implicit"):
        assert {"accuracy", "low", "high", "normalised"} <= set(values[name])
    assert set(values["gap"]) == {"0.1", "1", "10", "median"}
    of = {"accuracy", "low", "high", "minus_policy", "minus_low", "minus_high", "mcnemar_p"}
    assert of <= set(values["reward_models"]["rm"])
    assert {"exact_match", "chance", "tau_b", "ndcg", "top1"} <= set(values["ranking"]["policy"])


def group(name: str, *preferences: Preference, k: int = 2) -> PreferenceGroup:
    completions = tuple((Message("assistant", str(i)),) for i in range(k))
    return PreferenceGroup(name, (Message("user", "q"),), completions, preferences)


def test_alpha_is_a_constant_or_the_votes_for_the_better_completion() -> None:
    groups = [group("a", Preference(0, 1)), group("b", Preference(1, 0)), group("c", Preference(1, 0))]
    source = {"a": {"votes": [1, 1, 0]}, "b": {"alpha": 0.25}, "c": {"votes": [2]}}
    assert find_alpha(parse_alpha("0.75", False), groups, source, {}).values.tolist() == [0.75] * 3
    found = find_alpha(parse_alpha("votes", False), groups, source, {})
    assert found.values.tolist() == pytest.approx([2.5 / 3, 0.75, 1.0])
    assert found.circular_for is None
    for row in ({}, {"votes": []}, {"votes": [3]}, {"alpha": 2}, {"alpha": True}):
        with pytest.raises(InputError, match="group a has no votes"):
            vote_share(row, groups[0])
    with pytest.raises(InputError, match="has no votes of raters on two completions"):
        vote_share({"alpha": 0.5}, group("three", k=3))


def test_alpha_is_the_sigmoid_of_score_gaps_or_of_fitted_reward_gaps() -> None:
    groups = [group("a", Preference(0, 1, 2.0)), group("b", Preference(1, 0, 0.5))]
    found = find_alpha(parse_alpha("scores:0.5", False), groups, {}, {})
    assert found.values.tolist() == pytest.approx([expit(1), expit(0.25)])
    with pytest.raises(InputError, match="group c has no scores"):
        find_alpha(parse_alpha("scores", False), [group("c", Preference(0, 1))], {}, {})
    scored = [ScoredRow(str(i), "", (gap, 0.0), ((0, 1),), False) for i, gap in enumerate((2.0, -1.0, 0.5, 1.0))]
    found = find_alpha(parse_alpha("rewards", True), [], {}, {"rm": scored})
    assert found.circular_for == "rm"
    scale = logit(found.values[0]) / 2
    assert found.values.tolist() == pytest.approx(expit(scale * np.array([2.0, -1.0, 0.5, 1.0])).tolist())


@pytest.mark.parametrize(
    "text", ["", "0", "1.5", "-1", "nan", "votes:2", "scores:0", "scores:inf", "scores:x", "rewards:1", "other"]
)
def test_other_alphas_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--alpha"):
        parse_alpha(text, True)
    with pytest.raises(InputError, match="no reward model"):
        parse_alpha("rewards", False)
