"""`RewardFunction`: TRL's trainers train with it, and its rewards are those of `rmtrain score`."""

import json
import pickle
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS, make_groups, write_lines

from rmtrain import RewardFunction
from rmtrain.cli.app import run as rmtrain
from rmtrain.errors import CheckpointError, InputError

pytestmark = pytest.mark.usefixtures("inside")
PROMPTS = ["w1 w2 w3", "w4", "w5 w6"]


@pytest.fixture(scope="module")
def reward(models: Path) -> RewardFunction:
    return RewardFunction(models / "rm")


def scored(rows: list[dict[str, Any]], ckpt: Path) -> list[list[float]]:
    """What `rmtrain score` writes of rows."""
    write_lines("in.jsonl", rows)
    assert rmtrain(["score", "in.jsonl", "--ckpt", str(ckpt), "--output", "out.jsonl", "--overwrite"]) == 0
    return [json.loads(line)["rewards"] for line in Path("out.jsonl").read_text().splitlines()]


class Recording(RewardFunction):
    """Keeps the rows of every call."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        rewards = super().__call__(prompts, completions, **columns)
        vars(self).setdefault("calls", []).append((prompts, completions, rewards))
        return rewards


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("messages", [True, False])
def test_a_policy_is_trained_with_the_rewards_of_score(kind: str, messages: bool, models: Path, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer_class, arguments_class = {
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
        "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    }[kind]
    reward = Recording(models / "rm", name="judge")
    arguments = arguments_class(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    prompts: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS] if messages else PROMPTS
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(models / "policy"),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts * 3, "note": [*map(str, range(9))]}),
        processing_class=AutoTokenizer.from_pretrained(models / "policy"),
    )
    trainer.train()

    calls: list[Any] = vars(reward)["calls"]
    assert len(calls) == 2
    for prompts, completions, rewards in calls:
        assert len({json.dumps(prompt) for prompt in prompts}) == 2  # two groups of four
        answered = [bool(_text(completion).strip()) for completion in completions]
        groups = [[i for i in range(at, at + 4) if answered[i]] for at in (0, 4)]
        rows = [{"prompt": prompts[of[0]], "completions": [completions[i] for i in of]} for of in groups if of]
        expected = iter(value for values in scored(rows, models / "rm") for value in values)
        assert rewards == [next(expected) if has else None for has in answered]
    seen = [None if np.isnan(value) else value for value in trainer._logs["rewards"]["judge"]]
    assert seen == [value for _, _, rewards in calls for value in rewards][-len(seen) :]
    assert len(seen) >= 8
    figures = trainer.state.log_history[0]
    assert {f"judge/{name}" for name in ("reward_mean", "reward_std", "truncated", "no_answer")} <= figures.keys()
    assert figures["judge/truncated"] == 0
    assert figures["rewards/judge/mean"] == pytest.approx(figures["judge/reward_mean"], abs=1e-5)


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def test_rows_of_a_prompt_share_it_wherever_they_stand(reward: RewardFunction, models: Path) -> None:
    answers = ["w7 w8", "w9", "w10 w11 w12", "w7 w8", "w13"]
    prompts = [PROMPTS[i] for i in (0, 1, 0, 0, 1)]
    rows = [
        {"prompt": PROMPTS[0], "completions": [answers[i] for i in (0, 2, 3)]},
        {"prompt": PROMPTS[1], "completions": [answers[i] for i in (1, 4)]},
    ]
    (a, c, d), (b, e) = scored(rows, models / "rm")
    assert reward(prompts=prompts, completions=answers) == [a, b, c, d, e]
    assert a == d != c
    assert reward.score(PROMPTS[0], ["w7 w8", "w10 w11 w12"])[0] == pytest.approx(a, abs=1e-5)


def test_a_row_without_an_answer_has_no_reward(reward: RewardFunction, models: Path) -> None:
    prompt, said = [{"role": "user", "content": "w1"}], [{"role": "assistant", "content": "w2"}]
    completions: list[Any] = ["", " \n", "w2", [], said, [{"role": "tool", "content": "w2"}], None]
    rewards = reward([prompt] * len(completions), completions)
    assert [value is not None for value in rewards] == [False, False, True, False, True, False, False]
    assert rewards[2] == rewards[4]
    assert reward([], []) == []
    assert reward([prompt], [""]) == [None]
    scoring = RewardFunction(models / "rm", score_blank=True)
    assert scoring([prompt, prompt], ["", []]) == [
        scored([{"prompt": "w1", "completions": [""]}], models / "rm")[0][0],
        None,
    ]


def test_an_answer_that_only_looks_like_messages_is_text(reward: RewardFunction) -> None:
    assert None not in reward.score("w1", ['[{"role": "user", "content": "w2"}]', "\n\nHuman: w1\n\nHuman:", "{'"])


@pytest.mark.parametrize(
    ("prompts", "completions", "words"),
    [
        (["w1"], [], "1 prompts and 0 completions"),
        (["w1", 3], ["w2", "w2"], "prompts[1]: wrong type: column prompt holds the number 3"),
        (["w1"], [[{"role": "assistant", "content": 4}]], "completions[0]: wrong type"),
        ([[{"role": "tool", "content": "w1"}]], ["w2"], "only user and assistant roles"),
    ],
)
def test_what_can_not_be_read_is_refused_by_its_place(
    reward: RewardFunction, prompts: Any, completions: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        reward(prompts, completions)


def test_figures_of_a_batch_say_what_to_watch(models: Path) -> None:
    reward = RewardFunction(models / "rm", max_length=16, name="short")
    figures: dict[str, float] = {}
    long = " ".join(WORDS[:30])
    rewards = reward(["w1", "w1", "w2", "w2"], ["w3", "w4 w5", long, ""], log_metric=figures.__setitem__)
    values = [value for value in rewards if value is not None]
    assert len(values) == 3
    assert figures["short/reward_mean"] == pytest.approx(np.mean(values))
    assert figures["short/reward_std"] == pytest.approx(np.std(values))
    assert figures["short/truncated"] == pytest.approx(1 / 3)
    assert figures["short/no_answer"] == 0.25
    assert -1 <= figures["short/length_correlation"] <= 1


def test_threads_get_the_rewards_of_one_caller(reward: RewardFunction) -> None:
    groups = [(g.prompt[0].content, [c[0].content for c in g.completions]) for g in make_groups(24)]
    alone = [reward.score(*group) for group in groups]
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda group: reward.score(*group), groups)] == alone


def test_texts_of_the_models_template_get_the_rewards_of_their_messages(reward: RewardFunction) -> None:
    whole = "<s> [INST] w1 w2 [/INST] w3 w4 </s>"
    expected = reward.score("w1 w2", ["w3 w4"])
    cases = [whole, whole.removeprefix("<s>"), f"<s>{whole}", whole.removesuffix(" </s>"), f"{whole}</s></s>"]
    for text in cases:
        assert reward.score_texts([text]) == expected, text
    two = reward.score("w1 w2", ["w3 w4", "w5"])
    rendered, plain = "<s> [INST] w1 w2 [/INST]", "w1 w2"
    assert reward.score_texts([whole, f"{rendered} w5"], [rendered] * 2) == two
    assert reward.score_texts([f"{plain} w3 w4", f"{plain} w5</s>"], [plain] * 2) == two
    with pytest.raises(InputError, match="does not begin with its prompt"):
        reward.score_texts(["w1"], ["w2"])
    with pytest.raises(InputError, match="1 prompts and 2 texts"):
        reward.score_texts(["w1", "w2"], ["w1"])
    with pytest.raises(InputError, match=r"texts\[1\] is of type int"):
        reward.score_texts(["w1", 3])  # type: ignore[list-item]


def test_texts_that_are_too_long_lose_their_start(models: Path) -> None:
    reward = RewardFunction(models / "rm", max_length=12)
    long = " ".join(WORDS[i] for i in range(20))
    text = f"<s> [INST] {long} [/INST] w3 </s>"
    kept = " ".join(text.split()[-11:])
    assert reward.score_texts([text]) == RewardFunction(models / "rm").score_texts([kept])


def test_what_is_no_reward_model_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        RewardFunction(tmp_path / "nowhere")
    with pytest.raises(InputError, match="--max-length 9999"):
        RewardFunction(models / "rm", max_length=9999)
    with pytest.raises(InputError, match="device nonsense: "):
        RewardFunction(models / "rm", device="nonsense")


def test_another_process_can_be_sent_one(models: Path) -> None:
    first = RewardFunction(models / "rm", name="judge", max_length=64)
    second = pickle.loads(pickle.dumps(first))
    assert second.__name__ == "judge"
    assert second.score("w1", ["w2"]) == first.score("w1", ["w2"])
    assert len(pickle.dumps(first)) < 1000  # its arguments, not its weights


def test_nothing_is_written_to_disk(reward: RewardFunction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMTRAIN_CACHE", str(tmp_path / "cache"))
    reward.score("w1", ["w2", "w3"])
    assert [*tmp_path.iterdir()] == []


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(ImportError):
        from rmtrain import nothing  # type: ignore[attr-defined]  # noqa: F401


# The files under docs/examples


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / f"{name}.py"))


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_the_examples_of_trl_train(name: str, models: Path, tmp_path: Path) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    options = {"ckpt": models / "rm", "policy": models / "policy", "prompts": "prompts.jsonl", "max_steps": 1}
    options |= {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 4, "logging_steps": 1}
    options |= {"output_dir": tmp_path / "out", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    example(name)["main"]([word for key, value in options.items() for word in (f"--{key}", str(value))])
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_examples_of_openrlhf_and_verl_give_the_rewards_of_score(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMTRAIN_CKPT", str(models / "rm"))
    answers = ["w3 w4", "w5", ""]
    expected = scored([{"prompt": "w1 w2", "completions": answers}], models / "rm")[0]
    texts = [f"<s> [INST] w1 w2 [/INST] {answer} </s>" for answer in answers]
    openrlhf = example("openrlhf_reward")["reward_func"]
    reply = openrlhf(texts, ["<s> [INST] w1 w2 [/INST]"] * 3, ["", "", ""])
    np.testing.assert_allclose(reply["rewards"], expected, atol=1e-6)
    assert {*reply} == {"rewards", "scores", "extra_logs"}
    plain = openrlhf([f"w1 w2{answer}" for answer in answers], ["w1 w2"] * 3, ["", "", ""])
    assert plain["rewards"].tolist() == expected
    verl = example("verl_reward")
    info = [{"prompt": "w1 w2"}, {"prompt": [{"role": "user", "content": "w1 w2"}]}, {"prompt": "w1 w2"}]
    assert verl["compute_scores"](["x"] * 3, answers, [None] * 3, info) == expected
    asked = {"data_source": "x", "solution_str": "w5", "ground_truth": None, "extra_info": info[1]}
    beside = {"reward_router_address": "host:1", "reward_model_tokenizer": None}  # where verl serves a model itself
    assert verl["compute_score"](**asked, **beside) == pytest.approx(expected[1], abs=1e-6)
