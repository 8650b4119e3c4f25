import json

import numpy as np
import pytest
import scipy.stats

from rmtrain.data.benchmarks import benchmark_named
from rmtrain.data.benchmarks.definition import ScoredPrompt
from rmtrain.data.benchmarks.rewardbench1 import COUNTS, SECTIONS
from rmtrain.errors import DataError
from rmtrain.evaluation.benchmarks import benchmark_result
from rmtrain.evaluation.differences import compare_rows
from rmtrain.evaluation.results import ScoredRow, write_rows
from rmtrain.evaluation.rows_files import result_beside, rows_of_result, scored_rows
from rmtrain.metrics.intervals import detectable_difference, difference_interval, resampled_means


def compare(a_rows, b_rows, benchmark=None):
    return compare_rows(a_rows, b_rows, benchmark and benchmark_named(benchmark)).to_json()


def rows_of(right, source="s", k=1):
    """A row for each outcome: 1 right, 0 wrong, 0.5 a tie."""
    return [
        ScoredRow(str(i), source, (float(outcome), 0.5), ((0, 1),), False, (1, 1), str(i // k))
        for i, outcome in enumerate(right)
    ]


def outcomes(both, only_a, only_b, neither):
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return rows_of(a), rows_of(b)


def test_figures_of_a_clear_difference():
    a, b = outcomes(120, 40, 10, 30)
    result = compare(a, b)
    assert (result["n"], result["groups"], result["a_better"], result["b_better"]) == (200, 200, 40, 10)
    assert (result["a"], result["b"], result["difference"]) == pytest.approx((0.8, 0.65, 0.15))
    assert result["mcnemar_p"] == pytest.approx(scipy.stats.binomtest(10, 50).pvalue)
    half = 1.96 * np.sqrt((50 / 200 - 0.15**2) / 200)
    assert (result["low"], result["high"]) == pytest.approx((0.15 - half, 0.15 + half), abs=0.01)
    assert result["detectable"] == pytest.approx(half * 2.8016 / 1.96, rel=0.02)
    assert result["verdict"].startswith("A is better, by 15.00 points (p = ")
    assert result["within_noise"] is False


def test_swapping_the_models_turns_the_signs():
    a, b = outcomes(120, 40, 10, 30)
    forth, back = compare(a, b), compare(b, a)
    assert back["difference"] == pytest.approx(-forth["difference"])
    assert (back["low"], back["high"]) == pytest.approx((-forth["high"], -forth["low"]), abs=0.005)
    assert back["mcnemar_p"] == forth["mcnemar_p"]
    assert back["verdict"].startswith("B is better")


def test_a_small_difference_is_called_noise():
    result = compare(*outcomes(60, 6, 5, 29))
    assert result["low"] < 0 < result["high"]
    assert result["within_noise"] is True
    least = f"{100 * result['detectable']:.2f}"
    assert result["verdict"] == (
        f"Within noise: A is ahead by 1.00 points (p = 1); "
        f"a difference of {least} would be detected four times in five."
    )


def test_models_that_agree_everywhere():
    a, _ = outcomes(60, 0, 0, 40)
    result = compare(a, a)
    assert (result["difference"], result["mcnemar_p"], result["detectable"]) == (0, 1, None)
    assert result["low"] < 0 < result["high"]
    assert result["verdict"] == "A and B are equal on each of 100 prompts."


def test_a_tie_counts_half():
    result = compare(rows_of([1, 0.5]), rows_of([0.5, 0.5]))
    assert (result["a"], result["b"], result["a_better"], result["b_better"]) == (0.75, 0.5, 1, 0)


def test_preferences_of_one_prompt_are_not_independent_evidence():
    # each discordant prompt, six times over
    a, b = [1] * 12 + [0] * 12, [0] * 12 + [0] * 12
    alone, sixfold = compare(rows_of(a), rows_of(b)), compare(rows_of(a, k=6), rows_of(b, k=6))
    assert alone["mcnemar_p"] < 0.001
    assert (sixfold["prompts"], sixfold["a_better"]) == (4, 2)
    assert sixfold["mcnemar_p"] == pytest.approx(0.5)
    assert sixfold["high"] - sixfold["low"] > 2 * (alone["high"] - alone["low"])


def test_rows_are_matched_by_id_whatever_their_order():
    a, b = outcomes(30, 9, 4, 7)
    assert compare(a, b[::-1]) == compare(a, b)


def test_preferences_may_come_in_another_order():
    a = [ScoredRow("1", "", (3.0, 2.0, 1.0), ((0, 1), (1, 2)), False)]
    b = [ScoredRow("1", "", (3.0, 1.0, 2.0), ((1, 2), (0, 1)), False)]
    assert compare(a, b)["difference"] == pytest.approx(0.5)


def test_sources_are_compared_one_by_one():
    a = rows_of([1, 1, 0], "x") + [row._replace(id="y" + row.id) for row in rows_of([0, 1], "y")]
    b = rows_of([0, 1, 0], "x") + [row._replace(id="y" + row.id) for row in rows_of([1, 1], "y")]
    parts = compare(a, b)["by_source"]
    assert {name: (part["n"], round(part["difference"], 6)) for name, part in parts.items()} == {
        "x": (3, 0.333333),
        "y": (2, -0.5),
    }


def test_rows_of_one_alone_are_counted_and_left_out():
    a = rows_of([1, 1, 0, 1, 0])
    b = [row._replace(preferences=((1, 0),)) if row.id == "1" else row for row in a[1:]]
    b = [row._replace(cluster="another prompt") if row.id == "2" else row for row in b]
    b += [a[0]._replace(id="9"), a[0]._replace(id="10")]
    result = compare(a, b)
    assert [result[key] for key in ("only_a", "only_b", "not_alike", "groups")] == [1, 2, 2, 2]
    assert (result["n"], result["difference"]) == (2, 0)


def test_rows_with_nothing_in_common_are_refused_with_counts():
    a = rows_of([1, 1, 0])
    b = [a[0]._replace(preferences=((1, 0),)), a[1]._replace(id="8")]
    with pytest.raises(DataError) as caught:
        compare(a, b)
    assert caught.value.message == (
        "A and B have no common row: 2 are only in A, 1 only in B, and 1 have the same id but different prompts or "
        "preferences"
    )


def test_nothing_to_compare():
    result = compare([], [])
    assert (result["n"], result["a"], result["difference"], result["mcnemar_p"]) == (0, None, None, None)
    assert result["within_noise"] is None
    assert result["verdict"] == "There are no preferences to compare on."


def benchmark_rows(seed, chance):
    rng = np.random.default_rng(seed)
    return [
        ScoredRow(f"{name}/{i}", name, (float(rng.random() < chance), 0.0), ((0, 1),), False, (), f"{name}{i}")
        for name, n in COUNTS.items()
        for i in range(n)
    ]


def test_sections_weigh_their_subsets_as_the_benchmark_does():
    a, b = benchmark_rows(0, 0.8), benchmark_rows(1, 0.75)
    result = compare(a, b, "rewardbench-1")
    assert result["benchmark"] == "rewardbench-1"
    right = {"a": {}, "b": {}}
    for side, rows in (("a", a), ("b", b)):
        for name in COUNTS:
            # a tie, here a reward of 0, is wrong
            right[side][name] = np.mean([row.rewards[0] > 0 for row in rows if row.source == name])
    means = {}
    for section, names in SECTIONS.items():
        weights = [984 if name == "math-prm" else COUNTS[name] for name in names]
        figures = result["sections"][section]
        for side in "ab":
            means[section, side] = np.average([right[side][name] for name in names], weights=weights)
            assert figures[side] == pytest.approx(means[section, side])
        assert figures["difference"] == pytest.approx(means[section, "a"] - means[section, "b"])
        variance = sum(
            (w / sum(weights)) ** 2 * np.var(differences(a, b, name)) / COUNTS[name]
            for name, w in zip(names, weights, strict=True)
        )
        assert (figures["high"] - figures["low"]) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=0.05)
        assert figures["detectable"] == pytest.approx(2.8016 * np.sqrt(variance), rel=0.01)
        wins = [(differences(a, b, name) > 0).sum() for name in names]
        losses = [(differences(a, b, name) < 0).sum() for name in names]
        assert figures["mcnemar_p"] == pytest.approx(
            scipy.stats.binomtest(sum(wins), sum(wins) + sum(losses)).pvalue, rel=1e-6
        )
    assert result["score"]["difference"] == pytest.approx(
        np.mean([means[section, "a"] - means[section, "b"] for section in SECTIONS])
    )
    assert result["by_source"]["hep-go"]["difference"] == pytest.approx(differences(a, b, "hep-go").mean())


def differences(a, b, name):
    pairs = zip(a, b, strict=True)
    return np.array([float(x.rewards[0] > 0) - float(y.rewards[0] > 0) for x, y in pairs if x.source == name])


def test_a_section_that_lacks_a_subset_is_none():
    a, b = ([row for row in benchmark_rows(seed, 0.7) if row.source != "hep-go"] for seed in (0, 1))
    result = compare(a, b, "rewardbench-1")
    assert (result["sections"]["Reasoning"], result["score"]) == (None, None)
    assert result["sections"]["Chat"]["n"] == 358
    assert result["n"] == 2985 - 164


def test_the_rules_of_the_other_benchmarks():
    best = [ScoredRow("1", "Focus", (2.0, 3.0, 1.0, 0.0), ((0, 1), (0, 2), (0, 3)), False)]
    first = [best[0]._replace(rewards=(4.0, 3.0, 1.0, 0.0))]
    ties = [ScoredRow("tied:1", "Ties", (2.0, 1.0, 0.5), ((0, 2), (1, 2)), False)]
    worse = [ties[0]._replace(rewards=(2.0, 0.5, 0.5))]
    result = compare(first + ties, best + worse, "rewardbench-2")
    assert (result["benchmark"], result["n"], result["a"], result["b"]) == ("rewardbench-2", 2, 1, 0)
    assert (result["sections"]["Focus"]["difference"], result["sections"]["Math"], result["score"]) == (1, None, None)
    pair = ScoredRow("", "chat", (1.0, 0.0), ((0, 1),), False)
    domains = ("chat", "math", "code", "safety-refuse", "safety-response", "safety-response", "safety-response")
    rows = [pair._replace(id=str(i), source=domain) for i, domain in enumerate(domains)]
    wrong = [*rows[:-1], rows[-1]._replace(rewards=(0.0, 1.0))]
    result = compare(rows, wrong, "rm-bench")
    assert result["sections"]["Safety"]["difference"] == pytest.approx(1 / 4)  # domains pooled by rows
    assert result["score"]["difference"] == pytest.approx(1 / 16)
    tied = pair._replace(source="Math", rewards=(1.0, 1.0))
    assert compare([tied], [tied], "judgebench")["a"] == 0


def test_sources_that_are_called_like_a_benchmarks_subsets_make_no_benchmark():
    tied = ScoredRow("1", "math", (1.0, 1.0), ((0, 1),), False)
    result = compare([tied], [tied])
    assert (result["benchmark"], result["a"], result["sections"], result["score"]) == (None, 0.5, {}, None)
    compared = tied._replace(source="Math", rewards=(), lengths=(1, 1), margins=(0.5,))
    assert compare([compared], [compared], "judgebench")["a"] == 1
    for benchmark in ("rewardbench-2", "rm-bench"):
        with pytest.raises(DataError, match=f"{benchmark} needs rewards"):
            compare([compared], [compared], benchmark)


def rewardbench2_rows(seed, gain, ties=40):
    """Four completions a row, and Ties with both forms of a prompt; the right ones are better by about `gain`."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, n in (("Factuality", 90), ("Precise IF", 60), ("Math", 70), ("Safety", 80), ("Focus", 50)):
        for i in range(n):
            rewards = rng.normal(size=4) + gain * (np.arange(4) == 0)
            rows.append(ScoredRow(f"{name}/{i}", name, tuple(rewards), ((0, 1), (0, 2), (0, 3)), False, (), f"p{i}"))
    for i in range(ties):
        right, wrong = 3 * gain + 0.3 * rng.normal(size=3), rng.normal(size=2)
        ref = (float(right[0]), float(wrong[0]))
        rows.append(ScoredRow(f"ref:{i}", "Ties", ref, ((0, 1),), False, (), f"r{i}"))
        pairs = tuple((a, b) for a in range(3) for b in (3, 4))
        rows.append(ScoredRow(f"tied:{i}", "Ties", (*right, *wrong), pairs, False, (), f"t{i}"))
    return rows


def test_rewardbench_2_is_compared_by_its_score():
    a, b = rewardbench2_rows(0, 1.0), rewardbench2_rows(1, 0.6)
    result = compare(a, b, "rewardbench-2")
    own = [benchmark_result(benchmark_named("rewardbench-2"), rows).to_json() for rows in (a, b)]
    for side, of_one in zip("ab", own, strict=True):
        assert result["score"][side] == pytest.approx(of_one["scores"]["current"]["mean_of_sections"])
        for name, figures in result["sections"].items():
            assert figures[side] == pytest.approx(of_one["sections"][name]["score"])
    # drawn one prompt at a time, both models on the same prompts, the whole result computed anew
    rng, drawn = np.random.default_rng(3), []
    ties = [[row for row in rows if row.source == "Ties"] for rows in (a, b)]
    others = [[row for row in rows if row.source != "Ties"] for rows in (a, b)]
    prompts = sorted({row.cluster for row in others[0]})
    places = {prompt: [i for i, row in enumerate(others[0]) if row.cluster == prompt] for prompt in prompts}
    for _ in range(300):
        chosen = [i for prompt in rng.choice(prompts, len(prompts)) for i in places[prompt]]
        numbers = rng.integers(0, 40, 40)
        scores = []
        for side in range(2):
            credit = {}
            for i in chosen:
                row = others[side][i]
                credit.setdefault(row.source, []).append(row.rewards[0] == max(row.rewards))
            forms = [
                ScoredPrompt(f"{form}:{k}", ties[side][2 * n + place].rewards, right)
                for k, n in enumerate(numbers)
                for place, (form, right) in enumerate((("ref", 1), ("tied", 3)))
            ]
            scores.append((sum(np.mean(values) for values in credit.values()) + plain_ties(forms)) / 6)
        drawn.append(scores[0] - scores[1])
    half = (result["score"]["high"] - result["score"]["low"]) / 2
    assert half == pytest.approx(1.96 * np.std(drawn), rel=0.12)
    assert result["score"]["detectable"] == pytest.approx(2.8016 * np.std(drawn), rel=0.12)
    assert result["score"]["verdict"].startswith("A is better")
    assert result["sections"]["Ties"]["prompts"] == 40
    assert result["score"]["prompts"] == 90 + 40
    same = compare(a, a, "rewardbench-2")
    assert (same["score"]["difference"], same["score"]["detectable"]) == (0, None)
    assert same["score"]["low"] < 0 < same["score"]["high"]
    lacking = compare(*([row for row in rows if row.source != "Math"] for rows in (a, b)), "rewardbench-2")
    assert (lacking["score"], lacking["sections"]["Math"]) == (None, None)
    assert lacking["sections"]["Ties"] == result["sections"]["Ties"]


def plain_ties(prompts):
    """The formula of `rewardbench.md`, told anew."""
    by = {tuple(prompt.id.split(":")): prompt for prompt in prompts}

    def margin(prompt):
        return min(prompt.rewards[: prompt.right]) - max(prompt.rewards[prompt.right :])

    numbers = sorted({number for _, number in by})
    tied, ref = ([margin(by[form, n]) for n in numbers] for form in ("tied", "ref"))
    spread = [np.ptp(by["tied", n].rewards[: by["tied", n].right]) for n in numbers]
    least = np.minimum(tied, ref)
    parts = [np.mean(np.array(tied) > 0), np.mean(np.array(ref) > 0), np.mean(tied > np.array(spread))]
    return (
        0.3 * parts[0]
        + 0.3 * parts[1]
        + 0.2 * parts[2]
        + 0.2 * np.mean(least > spread)
        + 0.01 * np.mean(np.tanh(least / spread - 1))
    )


def simulate(rng, prompts, gain):
    """Two models on prompts of three dependent preferences each; A is right more often by `gain`."""
    ease = rng.beta(4, 2, prompts)[:, None]
    a = rng.random((prompts, 3)) < np.clip(ease + gain, 0, 1)
    b = rng.random((prompts, 3)) < ease
    return (a.astype(float) - b).ravel(), np.repeat(np.arange(prompts), 3)


def test_intervals_cover_the_truth_and_the_detectable_difference_is_detected():
    rng = np.random.default_rng(0)
    truth = np.mean([simulate(rng, 4000, 0.08)[0].mean() for _ in range(50)])
    covered = found = 0
    least = []
    for _ in range(400):
        differences, clusters = simulate(rng, 150, 0.08)
        draws = resampled_means(differences, clusters, 0 * clusters, resamples=400)[:, 0]
        interval = difference_interval(draws, 150)
        covered += interval.low <= truth <= interval.high
        found += interval.low > 0
        least.append(detectable_difference(differences, clusters, 0 * clusters, np.ones(1)))
    assert 0.92 < covered / 400 < 0.98
    # the same noise with a difference of exactly what is said to be detectable
    gain = 0.08 * np.mean(least) / truth
    found = 0
    for _ in range(400):
        differences, clusters = simulate(rng, 150, gain)
        draws = resampled_means(differences, clusters, 0 * clusters, resamples=400)[:, 0]
        found += difference_interval(draws, 150).low > 0
    assert 0.74 < found / 400 < 0.86


def test_rows_are_found_by_split_and_benchmark(tmp_path):
    for name in ("eval/validation", "eval/test", "rewardbench/rm-bench"):
        path = tmp_path / f"{name}.rows.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_rows(path, rows_of([1]))
    write_rows(tmp_path / "rewardbench" / "rm-bench-prior.rows.jsonl", rows_of([1]))
    assert list(scored_rows(tmp_path)) == ["test", "validation", "rm-bench", "rm-bench-prior"]
    assert scored_rows(tmp_path / "nowhere") == {}
    rows = tmp_path / "eval" / "test.rows.jsonl"
    assert result_beside(rows) == {}
    result = tmp_path / "eval" / "test.json"
    for recorded in (str(rows), "test.rows.jsonl", "/moved/away/test.rows.jsonl"):
        result.write_text(json.dumps({"rows": recorded}))
        assert rows_of_result(result) == rows
        assert result_beside(rows) == {"rows": recorded}


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("{", "r.json: can't be read as JSON", ""),
        ("[{}, {}]", "r.json: holds 2 results", ".rows.jsonl"),
        ("{}", "r.json: names no rows file", "under `rows`"),
        ('{"model": "m", "rows": {"math-prm": 3}}', "r.json: names no rows file", "under `rows`"),
        ('{"rows": "gone.rows.jsonl"}', "r.json: its rows file gone.rows.jsonl does not exist", ""),
    ],
)
def test_a_result_without_rows_says_why(tmp_path, monkeypatch, content, message, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError) as caught:
        rows_of_result((tmp_path / "r.json").relative_to(tmp_path))
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


def test_a_link_that_leads_nowhere_is_no_rows_file(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/test.rows.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "eval/validation.rows.jsonl").write_text("")
    assert list(scored_rows(tmp_path)) == ["validation"]
