"""`rmtrain select`: best answers, pairs and filtered answers are those that the rewards say, and TRL takes them."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import read_lines, write_lines

from rmtrain.cli.app import run as rmtrain
from rmtrain.data import chunk_files

pytestmark = pytest.mark.usefixtures("inside")
RNG = np.random.default_rng(0)
ROWS: list[dict[str, Any]] = [
    {
        "id": i,
        "prompt": f"w{i % 60} w{i % 7}",
        "completions": [" ".join(f"w{RNG.integers(60)}" for _ in range(RNG.integers(1, 9))) for _ in range(1 + i % 4)],
    }
    for i in range(23)
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_files, "ROWS", 5)


@pytest.fixture
def ckpt(models: Path) -> list[str]:
    return ["--ckpt", str(models / "rm")]


@pytest.fixture
def scored(ckpt: list[str]) -> list[dict[str, Any]]:
    write_lines("in.jsonl", ROWS)
    assert rmtrain(["score", "in.jsonl", *ckpt, "--output", "scored.jsonl"]) == 0
    return read_lines("scored.jsonl")


def select(capsys: Any, *arguments: str, code: int = 0, output: str = "out.jsonl") -> Any:
    capsys.readouterr()
    assert rmtrain(["select", *arguments, "--output", output, "--overwrite", "--json"]) == code
    told = capsys.readouterr()
    return (json.loads(told.out), read_lines(output)) if code == 0 else told.err


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_best_of_n_with_a_model_and_with_the_rewards_in_the_rows(scored: Any, ckpt: list[str], capsys: Any) -> None:
    report, best = select(capsys, "in.jsonl", *ckpt)
    expected = []
    for row in scored:
        k = int(np.argmax(row["rewards"]))
        expected.append(
            {
                "id": row["id"],
                "prompt": turn("user", row["prompt"]),
                "completion": turn("assistant", row["completions"][k]),
                "reward": row["rewards"][k],
            }
        )
    assert best == expected
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl", "scored.jsonl"]
    again, _ = select(capsys, "scored.jsonl", output="again.jsonl")
    assert Path("again.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    assert {**again, "output": ""} == {**report, "output": ""}
    assert (report["prompts"], report["kept"], report["written"], report["dropped"]) == (23, 23, 23, {})
    assert report["answers"] == sum(len(row["completions"]) for row in ROWS)
    for n in ("1", "2", "4"):  # by all subsets
        means = [
            np.mean([max(subset) for subset in itertools.combinations(row["rewards"], int(n))])
            for row in scored
            if len(row["rewards"]) >= int(n)
        ]
        assert report["best_of_n"][n]["mean"] == pytest.approx(np.mean(means))
        assert report["best_of_n"][n]["n"] == len(means)
    lengths = [np.mean([len(text) for text in row["completions"]]) for row in scored]
    chosen = [len(row["completion"][0]["content"]) for row in best]
    assert report["length"]["shift"]["mean"] == pytest.approx(np.mean(chosen) - np.mean(lengths))
    assert rmtrain(["select", "scored.jsonl", "--output", "table.jsonl"]) == 0
    told = capsys.readouterr().out
    assert "Reward against N" in told
    assert "23 prompts kept, 0 dropped; 23 rows written." in " ".join(told.split())


def test_pairs_are_rows_that_training_reads(scored: Any, capsys: Any) -> None:
    from rmtrain.data.reader import read_source

    options = ["--mode", "pairs", "--against", "random", "--min-margin", "0.01", "--seed", "3"]
    report, pairs = select(capsys, "scored.jsonl", *options)
    assert report["kept"] == len(pairs) > 5
    assert report["kept"] + sum(report["dropped"].values()) == report["prompts"] == 23
    assert report["dropped"]["fewer than two answers"] == sum(len(row["completions"]) == 1 for row in ROWS)
    rewards = {
        (row["id"], text): reward
        for row in scored
        for text, reward in zip(row["completions"], row["rewards"], strict=True)
    }
    for pair in pairs:
        better, worse = (rewards[pair["id"], pair[side][0]["content"]] for side in ("chosen", "rejected"))
        assert pair["margin"] == better - worse >= 0.01
        assert better == max(reward for (name, _), reward in rewards.items() if name == pair["id"])
    groups = read_source("out.jsonl", None, evaluation=True).groups
    assert [group.preferences[0].gap for group in groups] == [pair["margin"] for pair in pairs]
    first = Path("out.jsonl").read_bytes()
    select(capsys, "scored.jsonl", *options)
    assert Path("out.jsonl").read_bytes() == first
    select(capsys, "scored.jsonl", *options[:-1], "4")
    assert Path("out.jsonl").read_bytes() != first


def test_a_filter_keeps_the_share_that_it_says(scored: Any, capsys: Any) -> None:
    report, rows = select(capsys, "scored.jsonl", "--mode", "filter", "--quantile", "0.4", "--format", "text")
    rewards = sorted(reward for row in scored for reward in row["rewards"])
    left = rewards[int(0.4 * len(rewards)) :]
    assert sorted(row["reward"] for row in rows) == left
    assert report["threshold"] == left[0]
    assert rows[0]["prompt"] == ROWS[rows[0]["id"]]["prompt"]
    assert select(capsys, "scored.jsonl", "--mode", "filter", "--threshold", str(left[0]))[0]["written"] == len(left)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--threshold", "1000"), "below the threshold: 23"),
        (("--mode", "filter", "--threshold", "1000"), "below the threshold: 23"),
        (("--mode", "pairs", "--min-margin", "1000"), "fewer than two answers: 6, no answer is lower by the least"),
        (("--ckpt", "rm", "--threshold", "1000"), "below the threshold: 23"),
    ],
)
def test_a_choice_of_nothing_is_an_error_and_the_file_stays(
    scored: Any, ckpt: list[str], capsys: Any, options: tuple[str, ...], cause: str
) -> None:
    Path("out.jsonl").write_text("as it was")
    told = select(capsys, "scored.jsonl", *(ckpt[1] if word == "rm" else word for word in options), code=2)
    highest = max(reward for row in scored for reward in row["rewards"])
    assert f"error: no answer is chosen (prompts dropped, {cause}" in told
    assert f"the highest reward is {highest:.6g}" in told
    assert Path("out.jsonl").read_text() == "as it was"
    if "rm" in options:  # nothing is scored again for another threshold
        assert "finished parts are kept in .out.jsonl.parts" in told
        select(capsys, "scored.jsonl", *ckpt)
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl", "scored.jsonl"]


def test_it_goes_on_where_it_was_interrupted(
    scored: Any, ckpt: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rmtrain.scoring.batches as scoring

    _, whole = select(capsys, "in.jsonl", *ckpt)
    run, score = [0], scoring._score_batch

    def once(model: Any, groups: Any, *rest: Any) -> Any:
        run.append(len(groups))
        if len(run) == 4:
            raise KeyboardInterrupt
        return score(model, groups, *rest)

    monkeypatch.setattr(scoring, "_score_batch", once)
    assert "finished parts are kept" in select(capsys, "in.jsonl", *ckpt, code=130)
    assert select(capsys, "in.jsonl", *ckpt)[1] == whole
    assert sum(run) < 2 * len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--mode", "pairs", "--top-k", "2"), "--top-k is for --mode best, not for pairs"),
        (("--mode", "filter"), "takes either --quantile or --threshold"),
        (("--mode", "filter", "--quantile", "1.5"), "--quantile 1.5: not between 0 and 1"),
        (("--temperature", "0"), "--temperature 0.0: must be above 0"),
        (("--threshold", "nan"), "--threshold nan: not a number"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys: Any, arguments: tuple[str, ...], told: str) -> None:
    write_lines("in.jsonl", ROWS)
    assert told in select(capsys, "in.jsonl", *arguments, code=2)


def test_the_input_is_never_replaced(scored: Any, ckpt: list[str], capsys: Any) -> None:
    assert "scored.jsonl is the input" in select(capsys, "scored.jsonl", code=2, output="./scored.jsonl")
    Path("shards").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write_lines(f"shards/{name}", ROWS[:3])
    for source, output in (("in.jsonl", "in.jsonl"), ("shards", "shards"), ("shards", "shards/b.jsonl")):
        assert rmtrain(["score", source, *ckpt, "--output", output, "--overwrite"]) == 2
        assert f"{output} is the input" in capsys.readouterr().err
    names = ("in.jsonl", "scored.jsonl", "shards/a.jsonl")
    assert list(map(read_lines, names)) == [ROWS, scored, ROWS[:3]]


def test_rows_that_score_could_not_read_are_dropped_and_counted(scored: Any, capsys: Any) -> None:
    refused = [
        {**row, "rewards": None, "refused": "why"} if row["id"] in (2, 5) else {**row, "refused": None}
        for row in scored
    ]
    write_lines("some.jsonl", refused)
    for mode in (("--mode", "best"), ("--mode", "filter", "--quantile", "0.5")):
        report, rows = select(capsys, "some.jsonl", *mode)
        assert (report["prompts"], report["dropped"]["refused by the chat template"]) == (23, 2)
        assert report["kept"] + sum(report["dropped"].values()) == 23
        assert not {2, 5} & {row["id"] for row in rows}
    write_lines("bad.jsonl", [{**scored[0], "rewards": None}])
    assert "its rewards are not" in select(capsys, "bad.jsonl", code=2)


def test_rewards_that_do_not_fit_are_named(scored: Any, capsys: Any) -> None:
    told = select(capsys, "scored.jsonl", "--prompt", "x", "--max-length", "64", code=2)
    assert "the rewards of scored.jsonl do not depend on --prompt, --max-length" in told
    write_lines("bad.jsonl", [*scored[:7], {**scored[7], "rewards": [0.5]}])
    assert "bad.jsonl:8: its rewards are not 4 numbers, one per completion" in select(capsys, "bad.jsonl", code=2)
    assert not Path("out.jsonl").exists()


def test_trl_takes_what_is_written(scored: Any, capsys: Any) -> None:
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    select(capsys, "scored.jsonl", "--mode", "pairs")
    rows = load_dataset("json", data_files="out.jsonl", split="train", cache_dir="cache")
    assert is_conversational(rows[0])
    assert {"prompt", "chosen", "rejected", "margin"} <= set(rows.column_names)


def test_the_answers_of_a_policy_are_chosen_by_the_rewards_that_score_gives_it(capsys: Any, models: Path) -> None:
    policy = ["--ckpt", str(models / "policy"), "--reference-free", "avg"]
    write_lines("in.jsonl", ROWS[:8])
    assert rmtrain(["score", "in.jsonl", *policy, "--output", "scored.jsonl"]) == 0
    _, chosen = select(capsys, "in.jsonl", *policy)
    assert [row["reward"] for row in chosen] == [max(row["rewards"]) for row in read_lines("scored.jsonl")]
