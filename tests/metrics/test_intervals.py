import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.metrics.intervals import (
    clustered_interval,
    detectable_difference,
    difference_interval,
    effective_size,
    mcnemar_exact,
    percentile_interval,
    resampled_means,
    resampled_sums,
    stratified_interval,
    wilson_interval,
)


@given(st.integers(1, 500), st.data())
def test_wilson_agrees_with_scipy(n, data):
    k = data.draw(st.integers(0, n))
    expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    interval = wilson_interval(k / n, n)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_one_preference_a_prompt_without_ties_is_plain_wilson(right):
    credit = np.array(right, dtype=float)
    interval = clustered_interval(credit, np.arange(len(right)))
    assert interval is not None
    expected = wilson_interval(credit.mean(), len(right))
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=40))
def test_interval_holds_the_estimate_and_is_never_empty(pairs):
    clusters, credit = np.array([c for c, _ in pairs]), np.array([x for _, x in pairs])
    interval = clustered_interval(credit, clusters)
    assert interval is not None
    assert 0 <= interval.low <= credit.mean()
    assert credit.mean() <= interval.high <= 1
    assert interval.low < interval.high


def test_labels_and_order_of_clusters_do_not_matter():
    rng = np.random.default_rng(0)
    credit, clusters = rng.integers(0, 2, 60).astype(float), rng.integers(0, 20, 60)
    order = rng.permutation(60)
    relabelled = clusters[order] * 7 - 100
    assert clustered_interval(credit, clusters) == clustered_interval(credit[order], relabelled)


def test_preferences_that_always_agree_within_their_prompt_count_once():
    right = np.array([1.0] * 70 + [0.0] * 30)
    alone = effective_size(right, np.arange(100))
    sixfold = effective_size(np.repeat(right, 6), np.repeat(np.arange(100), 6))
    assert alone == pytest.approx(100)
    assert sixfold == pytest.approx(100, rel=0.02)


def test_a_perfect_score_is_no_more_certain_than_its_prompts_are_many():
    interval = clustered_interval(np.ones(600), np.repeat(np.arange(100), 6))
    assert interval is not None
    assert interval.high == pytest.approx(1)
    assert interval.low < wilson_interval(1.0, 150).low


def test_no_data_gives_no_interval():
    empty = np.array([]), np.array([], dtype=int)
    assert clustered_interval(*empty) is None


@pytest.mark.parametrize(("prompts", "p"), [(60, 0.6), (60, 0.95), (200, 0.98)])
def test_clustered_interval_covers(prompts, p):
    rng, correlation, trials = np.random.default_rng(prompts), 0.3, 400
    shape = (1 - correlation) / correlation
    covered = 0
    for _ in range(trials):
        by_prompt = rng.beta(p * shape, (1 - p) * shape, prompts)
        credit = (rng.random((prompts, 6)) < by_prompt[:, None]).astype(float).ravel()
        interval = clustered_interval(credit, np.repeat(np.arange(prompts), 6))
        assert interval is not None
        covered += interval.low <= p <= interval.high
    assert covered / trials > 0.93


@pytest.mark.parametrize(
    ("accuracies", "sizes", "weights"),
    [
        ([0.98, 0.958, 0.989, 0.99, 0.975], [100, 95, 95, 28, 40], [100, 95, 95, 28, 40]),  # Chat
        ([0.56, 0.91, 0.95, 0.92, 0.93, 0.9, 0.91], [447] + [164] * 6, [984] + [164] * 6),  # Reasoning
        ([0.995] * 5, [100, 95, 95, 28, 40], [100, 95, 95, 28, 40]),
        ([0.78, 0.9, 0.33, 0.29, 0.57, 0.3], [37, 100, 134, 92, 47, 46], [37, 100, 134, 92, 47, 46]),  # Chat Hard
    ],
)
def test_stratified_interval_covers(accuracies, sizes, weights):
    rng, trials = np.random.default_rng(3), 600
    truth = np.average(accuracies, weights=weights)
    covered = 0
    for _ in range(trials):
        drawn = rng.binomial(sizes, accuracies) / np.array(sizes)
        interval = stratified_interval(drawn.tolist(), sizes, weights)
        covered += interval.low <= truth <= interval.high
    assert covered / trials > 0.93


def test_one_stratum_is_plain_wilson():
    assert stratified_interval([0.9], [50], [7]) == wilson_interval(0.9, 50)


def test_bootstrap_of_a_mean_agrees_with_scipy_and_repeats():
    rng = np.random.default_rng(5)
    values = rng.normal(size=80)
    sums = np.column_stack([values, np.ones(80)])
    drawn = resampled_sums(sums)
    interval = percentile_interval(drawn[:, 0] / drawn[:, 1])
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert (drawn == resampled_sums(sums)).all()
    assert (drawn != resampled_sums(sums, seed=1)).any()


def means_of(values, clusters, **options):
    return resampled_means(values, clusters, np.zeros(len(values), dtype=int), **options)[:, 0]


def test_paired_interval_covers():
    rng, trials, covered = np.random.default_rng(8), 300, 0
    for seed in range(trials):
        differences = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.82, 0.13], size=300)
        interval = difference_interval(means_of(differences, np.arange(300) // 2, resamples=2000, seed=seed), 150)
        covered += interval.low <= 0.08 <= interval.high
    assert covered / trials > 0.91


def test_models_that_never_differ_are_not_proved_equal():
    interval = difference_interval(means_of(np.zeros(100), np.arange(100)), 100)
    assert interval.low == -interval.high < 0
    assert interval.high == pytest.approx(wilson_interval(0, 100).high)


def test_detectable_difference_is_where_power_is_80_percent():
    rng = np.random.default_rng(2)
    pilot = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=2000)
    least = detectable_difference(pilot, np.arange(2000), np.zeros(2000, dtype=int), np.ones(1))
    assert least == pytest.approx((1.96 + 0.8416) * np.sqrt(0.3 / 2000), rel=0.05)
    found, trials = 0, 400
    for _ in range(trials):
        drawn = rng.choice([-1.0, 0.0, 1.0], p=[0.15 - least / 2, 0.7, 0.15 + least / 2], size=2000)
        found += abs(drawn.mean()) > 1.96 * drawn.std(ddof=1) / np.sqrt(2000)
    assert found / trials == pytest.approx(0.8, abs=0.06)


def test_detectable_difference_is_none_where_nothing_differs():
    strata, whole = np.zeros(10, dtype=int), np.ones(1)
    assert detectable_difference(np.zeros(10), np.arange(10), strata, whole) is None
    assert detectable_difference(np.ones(10), strata, strata, whole) is None  # one cluster tells nothing


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_the_binomial_test(a, b):
    expected = scipy.stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar_exact(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(50_000, 50_700), (40_000, 60_000), (0, 100_000)])
def test_mcnemar_of_large_counts(a, b):
    expected = scipy.stats.binomtest(a, a + b).pvalue
    assert mcnemar_exact(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-300)
