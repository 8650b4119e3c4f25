import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.errors import DataError, RunFailedError
from rmtrain.evaluation import results
from rmtrain.evaluation.results import ScoredRow, prompt_key, read_rows, scored_row, write_rows
from rmtrain.scoring.scorer import GroupScore


def summarise(rows):
    return asdict(results.summarise(rows))


def pair(name, chosen, rejected, source="s", lengths=(5, 3), cluster="", truncated=False):
    return ScoredRow(name, source, (chosen, rejected), ((0, 1),), truncated, lengths, cluster)


PROMISED = [
    "n", "groups", "accuracy", "accuracy_low", "accuracy_high", "accuracy_strict", "ties", "loss",
    "length_baseline", "reward_length_correlation", "ece", "by_source",
]  # fmt: skip


def test_figures_of_a_split():
    rows = [
        pair("1", 2.0, 1.0, "x", lengths=(5, 3), truncated=True),
        pair("2", 1.0, 1.0, "x", lengths=(2, 2)),
        pair("3", 0.0, 4.0, "y", lengths=(2, 9)),
        ScoredRow("4", "y", (3.0, 1.0, 2.0), ((0, 1), (0, 2), (1, 2)), False, (1, 2, 3)),
    ]
    result = summarise(rows)
    assert set(PROMISED) <= set(result)
    assert (result["n"], result["groups"], result["ties"], result["truncated"]) == (6, 4, 1, 1)
    assert result["accuracy"] == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 0) / 6)
    assert result["accuracy_strict"] == pytest.approx(3 / 6)
    gaps = np.array([1.0, 0.0, -4.0, 2.0, 1.0, -1.0])
    assert result["loss"] == pytest.approx(np.log1p(np.exp(-gaps)).mean())
    assert result["reward_gap"] == pytest.approx(gaps.mean())
    assert result["length_baseline"] == pytest.approx((1 + 0.5 + 0 + 0 + 0 + 0) / 6)
    expected = scipy.stats.spearmanr([2, 1, 1, 1, 0, 4, 3, 1, 2], [5, 3, 2, 2, 2, 9, 1, 2, 3]).statistic
    assert result["reward_length_correlation"] == pytest.approx(expected)
    assert {name: (part["n"], part["accuracy"]) for name, part in result["by_source"].items()} == {
        "x": (2, 0.75),
        "y": (4, 0.5),
    }
    assert result["accuracy_low"] < result["accuracy"] < result["accuracy_high"]


def test_no_preferences_give_nulls_and_never_zeros():
    result = summarise([ScoredRow("1", "", (1.0, 2.0), (), False)])
    assert (result["n"], result["groups"], result["ties"]) == (0, 1, 0)
    for key in [*PROMISED[2:6], "loss", "reward_length_correlation", "ece"]:
        assert result[key] is None, key
    assert result["by_source"] == {}
    json.dumps(result, allow_nan=False)
    assert summarise([])["accuracy"] is None


def test_constant_rewards_have_no_correlation_and_half_the_accuracy():
    result = summarise([pair(str(i), 0.0, 0.0) for i in range(5)])
    assert (result["accuracy"], result["accuracy_strict"], result["ties"]) == (0.5, 0.0, 5)
    assert result["reward_length_correlation"] is None
    assert result["accuracy_low"] < 0.5 < result["accuracy_high"]


def test_unknown_lengths_give_no_baseline():
    result = summarise([pair("1", 1.0, 0.0, lengths=()), pair("2", 1.0, 0.0)])
    assert result["length_baseline"] is None


def test_rows_of_one_prompt_are_one_cluster():
    apart = [pair(str(i), *((1.0, 0.0) if i % 20 < 14 else (0.0, 1.0))) for i in range(100)]
    together = [row._replace(cluster=str(i % 20)) for i, row in enumerate(apart)]
    wide, narrow = (summarise(rows) for rows in (together, apart))
    assert wide["accuracy"] == narrow["accuracy"]
    assert wide["accuracy_high"] - wide["accuracy_low"] > 1.5 * (narrow["accuracy_high"] - narrow["accuracy_low"])


def test_order_of_rows_changes_no_figure():
    rng = np.random.default_rng(0)
    rows = [pair(str(i), *rng.normal(size=2).round(1), source="ab"[i % 2]) for i in range(80)]
    forth, back = (summarise(order) for order in (rows, rows[::-1]))
    sources, turned = forth.pop("by_source"), back.pop("by_source")
    assert forth == pytest.approx(back)
    assert all(sources[name] == pytest.approx(turned[name]) for name in "ab")


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="group 1: reward not finite"):
        summarise([pair("1", math.nan, 0.0)])


def test_a_group_becomes_a_row():
    prompt = (Message("user", "hi"),)
    group = PreferenceGroup("g", prompt, ((Message("assistant", "a"),),) * 2, (Preference(1, 0, 2.0),), "src")
    row = scored_row(group, GroupScore(tuple(np.array([0.1, 0.2], dtype=np.float32)), (3, 4), True))
    assert row == ScoredRow("g", "src", (float(np.float32(0.1)), float(np.float32(0.2))), ((1, 0),), True, (3, 4),
                            prompt_key(prompt))  # fmt: skip
    assert scored_row(group._replace(prompt=()), GroupScore((0, 1), (), False)).cluster == ""
    assert prompt_key(prompt) != prompt_key((Message("system", "hi"),))


float32 = st.floats(-(2.0**100), 2.0**100, width=32)
text = st.text(max_size=5)


@st.composite
def scored_rows(draw):
    rows = []
    for index in range(draw(st.integers(0, 5))):
        k = draw(st.integers(1, 4))
        indices = st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)).filter(lambda pair: pair[0] != pair[1])
        rows.append(
            ScoredRow(
                id=f"{index}{draw(text)}",
                source=draw(text),
                rewards=tuple(draw(st.lists(float32, min_size=k, max_size=k))),
                preferences=tuple(draw(st.lists(indices, max_size=3))) if k > 1 else (),
                truncated=draw(st.booleans()),
                lengths=tuple(draw(st.lists(st.integers(0, 9999), min_size=k, max_size=k))) if index % 2 else (),
                cluster=draw(text),
            )
        )
    return rows


@given(rows=scored_rows())
def test_rows_survive_the_file_exactly(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert [found.name for found in path.parent.iterdir()] == ["a.rows.jsonl"]


def test_a_file_with_the_promised_keys_alone_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id":"1","source":"","rewards":[1,0.5],"preferences":[[0,1]],"truncated":false}\n')
    assert read_rows(path) == [ScoredRow("1", "", (1.0, 0.5), ((0, 1),), False)]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_rows(path, [pair("1", 1.0, 0.0)])
    before = path.read_text()
    with pytest.raises(RunFailedError, match="group 2: a reward is not finite"):
        write_rows(path, [pair("1", 9.0, 0.0), pair("2", math.nan, 0.0)])
    assert path.read_text() == before


GOOD = {"id": "1", "source": "s", "rewards": [1.0, 0.0], "preferences": [[0, 1]], "truncated": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "rewards: Input should be a valid array"),
        ({"rewards": []}, "neither rewards nor margins"),
        ({"rewards": [True, 0]}, "rewards.0: Input should be a valid number"),
        ({"rewards": ["1", 0]}, "rewards.0: Input should be a valid number"),
        ({"rewards": [10**400, 0]}, "rewards.0: Input should be"),
        ({"rewards": [math.nan, 0]}, "rewards.0: Input should be a finite number"),
        ({"rewards": [math.inf, 0]}, "rewards.0: Input should be a finite number"),
        ({"preferences": [[0, 2]]}, "preferences must be pairs of different completions from 0 to 1"),
        ({"preferences": [[0, -1]]}, "preferences.0.1: Input should be greater than or equal to 0"),
        ({"preferences": [[1, 1]]}, "preferences must be pairs of different completions"),
        ({"preferences": [[0, True]]}, "preferences.0.1: Input should be a valid integer"),
        ({"preferences": [0, 1]}, "preferences.0: Input should be a valid array"),
        ({"truncated": 0}, "truncated: Input should be a valid boolean"),
        ({"id": 1}, "id: Input should be a valid string"),
        ({"source": None}, "source: Input should be a valid string"),
        ({"lengths": [1]}, "lengths must be one token count per completion"),
        ({"lengths": [1, -2]}, "lengths.1: Input should be greater than or equal to 0"),
        ({"margins": [1.0, 2.0]}, "margins must be one number per preference"),
        ({"cluster": 3}, "cluster: Input should be a valid string"),
        ({"id": "0"}, "id '0' is already on line 1"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(tmp_path, change, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**GOOD, "id": "0"}) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert caught.value.message.startswith(f"{path}:2: ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", ":1: Invalid JSON"),
        ('{"id": "1"', ":1: Invalid JSON"),
        ("[" * 100_000, ":1: Invalid JSON"),
        ("[1]", ":1: Input should be an object"),
        ('{"id": "1", "source": ""}', ":1: rewards: Field required"),
    ],
)
def test_a_line_that_is_no_row(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert caught.value.message.startswith(f"{path}{message}")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "none.jsonl")
