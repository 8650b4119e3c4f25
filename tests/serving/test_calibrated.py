"""Calibrated rewards: the same for an answer alone, in any group and order, in Python and over HTTP."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import make_tokenizer, write_lines
from test_server import ANSWERS, OPENING, TEXTS, USER, near, served

from rmtrain import RewardFunction
from rmtrain.cli.app import run as rmtrain
from rmtrain.data.responses import count_responses
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.data.types import Message, PreferenceGroup
from rmtrain.errors import InputError
from rmtrain.model.calibration import Calibration, export_calibration, write_calibration
from rmtrain.model.published.encoder import TextPairRenderer
from rmtrain.model.weights import fingerprint_of
from rmtrain.scoring.scorer import ScoringOptions
from rmtrain.serving.online import OnlineScorer

CURVE = {"lengths": (1, 2, 3, 4, 9), "curve": (5.0, -3.0, 40.0, 11.0, 90.0)}
OTHERS = ["w3 w4 w5", "w3", "w3 w9", "w40 w41 w42 w43 w44 w45 w46"]  # some begin as an answer does


def calibrate(folder: Path, **changes: Any) -> Calibration:
    values = CURVE | {"offset": 0.5, "temperature": 2.0, "reward_mean": 0.0, "reward_std": 1.0}
    made = Calibration.model_validate(values | {"weights": fingerprint_of(folder)} | changes)
    write_calibration(folder, made)
    return made


@pytest.fixture(scope="module")
def model(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(models / "rm", tmp_path_factory.mktemp("calibrated") / "rm")
    calibrate(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, models: Path) -> dict[str, float]:
    """By answer: the plain reward without what the curve says of its words and the end token."""
    answers = [*ANSWERS, *OTHERS]
    plain = RewardFunction(models / "rm").score("w1 w2", answers)
    rewards = {}
    for answer, reward in zip(answers, plain, strict=True):
        assert reward is not None
        length = len(make_tokenizer()(answer)["input_ids"]) + 1
        rewards[answer] = (reward - np.interp(length, CURVE["lengths"], CURVE["curve"]) - 0.5) / 2.0
    return rewards


def test_the_reward_of_an_answer_depends_on_no_other_answer(model: Path, expected: dict[str, float]) -> None:
    reward = RewardFunction(model, calibrated=True)
    for answer in expected:
        near(reward.score("w1 w2", [answer]), [expected[answer]])
    for others in itertools.combinations(expected, 3):
        for order in (others, others[::-1]):
            near(reward.score("w1 w2", order), [expected[answer] for answer in order])
    near(reward.score("w1 w2", [ANSWERS[0]] * 3), [expected[ANSWERS[0]]] * 3)
    for prompts in (None, [OPENING] * 3, [f"{OPENING} "] * 3, ["w1 w2"] * 3):
        texts = [f"w1 w2 {answer}" for answer in ANSWERS] if prompts and prompts[0] == "w1 w2" else TEXTS
        near(reward.score_texts(texts, prompts), [expected[answer] for answer in ANSWERS])


def test_files_give_the_same(model: Path, expected: dict[str, float], inside: None) -> None:
    rows = [{"prompt": "w1 w2", "completions": [*expected]}, {"prompt": "w1 w2", "completions": [OTHERS[1]]}]
    write_lines("in.jsonl", rows)
    assert rmtrain(["score", "in.jsonl", "--ckpt", str(model), "--calibrated", "--output", "out.jsonl"]) == 0
    together, alone = (json.loads(line)["rewards"] for line in Path("out.jsonl").read_text().splitlines())
    near(together, [*expected.values()])
    near(alone, [expected[OTHERS[1]]])


def test_every_form_of_the_server_gives_the_same(model: Path, expected: dict[str, float]) -> None:
    scorer = OnlineScorer.open(str(model), ScoringOptions(calibrated=True))
    rewards = [expected[answer] for answer in ANSWERS]
    with served(scorer) as url, httpx.Client(base_url=url, timeout=60) as client:

        def ask(path: str, **body: Any) -> Any:
            reply = client.post(path, json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()

        near(ask("/reward", prompt="w1 w2", completions=ANSWERS)["rewards"], rewards)
        near(ask("/reward", messages=[USER], completions=ANSWERS[1:2])["rewards"], rewards[1:2])
        said = {"role": "assistant", "content": ANSWERS[2]}
        near(ask("/reward", messages=[USER, said])["rewards"], rewards[2:])
        near(ask("/classify", messages=[USER, said])["data"][0]["probs"], rewards[2:])
        near(ask("/reward", messages=TEXTS)["scores"], rewards)
        for prompt in ("w1 w2", OPENING):
            queries = [f"{prompt} {answer}" for answer in ANSWERS]
            near(ask("/reward", query=queries, prompts=[prompt] * 3)["rewards"], rewards)
            near(ask("/reward", prompt=prompt, response=f" {ANSWERS[0]}"), rewards[0])
        near([entry["probs"][0] for entry in ask("/classify", input=TEXTS)["data"]], rewards)
        near([entry["embedding"][0] for entry in ask("/classify", text=TEXTS)], rewards)
        near([entry["score"] for entry in ask("/score", queries="w1 w2", documents=ANSWERS)["data"]], rewards)
        for what in ([[1, 3, 6, 7, 4, 8, 9, 2]], ["w1 w2 w3"]):
            reply = client.post("/classify", json={"input": what})
            assert reply.status_code == 400
            assert "does not show where it begins" in reply.json()["error"]["message"]
            assert reply.json()["error"]["hint"] == "give messages, or prompt and completions"
        mixed = ask("/classify", input=["w1", TEXTS[1]])  # the other rows get theirs
        near(mixed["data"][1]["probs"], rewards[1:2])
        assert mixed["errors"][0]["index"] == 0


def test_without_a_curve_every_text_has_a_reward(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "rm", tmp_path / "rm")
    calibrate(folder, lengths=(), curve=(), format=1)  # of an earlier version, which is as good
    plain = RewardFunction(models / "rm").score_texts(["w1 w2 w3"])
    found = RewardFunction(folder, calibrated=True).score_texts(["w1 w2 w3"])
    assert found == pytest.approx([(plain[0] - 0.5) / 2.0])


def test_a_curve_over_lengths_of_earlier_versions_is_refused(models: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(models / "rm", tmp_path / "rm")
    calibrate(folder, format=1)
    for command in (["serve", "--port", "0"], ["eval", "--data", "demo"]):
        assert rmtrain([*command, "--ckpt", str(folder), "--calibrated"]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "counted the tokens of an answer after those that all answers of its group begin with" in told
        assert f"rmtrain calibrate {folder}" in told
    assert rmtrain(["serve", "--port", "0", "--ckpt", str(folder), "--calibrated", "--prompt", "plain"]) == 2
    assert "leave out --prompt" in capsys.readouterr().err
    other = shutil.copytree(models / "rm", tmp_path / "other")
    assert export_calibration(folder, other) == {"mean": 0.0, "std": 1.0}  # mean and spread are as good as ever


@pytest.mark.parametrize("other", ["prompt", "label"])
def test_a_calibration_is_not_applied_to_rewards_by_another_prompt_or_label(model: Path, other: str) -> None:
    with pytest.raises(InputError, match="--calibrated is for reward models with their own prompt and label"):
        RewardFunction(model, calibrated=True, **{other: "raw"})


def test_answers_of_encoders_are_counted_by_themselves() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    renderer = TextPairRenderer(tokenizer, False, False, 0)
    answers = tuple((Message("assistant", text),) for text in (*ANSWERS, *OTHERS))
    for completions in (answers, answers[:1], answers[2:5]):
        group = PreferenceGroup("g", (Message("user", "w1 w2"),), completions, ())
        tokens = [made for made in tokenize_groups([group], Tokenization(renderer, 99, "error")) if made is not None]
        counts = count_responses([group], tokens, Tokenization(renderer, 99, "error"))
        assert counts == [tuple(len(completion[0].content.split()) for completion in completions)]
