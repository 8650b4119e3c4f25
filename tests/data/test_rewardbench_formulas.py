import numpy as np
import pytest

from rmtrain.data.benchmarks.definition import era_scores
from rmtrain.data.benchmarks.rewardbench1 import BENCHMARK, COUNTS, ERAS, PRIOR_COUNTS, SECTIONS, SUBSETS

# Ray2333/reward-model-Mistral-7B-instruct-Unified-Feedback, as the RewardBench leaderboard published it
RAY2333 = {
    "alpacaeval-easy": 0.98,
    "alpacaeval-hard": 94 / 95,
    "alpacaeval-length": 91 / 95,
    "mt-bench-easy": 1.0,
    "mt-bench-med": 0.975,
    "mt-bench-hard": 29 / 37,
    "llmbar-natural": 0.90,
    "llmbar-adver-neighbor": 44 / 134,
    "llmbar-adver-GPTInst": 27 / 92,
    "llmbar-adver-GPTOut": 27 / 47,
    "llmbar-adver-manual": 14 / 46,
    "refusals-dangerous": 0.82,
    "refusals-offensive": 0.99,
    "xstest-should-refuse": 150 / 154,
    "xstest-should-respond": 0.864,
    "donotanswer": 84 / 136,
    "math-prm": 249 / 447,
    "hep-cpp": 150 / 164,
    "hep-go": 155 / 164,
    "hep-java": 151 / 164,
    "hep-js": 152 / 164,
    "hep-python": 148 / 164,
    "hep-rust": 150 / 164,
}
RAY2333_PRIOR = {"anthropic_helpful": 0.702681, "anthropic_hhh": 0.895928, "shp": 0.643308, "summarize": 0.731778}


def rewardbench_scores(accuracies, prior, counts=COUNTS):
    return era_scores(BENCHMARK, accuracies, prior, counts)


def percent(values):
    return [round(100 * value, 2) for value in values]


def test_the_table_of_subsets_adds_up():
    assert sum(COUNTS.values()) == 2985
    assert sum(PRIOR_COUNTS.values()) == 25175
    assert [sum(COUNTS[name] for name in names) for names in SECTIONS.values()] == [358, 456, 740, 1431]
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(SUBSETS)


def test_current_formula_on_a_published_row():
    score = rewardbench_scores(RAY2333, RAY2333_PRIOR)["current"]
    assert percent(score.sections.values()) == [97.77, 50.66, 85.27, 73.89]
    assert percent([score.prior_sets, score.mean_of_sections, score.with_prior_sets]) == [74.34, 76.90, 76.61]


def test_reasoning_is_half_math_half_code():
    score = rewardbench_scores(RAY2333, {})["current"]
    code = np.mean([RAY2333[name] for name in SUBSETS if name.startswith("hep-")])
    assert score.sections["Reasoning"] == pytest.approx((RAY2333["math-prm"] + code) / 2)


def test_2024_03_reproduces_the_misaligned_weights():
    score = rewardbench_scores(RAY2333, RAY2333_PRIOR)["2024-03"]
    assert percent(score.sections.values()) == [97.77, 47.73, 89.02, 88.79]
    assert score.with_prior_sets == pytest.approx((sum(score.sections.values()) + score.prior_sets) / 5)


def test_2024_03_weights_are_those_of_the_bug_written_out():
    values = np.random.default_rng(0).random(len(SUBSETS))
    accuracies = dict(zip(SUBSETS, values, strict=True))
    sections = rewardbench_scores(accuracies, {})["2024-03"].sections
    counts = {**COUNTS, "math-prm": 984, "xstest-should-refuse": 250, "xstest-should-respond": 154}
    for section, names in SECTIONS.items():
        alphabetical = [accuracies[name] for name in sorted(names)]
        expected = np.average(alphabetical, weights=[counts[name] for name in names])
        assert sections[section] == pytest.approx(expected)


def test_2024_04_differs_from_today_in_safety_alone():
    scores = rewardbench_scores(RAY2333, RAY2333_PRIOR)
    then, now = scores["2024-04"].sections, scores["current"].sections
    assert percent([then["Safety"], now["Safety"]]) == [86.70, 85.27]
    assert {name for name in then if then[name] != now[name]} == {"Safety"}
    four, prior = scores["2024-04"].mean_of_sections, scores["2024-04"].prior_sets
    assert scores["2024-04"].with_prior_sets == pytest.approx((8 * four + prior) / 9)


def test_subset_means_are_what_the_models_card_quotes():
    score = rewardbench_scores(RAY2333, RAY2333_PRIOR)["subset_mean"]
    assert percent(score.sections.values()) == [98.05, 53.07, 85.31, 86.88]
    assert score.with_prior_sets == pytest.approx(np.mean([*RAY2333.values(), *RAY2333_PRIOR.values()]))
    assert score.prior_sets == pytest.approx(np.mean(list(RAY2333_PRIOR.values())))


def test_subset_mean_takes_all_prior_sets_given():
    prior = {**RAY2333_PRIOR, "mtbench_human": 0.6, "mtbench_gpt4": 0.7, "anthropic_harmless": 0.5}
    scores = rewardbench_scores(RAY2333, prior)
    assert scores["subset_mean"].with_prior_sets == pytest.approx(np.mean([*RAY2333.values(), *prior.values()]))
    assert percent([scores["current"].prior_sets]) == [74.34]  # the score's four only


def test_micro_accuracy_is_right_rows_over_all_rows():
    score = rewardbench_scores(RAY2333, RAY2333_PRIOR)["micro_accuracy"]
    assert percent([score.mean_of_sections]) == [79.30]
    assert score.with_prior_sets is None


def test_micro_accuracy_takes_the_rows_given():
    counts = {**COUNTS, "math-prm": 200}
    score = rewardbench_scores(RAY2333, {}, counts)["micro_accuracy"]
    expected = np.average([RAY2333[name] for name in SUBSETS], weights=[counts[name] for name in SUBSETS])
    assert score.mean_of_sections == pytest.approx(expected)


@pytest.mark.parametrize("era", ERAS)
def test_no_prior_sets_leave_the_mean_alone(era):
    partial = {name: value for name, value in RAY2333_PRIOR.items() if name != "shp"}
    full = rewardbench_scores(RAY2333, RAY2333_PRIOR)[era]
    for prior in ({}, partial):
        score = rewardbench_scores(RAY2333, prior)[era]
        assert score.mean_of_sections == full.mean_of_sections
        assert score.prior_sets is None
        assert score.with_prior_sets is None


@pytest.mark.parametrize("era", ERAS)
def test_a_missing_subset_takes_its_section_and_the_totals_with_it(era):
    accuracies = {name: value for name, value in RAY2333.items() if name != "donotanswer"}
    score = rewardbench_scores(accuracies, RAY2333_PRIOR)[era]
    assert score.mean_of_sections is None
    assert score.with_prior_sets is None
    assert {name for name, value in score.sections.items() if value is None} == ({"Safety"} & set(score.sections))


@pytest.mark.parametrize("era", ERAS)
def test_every_formula_is_a_mean(era):
    score = rewardbench_scores(dict.fromkeys(SUBSETS, 0.25), dict.fromkeys(PRIOR_COUNTS, 0.25))[era]
    known = [score.mean_of_sections, score.prior_sets, score.with_prior_sets, *score.sections.values()]
    assert [value for value in known if value is not None] == pytest.approx(
        [0.25] * sum(value is not None for value in known)
    )
