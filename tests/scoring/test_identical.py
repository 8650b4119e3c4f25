"""Completions of a group with the same tokens have one reward, to the last bit, and tie wherever they meet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bench_cases import answer
from conftest import make_groups, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmtrain.cli.data import data
from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.score import score
from rmtrain.cli.train import train
from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.data.types import Message, PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.model.batch import Packing
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone
from rmtrain.scoring.batches import score_groups

PACKINGS: tuple[Packing, ...] = ("shared_prompt", "padding_free", "none")


@pytest.fixture(scope="module")
def packed(base: Path) -> dict[Packing, RewardModel]:
    return {
        packing: load_backbone(str(base), None, BackboneOptions("float32", packing=packing), pad_id=0, seed=0)
        for packing in PACKINGS
    }


def with_repetitions(groups: Sequence[PreferenceGroup], order: Sequence[Sequence[int]]) -> list[PreferenceGroup]:
    """Groups of made completions again and again, some with white space that the tokenizer does not see."""
    made = []
    for group, places in zip(groups, order, strict=True):
        texts = [group.completions[place][0].content + " " * (k % 3) for k, place in enumerate(places)]
        completions = tuple((Message("assistant", text),) for text in texts)
        made.append(group._replace(completions=completions, preferences=()))
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_equal_tokens_have_one_reward_however_they_are_scored(
    packed: dict[Packing, RewardModel], drawn: st.DataObject
) -> None:
    """In any packing and order, in batches from one completion to all; of texts that differ, too, once they are cut."""
    groups = make_groups(4, seed=3, k=3)
    orders = [drawn.draw(st.lists(st.integers(0, 2), min_size=1, max_size=9)) for _ in groups]
    made = with_repetitions(groups, orders)
    length = drawn.draw(st.sampled_from([12, 64]))
    renderer = Renderer.for_tokenizer(make_tokenizer())
    tokenized = [
        group
        for group in tokenize_groups(made, Tokenization(renderer, length, "truncate_completion"))
        if group is not None
    ]
    model = packed[drawn.draw(st.sampled_from(PACKINGS))]
    rewards = score_groups(model, tokenized, 0, drawn.draw(st.sampled_from([1, 40, 100_000])))
    for group, values, order in zip(tokenized, rewards, orders, strict=True):
        sequences = [(*group.prefix.tolist(), *suffix.tolist()) for suffix in group.spread(group.suffixes)]
        assert len(sequences) == len(values) == len(order)
        assert len({*zip(sequences, values, strict=True)}) == len(group.suffixes) == len({*sequences})


def test_a_completion_is_scored_once_however_often_a_group_holds_it(
    packed: dict[Packing, RewardModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_repetitions(make_groups(3, seed=4, k=2), [[0, 1] * 20] * 3)
    tokenized = [
        g for g in tokenize_groups(made, Tokenization(Renderer.for_tokenizer(make_tokenizer()), 64, "error")) if g
    ]
    assert [len(group.suffixes) for group in tokenized] == [2] * 3
    alone = [group._replace(suffix_of=()) for group in tokenized]
    expected = score_groups(packed["none"], alone, 0, 1)
    for packing, budget in (("shared_prompt", 100_000), ("padding_free", 1)):
        rewards = score_groups(packed[packing], tokenized, 0, budget)  # type: ignore[index]
        np.testing.assert_allclose(rewards, np.tile(expected, 20), atol=1e-5, rtol=0)


# Through the commands

LONG = " ".join(f"w{i}" for i in range(20))


@pytest.mark.parametrize(
    "reading", [{}, {"reference": "sft"}, {"reference_free": "avg"}], ids=["reward model", "dpo", "avg"]
)
@pytest.mark.usefixtures("inside")
def test_pairs_made_equal_by_the_length_are_ties(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reading: dict[str, str]
) -> None:
    rows = [{"prompt": f"w{i} w1", "chosen": f"{LONG} w{i}", "rejected": f"{LONG} w2 w{i}"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {
        name: str(models / "sft") if value == "sft" else value for name, value in reading.items()
    }
    ckpt = str(models / ("policy" if reading else "rm"))
    for length, tokens in ((16, 8192), (16, 30), (64, 8192)):
        evaluate(ckpt=ckpt, data="pairs.jsonl", max_length=length, tokens_per_batch=tokens, json=True, **options)
        result = json.loads(capsys.readouterr().out)
        if length == 16:
            assert (result["accuracy"], result["accuracy_strict"], result["ties"], result["n"]) == (0.5, 0.0, 40, 40)
            assert result["identical"] == 40
        else:
            assert result["ties"] == result["identical"] == 0


@pytest.mark.usefixtures("inside")
def test_training_tells_and_drops_what_the_length_makes_equal(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 rows, 28 of them equal once they are cut; then all 40."""

    def rows(count: int, equal: int) -> list[dict[str, str]]:
        ends = [(f"{LONG} w1", f"{LONG} w2")] * equal + [("w3", "w4 w5")] * (count - equal)
        return [{"prompt": f"w{i} w1", "chosen": better, "rejected": worse} for i, (better, worse) in enumerate(ends)]

    def answer(command: Any, *arguments: Any, **options: Any) -> Any:
        command(*arguments, json=True, **options)
        return json.loads(capsys.readouterr().out)

    recipe = {
        "model": {"name": str(base), "dtype": "float32"},
        "lora": {"rank": 2},
        "data": {"source": {"train": "train.jsonl", "validation": "validation.jsonl"}, "leaks": "keep"},
        "evaluation": {"splits": ["validation"]},
    }
    recipe["data"] |= {"max_length": 16, "over_length": "truncate_completion"}
    recipe["optim"] = {"learning_rate": 1e-3, "max_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, made in (("train", rows(40, 28)), ("validation", rows(10, 3))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    books = answer(data, Path("recipe.yaml"))
    lost = {"total": 40, "kept": 12, "dropped": {"identical after truncation": 28}}
    assert books["splits"]["train"]["rows"] == books["splits"]["train"]["preferences"] == lost
    assert books["splits"]["train"]["first_dropped"] == {"identical after truncation": "train.jsonl:1"}
    assert books["splits"]["validation"]["rows"] == {"total": 10, "kept": 10, "dropped": {}}
    assert books["splits"]["validation"]["identical"] == 3
    note = "validation: preferences between completions that are identical after truncation, kept as ties: 3"
    assert note in books["notes"]
    assert answer(train, Path("recipe.yaml"), [], dry_run=True)["data"] == books

    found = answer(train, Path("recipe.yaml"), [])
    (result,) = found["splits"].values()
    assert (result["n"], result["ties"], result["identical"]) == (10, 3, 3)
    assert sum("identical" in json.loads(line) for line in Path(result["rows"]).read_text().splitlines()) == 3
    manifest = json.loads((Path(found["run"]) / "manifest.json").read_text())
    assert (manifest["data"]["train"]["rows"], manifest["data"]["train"]["groups"]) == (lost, 12)
    assert "| identical after truncation 28 | 40 | 12 | 12 |" in (Path(found["run"]) / "final/README.md").read_text()
    page = (Path(found["run"]) / "report.html").read_text()
    assert "dropped: identical after truncation" in page
    assert "3 preferences between completions with the same tokens, kept as ties" in page

    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40, 40)))
    assert answer(data, Path("recipe.yaml"))["splits"]["train"]["preferences"]["kept"] == 0
    for dry_run in (True, False):
        with pytest.raises(DataError, match="no preference is left to train on: 40 are identical after") as error:
            train(Path("recipe.yaml"), [], dry_run=dry_run)
        assert error.value.hint == "raise data.max_length (16 now)"


@pytest.mark.usefixtures("inside")
def test_a_benchmark_counts_equal_tokens_as_its_ties(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"w{i} w1 w1", "chosen": ["w2 w3"], "rejected": rejected, "subset": "Precise IF", "id": str(i)}
        for i, rejected in enumerate([["w2  w3", " w2 w3", "w2 w3 "]] * 8)
    ]
    (tmp_path / "rb2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for tokens in (8192, 7):
        found = answer(
            capsys, ckpt=str(models / "rm"), benchmark="rewardbench-2", data="rb2.jsonl", tokens_per_batch=tokens
        )
        assert {"n": 8, "accuracy": 0.25, "ties": 8}.items() <= found["subsets"]["Precise IF"].items()
        assert found["identical"] == 24


def test_score_gives_equal_answers_the_same_number(models: Path, tmp_path: Path) -> None:
    answers = ["w1 w2", "w3", "w1  w2", "w4 w5 w6", "w1 w2", "w3 "]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "w7", "completions": answers}) + "\n")
    score(str(rows), tmp_path / "out.jsonl", ckpt=str(models / "rm"), tokens_per_batch=8)
    rewards = json.loads((tmp_path / "out.jsonl").read_text())["rewards"]
    assert len(rewards) == 6
    assert rewards[0] == rewards[2] == rewards[4] != rewards[1] == rewards[5]
    assert len(set(rewards)) == 3
