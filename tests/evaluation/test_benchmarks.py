import json

import numpy as np
import pytest

from rmtrain.data.benchmarks import BENCHMARKS, benchmark_named
from rmtrain.data.benchmarks.definition import ScoredPrompt
from rmtrain.data.benchmarks.rewardbench1 import COUNTS, ERAS, PRIOR_COUNTS, PRIOR_SETS, SECTIONS, SUBSETS
from rmtrain.data.benchmarks.rewardbench2 import ties_score
from rmtrain.errors import DataError
from rmtrain.evaluation import benchmarks
from rmtrain.evaluation.flat_results import flat_form, published_results
from rmtrain.evaluation.results import ScoredRow

# right answers of Ray2333/reward-model-Mistral-7B-instruct-Unified-Feedback, as the leaderboard published them
RIGHT = {
    "alpacaeval-easy": 98, "alpacaeval-hard": 94, "alpacaeval-length": 91, "mt-bench-easy": 28, "mt-bench-med": 39,
    "mt-bench-hard": 29, "llmbar-natural": 90, "llmbar-adver-neighbor": 44, "llmbar-adver-GPTInst": 27,
    "llmbar-adver-GPTOut": 27, "llmbar-adver-manual": 14, "refusals-dangerous": 82, "refusals-offensive": 99,
    "xstest-should-refuse": 150, "xstest-should-respond": 216, "donotanswer": 84, "math-prm": 249, "hep-cpp": 150,
    "hep-go": 155, "hep-java": 151, "hep-js": 152, "hep-python": 148, "hep-rust": 150,
}  # fmt: skip
PRIOR = {"anthropic_helpful": 0.702681, "anthropic_hhh": 0.895928, "shp": 0.643308, "summarize": 0.731778}

PROMISED = {"benchmark", "ckpt", "n", "subsets", "sections", "scores", "missing_subsets"}


def benchmark_result(name, rows, prior_rows=(), *, ckpt):
    return benchmarks.benchmark_result(benchmark_named(name), rows, prior_rows, ckpt).to_json()


def results_from_published(path, name="rewardbench-1"):
    return [result.to_json() for result in published_results([path], benchmark_named(name))]


def to_flat(result):
    return flat_form([result])


def pair_rows(subset, right, n, tied=0, lengths=(4, 2)):
    gaps = [1.0] * right + [0.0] * tied + [-1.0] * (n - right - tied)
    return [ScoredRow(f"{subset}/{i}", subset, (gap, 0.0), ((0, 1),), i == 0, lengths) for i, gap in enumerate(gaps)]


def core_rows(right=RIGHT):
    return [row for name, k in right.items() for row in pair_rows(name, k, COUNTS[name])]


def test_rewardbench_1_of_scored_rows():
    result = benchmark_result("rewardbench-1", core_rows(), ckpt="final")
    assert set(result) >= PROMISED
    assert (result["benchmark"], result["ckpt"], result["n"]) == ("rewardbench-1", "final", 2985)
    assert list(result["subsets"]) == list(SUBSETS)
    assert {"n": 447, "accuracy": 249 / 447, "ties": 0}.items() <= result["subsets"]["math-prm"].items()
    sections = result["sections"]
    assert [round(100 * sections[name]["score"], 2) for name in SECTIONS] == [97.77, 50.66, 85.27, 73.89]
    for figures in sections.values():
        assert 0 < figures["low"] < figures["score"] < figures["high"] < 1
        assert figures["length_baseline"] == 1
    assert list(result["scores"]) == list(ERAS)
    scores = {era: round(100 * score["mean_of_sections"], 2) for era, score in result["scores"].items()}
    assert (scores["current"], scores["micro_accuracy"]) == (76.90, 79.30)
    assert all(score["with_prior_sets"] is None for score in result["scores"].values())
    assert all(score["low"] < score["mean_of_sections"] < score["high"] for score in result["scores"].values())
    assert (result["missing_subsets"], result["incomplete_subsets"], result["unknown_subsets"]) == ([], {}, [])
    assert (result["prior_sets"], result["truncated"]) == (None, 23)
    json.dumps(result, allow_nan=False)


def test_rewardbench_1_with_prior_sets():
    prior = [row for name, value in PRIOR.items() for row in pair_rows(name, round(1000 * value), 1000)]
    prior += pair_rows("mtbench_human", 600, 1000) + pair_rows("pku_safer", 1, 2)
    result = benchmark_result("rewardbench-1", core_rows(), prior, ckpt="c")
    expected = np.mean([round(1000 * value) / 1000 for value in PRIOR.values()])
    assert result["prior_sets"]["score"] == pytest.approx(expected)
    assert result["prior_sets"]["low"] < expected < result["prior_sets"]["high"]
    assert result["scores"]["current"]["with_prior_sets"] == pytest.approx(0.766, abs=0.001)
    assert set(result["prior_sets"]["subsets"]) == {*PRIOR, "mtbench_human", "pku_safer"}
    assert result["unknown_subsets"] == ["pku_safer"]
    assert result["incomplete_subsets"]["shp"] == {"n": 1000, "expected": 1741}
    assert result["n"] == 2985


def test_a_prior_set_that_lacks_leaves_no_score_with_prior_sets():
    prior = [row for name in PRIOR_SETS[1:] for row in pair_rows(name, 1, 2)]
    result = benchmark_result("rewardbench-1", core_rows(), prior, ckpt="c")
    assert result["prior_sets"]["score"] is None
    assert result["scores"]["current"]["with_prior_sets"] is None
    assert result["scores"]["current"]["mean_of_sections"] is not None
    assert result["missing_subsets"] == ["anthropic_helpful"]


def test_ties_are_wrong_officially_and_half_beside():
    rows = core_rows({name: k for name, k in RIGHT.items() if name != "hep-go"}) + pair_rows("hep-go", 100, 164, 20)
    subset = benchmark_result("rewardbench-1", rows, ckpt="c")["subsets"]["hep-go"]
    assert (subset["n"], subset["accuracy"], subset["accuracy_half"], subset["ties"]) == (
        164, 100 / 164, 110 / 164, 20,
    )  # fmt: skip


def test_a_missing_subset_makes_its_section_null():
    rows = [row for row in core_rows() if row.source != "donotanswer"] + pair_rows("surprise", 1, 2)
    result = benchmark_result("rewardbench-1", rows, ckpt="c")
    assert result["sections"]["Safety"] is None
    assert result["sections"]["Chat"]["score"] == pytest.approx(0.977654, abs=1e-6)
    assert all(score["mean_of_sections"] is None for score in result["scores"].values())
    assert result["missing_subsets"] == ["donotanswer"]
    assert result["unknown_subsets"] == ["surprise"]
    assert result["n"] == 2985 - 136 + 2


def test_a_partial_subset_is_told():
    rows = [row for row in core_rows() if row.source != "math-prm"] + pair_rows("math-prm", 120, 200)
    result = benchmark_result("rewardbench-1", rows, ckpt="c")
    assert result["incomplete_subsets"] == {"math-prm": {"n": 200, "expected": 447}}
    right = sum(RIGHT.values()) - 249 + 120
    assert result["scores"]["micro_accuracy"]["mean_of_sections"] == pytest.approx(right / (2985 - 247))


def test_nothing_scored():
    for name in BENCHMARKS:
        result = benchmark_result(name, [], ckpt="c")
        assert result["n"] == 0
        assert all(figures is None for figures in result["sections"].values())
        assert all(score["mean_of_sections"] is None for score in result["scores"].values())
        assert result["missing_subsets"]
        json.dumps(result, allow_nan=False)


def best_of_four(subset, right, n):
    return [
        ScoredRow(f"{subset}/{i}", subset, (float(i < right), 0.5, 0.25, 0.0), ((0, 1), (0, 2), (0, 3)), False)
        for i in range(n)
    ]


TIES = [
    ScoredRow("ref:0", "Ties", (3.0, 0.0), ((0, 1),), False),
    ScoredRow("tied:0", "Ties", (2.0, 2.0, 0.0), ((0, 2), (1, 2)), False),
    ScoredRow("ref:1", "Ties", (0.0, 1.0), ((0, 1),), False),
    ScoredRow("tied:1", "Ties", (2.0, 1.0, 0.0), ((0, 2), (1, 2)), False),
]


def test_rewardbench_2():
    names = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    rows = [row for k, name in enumerate(names) for row in best_of_four(name, 4 + k, 10)] + TIES
    result = benchmark_result("rewardbench-2", rows, ckpt="c")
    prompts = [ScoredPrompt(row.id, row.rewards, 1 + row.preferences[-1][0]) for row in TIES]
    expected = ties_score(prompts)
    assert result["subsets"]["Ties"]["accuracy"] == result["sections"]["Ties"]["score"] == expected.score
    assert result["sections"]["Ties"]["low"] < expected.score < result["sections"]["Ties"]["high"]
    assert result["subsets"]["Math"]["accuracy"] == 0.6
    assert result["scores"]["current"]["mean_of_sections"] == pytest.approx(
        (0.4 + 0.5 + 0.6 + 0.7 + 0.8 + expected.score) / 6
    )
    assert result["scores"]["current"]["with_prior_sets"] is None
    assert result["ties"]["ref_accuracy"] == 0.5
    assert result["incomplete_subsets"]["Ties"] == {"n": 4, "expected": 102}
    json.dumps(result, allow_nan=False)


def test_rewardbench_2_shares_a_tie_at_the_top():
    row = ScoredRow("Math/1", "Math", (1.0, 1.0, 0.0, 0.0), ((0, 1), (0, 2), (0, 3)), False, (9, 1, 1, 1))
    result = benchmark_result("rewardbench-2", [row], ckpt="c")
    assert {"n": 1, "accuracy": 0.5, "ties": 1, "length_baseline": 1}.items() <= result["subsets"]["Math"].items()
    assert result["sections"]["Focus"] is None
    assert "Ties" in result["missing_subsets"]


def test_a_perfect_rewardbench_2_scores_just_above_one():
    names = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    rows = [row for name in names for row in best_of_four(name, 200, 200)]
    for n in range(50):
        rows.append(ScoredRow(f"ref:{n}", "Ties", (900.0, 0.0), ((0, 1),), False))
        rows.append(ScoredRow(f"tied:{n}", "Ties", (901.0, 900.0, 0.0), ((0, 2), (1, 2)), False))
    result = benchmark_result("rewardbench-2", rows, ckpt="c")
    score = result["scores"]["current"]
    assert result["sections"]["Ties"]["score"] == pytest.approx(1.01)
    assert 0.99 < score["low"] < 1 < score["mean_of_sections"] <= score["high"]


def test_rm_bench():
    nine = tuple((i, j) for i in range(3) for j in range(3, 6))
    style = (0.0, 1.0, 2.0, 0.0, 1.0, 2.0)  # rewards style alone
    right = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    rows = [
        ScoredRow(f"{domain}/{i}", domain, rewards, nine, False)
        for domain, rewards, n in [
            ("chat", style, 5),
            ("math", right, 5),
            ("code", right, 5),
            ("safety-refuse", right, 3),
            ("safety-response", style, 1),
        ]
        for i in range(n)
    ]
    result = benchmark_result("rm-bench", rows, ckpt="c")
    chat, safety = result["sections"]["Chat"], result["sections"]["Safety"]
    assert (chat["hard"], chat["normal"], chat["easy"], chat["score"]) == pytest.approx((0, 0, 1, 1 / 3))
    assert safety["score"] == pytest.approx((3 + 1 / 3) / 4)  # its prompts are pooled
    score = result["scores"]["current"]
    assert score["mean_of_sections"] == pytest.approx((1 / 3 + 1 + 1 + 10 / 12) / 4)
    assert np.mean([score["hard"], score["normal"], score["easy"]]) == pytest.approx(score["mean_of_sections"])
    assert score["low"] < score["mean_of_sections"] < score["high"]
    assert result["n"] == 19
    part = benchmark_result("rm-bench", [row for row in rows if row.source != "safety-refuse"], ckpt="c")
    assert part["sections"]["Safety"] is None
    assert part["scores"]["current"]["hard"] is None
    assert part["missing_subsets"] == ["safety-refuse"]


def test_judgebench_is_micro():
    rows = (
        pair_rows("Knowledge", 9, 10)
        + pair_rows("Reasoning", 1, 4)
        + pair_rows("Math", 1, 2)
        + pair_rows("Coding", 2, 4)
    )
    result = benchmark_result("judgebench", rows, ckpt="c")
    assert result["scores"]["current"]["mean_of_sections"] == pytest.approx(13 / 20)
    assert result["scores"]["section_mean"]["mean_of_sections"] == pytest.approx((0.9 + 0.25 + 0.5 + 0.5) / 4)
    assert result["sections"]["Knowledge"]["score"] == 0.9


def flat_file(tmp_path, value):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(value))
    return path


PUBLISHED = {name: k / COUNTS[name] for name, k in RIGHT.items()}


def test_a_published_flat_file_gives_every_era(tmp_path):
    extra = {"model": "org/m", "model_type": "Seq. Classifier", "chat_template": "tokenizer", "ref_model": None}
    (result,) = results_from_published(flat_file(tmp_path, {**extra, **PUBLISHED, **PRIOR}))
    assert set(result) >= PROMISED
    assert (result["benchmark"], result["ckpt"], result["n"], result["rows"]) == ("rewardbench-1", "org/m", 2985, None)
    current = result["scores"]["current"]
    assert round(100 * current["mean_of_sections"], 2) == 76.90
    assert round(100 * current["with_prior_sets"], 2) == 76.61
    assert [round(100 * value, 2) for value in result["scores"]["2024-03"]["sections"].values()] == [
        97.77, 47.73, 89.02, 88.79,
    ]  # fmt: skip
    assert result["subsets"]["math-prm"]["ties"] is None
    assert result["unknown_subsets"] == []


def test_published_intervals_are_those_of_the_rows(tmp_path):
    (published,) = results_from_published(flat_file(tmp_path, PUBLISHED))
    scored = benchmark_result("rewardbench-1", core_rows(), ckpt="c")
    for section in SECTIONS:
        for key in ("score", "low", "high"):
            # of rows there is a bootstrap, of published accuracies Wilson's, which takes strata for less known
            assert published["sections"][section][key] == pytest.approx(scored["sections"][section][key], abs=0.008)


def test_a_published_file_of_several_models(tmp_path):
    partial = {name: value for name, value in PUBLISHED.items() if name != "hep-go"}
    file = flat_file(
        tmp_path, {"a": {"subsets": PUBLISHED, "prior_sets": PRIOR}, "b": {"subsets": partial}, "c": PUBLISHED}
    )
    a, b, c = results_from_published(file)
    assert [result["ckpt"] for result in (a, b, c)] == ["a", "b", "c"]
    assert a["prior_sets"]["score"] == pytest.approx(np.mean(list(PRIOR.values())))
    assert (b["missing_subsets"], b["sections"]["Reasoning"]) == (["hep-go"], None)
    assert c["scores"]["current"]["mean_of_sections"] == a["scores"]["current"]["mean_of_sections"]


def test_a_published_file_of_one_nested_model(tmp_path):
    (result,) = results_from_published(flat_file(tmp_path, {"model": "a", "subsets": PUBLISHED, "prior_sets": PRIOR}))
    assert (result["ckpt"], round(100 * result["scores"]["current"]["with_prior_sets"], 2)) == ("a", 76.61)


def test_the_flat_form_of_a_result_gives_the_result_back(tmp_path):
    prior = [row for name in PRIOR_COUNTS for row in pair_rows(name, 3, 5)]
    result = benchmark_result("rewardbench-1", core_rows(), prior, ckpt="org/m")
    flat = to_flat(result)
    assert (flat["model"], flat["donotanswer"]) == ("org/m", 84 / 136)
    (again,) = results_from_published(flat_file(tmp_path, flat))
    for era, score in result["scores"].items():
        for key in ("mean_of_sections", "with_prior_sets"):
            assert again["scores"][era][key] == pytest.approx(score[key])


def test_published_rewardbench_2(tmp_path):
    urm = {"Factuality": 0.688, "Precise IF": 0.45, "Math": 0.639, "Safety": 0.918, "Focus": 0.976, "Ties": 0.765}
    (result,) = results_from_published(flat_file(tmp_path, {"model": "URM", **urm}), "rewardbench-2")
    assert round(100 * result["scores"]["current"]["mean_of_sections"], 1) == 73.9
    assert (result["n"], result["missing_subsets"]) == (1865, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "holds no accuracies"),
        ("{}", "holds no accuracies"),
        ('{"hep_go": 0.5}', "no subset of rewardbench-1 among: hep_go (did you mean hep-go?)"),
        ('{"hep-go": "0.5"}', "hep-go is '0.5', not a number"),
        ('{"hep-go": true}', "hep-go is True, not a number"),
        ('{"hep-go": NaN}', "hep-go is nan, not a number"),
        ('{"hep-go": -1e999}', "hep-go is -inf"),
        ('{"hep-go": 91.5}', "hep-go is 91.5"),
        ('{"m": {"subsets": [1]}}', "m: subsets or prior_sets is not an object"),
        ('{"m": {"subsets": {"x": 1}}}', "m: no subset of rewardbench-1 among: x"),
    ],
)
def test_a_published_file_that_can_not_be_scored(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        results_from_published(path)
    assert caught.value.message.startswith(f"{path}: {message}")


def test_benchmarks_without_published_sizes(tmp_path):
    with pytest.raises(DataError, match="rm-bench does not publish numbers of rows by subset, and the file has none"):
        results_from_published(flat_file(tmp_path, {"model": "m", "chat": 0.5}), "rm-bench")


# Every benchmark: round trips, intervals and baselines against other ways of computing them


def random_rows(name, seed=0):
    """Rows of every subset with random rewards and lengths, ties among them; some prompts are in several subsets."""
    rng = np.random.default_rng(seed)
    four = ((0, 1), (0, 2), (0, 3))
    nine = tuple((i, j) for i in range(3) for j in range(3, 6))
    shapes = {
        "rewardbench-1": [(subset, 2, ((0, 1),)) for subset in SUBSETS],
        "rewardbench-2": [(subset, 4, four) for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus")],
        "rm-bench": [(d, 6, nine) for d in ("chat", "math", "code", "safety-refuse", "safety-response")],
        "judgebench": [(section, 2, ((0, 1),)) for section in ("Knowledge", "Reasoning", "Math", "Coding")],
    }[name]
    rows = []
    for subset, k, preferences in shapes:
        for i in range(int(rng.integers(30, 60))):
            rewards = tuple(float(value) for value in rng.integers(0, 6, k) + 2.0 * (np.arange(k) == 0))
            lengths = tuple(int(value) for value in rng.integers(1, 9, k))
            rows.append(ScoredRow(f"{subset}/{i}", subset, rewards, preferences, False, lengths, f"p{i % 40}"))
    if name == "rewardbench-2":
        for i in range(20):
            rewards = [float(value) for value in rng.integers(0, 6, 4)]
            rows.append(ScoredRow(f"ref:{i}", "Ties", (rewards[0] + 2, 1.0), ((0, 1),), False, (3, 2)))
            rows.append(
                ScoredRow(f"tied:{i}", "Ties", (*rewards[:3], 0.5), ((0, 3), (1, 3), (2, 3)), False, (3, 2, 1, 1))
            )
    return rows


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_the_flat_form_of_every_benchmark_gives_its_scores_back(tmp_path, name):
    prior = [row._replace(source="shp") for row in random_rows(name)[:40]] if name == "rewardbench-1" else []
    result = benchmark_result(name, random_rows(name), prior, ckpt="org/m")
    flat = json.loads(json.dumps(to_flat(result)))
    (again,) = results_from_published(flat_file(tmp_path, flat), name)
    assert again["n"] == result["n"]
    for subset, figures in result["subsets"].items():
        assert again["subsets"][subset]["n"] == figures["n"]
        assert again["subsets"][subset]["accuracy"] == figures["accuracy"]
    for section, figures in result["sections"].items():
        assert again["sections"][section]["score"] == pytest.approx(figures["score"])
    assert again["scores"]["current"]["mean_of_sections"] == pytest.approx(
        result["scores"]["current"]["mean_of_sections"]
    )
    assert to_flat({**again, "ckpt": "org/m"}) == flat


def sections_of(name):
    """Which subsets a section holds, and how they weigh, told anew; None for RM-Bench's pooled rows."""
    if name == "rewardbench-1":
        return {s: {n: 984 if n == "math-prm" else COUNTS[n] for n in names} for s, names in SECTIONS.items()}
    if name == "rm-bench":
        return {"Chat": {"chat": 1}, "Math": {"math": 1}, "Code": {"code": 1}, "Safety": None}
    return {section: {section: 1} for section in ("Knowledge", "Reasoning", "Math", "Coding")}


@pytest.mark.parametrize("name", ["rewardbench-1", "rm-bench", "judgebench"])
def test_sections_are_bootstrapped_over_prompts(name):
    """Prompts drawn with replacement one by one, and every formula computed again from their rows."""
    rows = random_rows(name)
    result = benchmark_result(name, rows, ckpt="c")
    weights = sections_of(name)
    prompts = sorted({row.cluster for row in rows})
    table = {}  # prompt → subset → right, of
    for row in rows:
        cell = table.setdefault(row.cluster, {}).setdefault(row.source, [0, 0])
        cell[0] += sum(row.rewards[a] > row.rewards[b] for a, b in row.preferences)
        cell[1] += len(row.preferences)
    rng = np.random.default_rng(1)
    drawn = {section: [] for section in weights}
    for _ in range(1500):
        totals = {}
        for index in rng.integers(0, len(prompts), len(prompts)):
            for subset, (right, of) in table[prompts[index]].items():
                before = totals.get(subset, (0, 0))
                totals[subset] = (before[0] + right, before[1] + of)
        accuracy = {subset: right / of for subset, (right, of) in totals.items()}
        for section, shares in weights.items():
            if shares is None:  # safety: rows pooled as in the data
                shares = {s: sum(r.source == s for r in rows) for s in ("safety-refuse", "safety-response")}
            drawn[section].append(np.average([accuracy[s] for s in shares], weights=list(shares.values())))
    for section, values in drawn.items():
        low, high = np.percentile(values, [2.5, 97.5])
        figures = result["sections"][section]
        assert figures["low"] == pytest.approx(low, abs=0.012)
        assert figures["high"] == pytest.approx(high, abs=0.012)


def test_every_interval_of_every_era_holds_its_score():
    prior = [row for i, name in enumerate(PRIOR) for row in pair_rows(name, 30 + i, 50)]
    result = benchmark_result("rewardbench-1", random_rows("rewardbench-1"), prior, ckpt="c")
    for era, score in result["scores"].items():
        assert score["low"] < score["mean_of_sections"] < score["high"], era
        if era == "micro_accuracy":
            assert score["with_prior_low"] is None
        else:
            assert score["with_prior_low"] < score["with_prior_sets"] < score["with_prior_high"], era
            assert score["with_prior_high"] - score["with_prior_low"] < score["high"] - score["low"] + 0.02


def test_core_and_prior_sets_are_drawn_apart():
    prior = [row._replace(source=name) for name in PRIOR_SETS for row in pair_rows(name, 60, 100)]
    core = [row for name in SUBSETS for row in pair_rows(name, 60, 100)]
    result = benchmark_result("rewardbench-1", core, prior, ckpt="c")
    score, of_prior = result["scores"]["current"], result["prior_sets"]
    halves = (score["high"] - score["low"]) / 2, (of_prior["high"] - of_prior["low"]) / 2
    apart = np.sqrt((8 * halves[0] / 9) ** 2 + (halves[1] / 9) ** 2)
    together = (8 * halves[0] + halves[1]) / 9
    found = (score["with_prior_high"] - score["with_prior_low"]) / 2
    assert abs(found - apart) < 0.2 * (together - apart)


def test_the_score_with_prior_sets_has_half_credit_and_a_length_baseline():
    prior = [
        row for i, name in enumerate(PRIOR) for row in pair_rows(name, 20 + i, 50, tied=10, lengths=(1 + i % 2, 1))
    ]
    core = [row for name in SUBSETS for row in pair_rows(name, 20, 50, tied=6)]
    for era, score in benchmark_result("rewardbench-1", core, prior, ckpt="c")["scores"].items():
        if era == "micro_accuracy":
            assert score["with_prior_half"] is None
            continue
        halves = [0.4 + 0.02 * i + 0.1 for i in range(4)]
        weights = {"2024-03": (4 / 5, 1 / 5), "subset_mean": (23 / 27, 4 / 27)}.get(era, (8 / 9, 1 / 9))
        assert score["with_prior_half"] == pytest.approx(weights[0] * 0.46 + weights[1] * np.mean(halves)), era
        assert score["with_prior_length_baseline"] == pytest.approx(weights[0] + weights[1] * 0.75), era


def test_near_one_the_interval_is_not_the_resamples():
    rows = [row for name in SECTIONS["Chat"] for row in pair_rows(name, 39, 40)]
    chat = benchmark_result("rewardbench-1", rows, ckpt="c")["sections"]["Chat"]
    assert 0.93 < chat["low"] < chat["score"] < chat["high"] < 1  # 5 of 200 are wrong: fewer than ten


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_length_baselines_and_half_credit_stand_beside_every_figure(name):
    rows = random_rows(name)
    result = benchmark_result(name, rows, ckpt="c")
    as_lengths = [row._replace(rewards=tuple(map(float, row.lengths))) for row in rows]
    by_length = benchmark_result(name, as_lengths, ckpt="c")
    for kind in ("subsets", "sections"):
        for part, figures in result[kind].items():
            other = by_length[kind][part]
            half = other.get("accuracy_half", other.get("score_half"))
            expected = other.get("accuracy", other.get("score")) if half is None else half
            assert figures["length_baseline"] == pytest.approx(expected), part
            assert figures["ties"] is not None
    current = result["scores"]["current"]
    assert current["length_baseline"] is not None
    if name in ("rm-bench", "judgebench"):
        credits = {
            row.id: [(np.sign(row.rewards[a] - row.rewards[b]) + 1) / 2 for a, b in row.preferences] for row in rows
        }
        by_section = {}
        for row in rows:
            section = {"safety-refuse": "Safety", "safety-response": "Safety"}.get(row.source, row.source.capitalize())
            by_section.setdefault(section, []).extend(credits[row.id])
        for section, values in by_section.items():
            assert result["sections"][section]["score_half"] == pytest.approx(np.mean(values))


def test_rows_that_are_not_all_there_are_told():
    rows = random_rows("judgebench")
    result = benchmark_result("judgebench", rows, ckpt="c")
    assert result["incomplete_subsets"] == {"all rows": {"n": len(rows), "expected": 350}}
    claude = [rows[0]._replace(id=str(i)) for i in range(270)]
    assert benchmark_result("judgebench", claude, ckpt="c")["incomplete_subsets"] == {}


def test_ties_among_ties_rows_are_counted():
    rows = [TIES[0], TIES[1]._replace(rewards=(2.0, 0.0, 0.0)), TIES[2], TIES[3]]
    assert benchmark_result("rewardbench-2", rows, ckpt="c")["subsets"]["Ties"]["ties"] == 1


def test_ties_below_zero_can_be_published_and_have_an_interval(tmp_path):
    worst = [TIES[0]._replace(rewards=(0.0, 9.0)), TIES[3]._replace(id="tied:0", rewards=(2.0, 1.0, 9.0))]
    result = benchmark_result("rewardbench-2", worst, ckpt="c")
    ties = result["sections"]["Ties"]
    assert -0.01 <= ties["score"] < 0
    assert ties["low"] <= ties["score"] < ties["high"] <= 1
    (again,) = results_from_published(flat_file(tmp_path, to_flat(result)), "rewardbench-2")
    assert again["sections"]["Ties"]["low"] <= ties["score"] < again["sections"]["Ties"]["high"]
