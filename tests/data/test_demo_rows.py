"""The demo rows: deterministic, distinct, disjoint between splits, in raw UltraFeedback's columns, and shipped."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_demo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_demo import MAX_ROWS, SHIPPED, demo_rows

from rmtrain.data import demo
from rmtrain.errors import DataError

ASPECTS = {"instruction_following", "honesty", "truthfulness", "helpfulness"}
FAMILIES = {"arithmetic", "units", "letters", "sorting", "facts", "safety"}
SPLITS = st.sampled_from(["train", "validation", "test"])


def fingerprint(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@given(split=SPLITS, seed=st.integers(0, 2**32), short=st.integers(0, 8), more=st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_rows_do_not_depend_on_how_many_are_asked_for(split: str, seed: int, short: int, more: int) -> None:
    assert demo_rows(split, short, seed) == demo_rows(split, short + more, seed)[:short]


def test_rows_are_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import hashlib, json; from make_demo import demo_rows;"
        "print(hashlib.sha256(json.dumps(demo_rows('train', 50, 3), sort_keys=True).encode()).hexdigest())"
    )
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(make_demo.__file__).parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.strip() == fingerprint(demo_rows("train", 50, 3))


def test_seeds_and_splits_give_other_rows() -> None:
    assert demo_rows("train", 5, 0) != demo_rows("train", 5, 1)
    assert demo_rows("train", 5) != demo_rows("test", 5)


def test_no_prompt_recurs_within_a_split_or_between_splits_of_any_seeds() -> None:
    prompts = [
        {row["instruction"] for row in demo_rows(s, 1500, seed)}
        for seed, s in enumerate(("train", "validation", "test"))
    ]
    assert [len(found) for found in prompts] == [1500, 1500, 1500]
    assert len(set.union(*prompts)) == 4500


def test_the_largest_split_has_no_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    # Prompts are drawn before completions, so leaving these out changes none of them.
    monkeypatch.setattr("make_demo.make_row", lambda rng, question: {"instruction": question.prompt})
    assert len({row["instruction"] for row in demo_rows("validation", MAX_ROWS)}) == MAX_ROWS


@given(split=SPLITS, seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_rows_have_the_columns_of_raw_ultrafeedback(split: str, seed: int) -> None:
    for row in demo_rows(split, 5, seed):
        assert list(row) == ["source", "instruction", "models", "completions", "correct_answers", "incorrect_answers"]
        assert row["source"].removeprefix("demo/") in FAMILIES
        assert row["instruction"].strip() == row["instruction"] != ""
        assert row["models"] == [completion["model"] for completion in row["completions"]]
        assert len(set(row["models"])) == len({c["response"] for c in row["completions"]}) == 4
        assert len({completion["fine-grained_score"] for completion in row["completions"]}) > 1
        for completion in row["completions"]:
            assert completion["response"].strip() == completion["response"] != ""
            assert completion["custom_system_prompt"] == ""
            assert completion["principle"] == "helpfulness"
            assert set(completion["annotations"]) == ASPECTS


@given(split=SPLITS, seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_ratings_critique_and_overall_score_follow_from_the_grade(split: str, seed: int) -> None:
    for row in demo_rows(split, 5, seed):
        for completion in row["completions"]:
            annotations = completion["annotations"].values()
            ratings = [int(annotation["Rating"]) for annotation in annotations]
            grade = completion["fine-grained_score"] - 2
            assert all(2 <= rating <= 5 for rating in ratings)
            assert sum(ratings) / 4 == completion["fine-grained_score"]
            assert completion["overall_score"] == 2 * completion["fine-grained_score"]
            missed = 0 if "meets every requirement" in completion["critique"] else completion["critique"].count(";") + 1
            assert missed == 3 - grade
            for annotation in annotations:
                assert (annotation["Rating"] == "5") == ("meets every requirement" in annotation["Rationale"])


def test_every_row_has_a_flawless_answer_and_most_rows_have_ties() -> None:
    rows = demo_rows("train", 600)
    scores = [[completion["fine-grained_score"] for completion in row["completions"]] for row in rows]
    assert all(max(group) == 5 for group in scores)
    tied = sum(len(set(group)) < 4 for group in scores)
    assert 300 < tied < 600


def test_all_families_are_about_equally_common() -> None:
    rows = demo_rows("train", 1800)
    for family in FAMILIES:
        assert 240 <= sum(row["source"] == f"demo/{family}" for row in rows) <= 360


def test_prompts_and_completions_are_short() -> None:
    rows = demo_rows("train", 600)
    assert max(len(row["instruction"]) for row in rows) <= 160
    assert max(len(completion["response"]) for row in rows for completion in row["completions"]) <= 220


def test_the_shipped_rows_are_the_ones_that_the_script_makes() -> None:
    assert demo.ROWS == SHIPPED
    for split, count in SHIPPED.items():
        assert json.dumps(demo.demo_rows(split, count)) == json.dumps(demo_rows(split, count))


def test_the_shipped_rows_take_less_than_half_a_megabyte() -> None:
    assert sum(file.stat().st_size for file in Path(demo.__file__).parent.glob("*.xz")) < 500_000


def test_more_rows_than_are_shipped_are_refused_with_the_limit() -> None:
    with pytest.raises(DataError) as caught:
        demo.demo_rows("train", 4001)
    assert caught.value.message == "data.demo_groups.train = 4001: the demo source has 4000 rows in this split"
    assert caught.value.hint == "ask for at most 4000"
