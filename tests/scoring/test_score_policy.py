"""Implicit rewards against one sequence at a time through transformers' own language model."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from conftest import TEMPLATE, make_config, make_groups, make_tokenizer
from transformers import AutoModelForCausalLM

from rmtrain.data.render import Renderer
from rmtrain.data.responses import mark_responses
from rmtrain.data.tokenize import Tokenization, TokenizedGroup, tokenize_groups
from rmtrain.data.types import Message, PreferenceGroup
from rmtrain.display import Silent
from rmtrain.errors import CheckpointError, InputError, RmtrainError
from rmtrain.evaluation.splits import score_rows
from rmtrain.model import language_head, language_model
from rmtrain.model.language_model import LogProbForward
from rmtrain.model.reward_model import choose_packing
from rmtrain.scoring.implicit import PolicyScorer
from rmtrain.scoring.scorer import ScorerRequest, ScoringOptions

GENERATION = TEMPLATE + "{% if add_generation_prompt %} [/INST] [INST]{% endif %}"  # a header before every answer
WITH_HEADER = GENERATION.replace(
    "{% elif m['role'] == 'assistant' %}", "{% elif m['role'] == 'assistant' %} [/INST] [INST]"
)


def write_policy(folder: Path, seed: int, family: str = "mistral", template: str = TEMPLATE, **changes: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(family, initializer_range=0.3, **changes))
        model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def load_policy(where: str, reference: str | None, reduction: Any = "sum") -> PolicyScorer:
    options = ScoringOptions(reference=reference, reference_free=None if reference else reduction)
    scorer = PolicyScorer.open(ScorerRequest(where, options))
    assert scorer is not None
    return scorer


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"), 1)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("reference"), 2)


def groups_to_score() -> list[PreferenceGroup]:
    """Of 4 and 2 completions; some share their first words, one is a beginning of another, one is empty."""
    made = make_groups(6, seed=1) + make_groups(3, seed=2, k=2)
    for texts in (["w1 w2 w3 w4", "w1 w2 w5", "w1 w2"], ["", "w3"], ["w7 w7", "w7 w7"]):
        completions = tuple((Message("assistant", text),) for text in texts)
        made.append(PreferenceGroup("", (Message("user", "w9 w8"),), completions, (), "made"))
    return [group._replace(id=f"g{i}") for i, group in enumerate(made)]


def tokenized(where: Path, groups: list[PreferenceGroup], max_length: int = 512) -> list[TokenizedGroup]:
    renderer = Renderer.for_tokenizer(load_policy(str(where), None).renderer.tokenizer)
    plain = [g for g in tokenize_groups(groups, Tokenization(renderer, max_length, "truncate_prompt")) if g is not None]
    return mark_responses(groups, plain, Tokenization(renderer, max_length, "truncate_prompt"))


def token_log_probs(where: Path, group: PreferenceGroup) -> list[torch.Tensor]:
    """Of each completion's own tokens and its end, one sequence at a time, by the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(where).eval()
    tokenizer = make_tokenizer()
    prompt = f"<s> [INST] {group.prompt[0].content} [/INST]".split()
    found = []
    for completion in group.completions:
        tokens = [*prompt, *completion[0].content.split(), "</s>"]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
        told = [log_probs[i - 1, ids[0, i]] for i in range(len(prompt), len(tokens))]
        found.append(torch.stack(told))
    return found


def scores(policy: PolicyScorer, groups: list[TokenizedGroup], folder: Path, tokens: int = 100_000) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    rewards = policy.rewards(groups, tokens, folder / "partial")
    assert list(map(len, rewards)) == [len(group.spread(group.suffixes)) for group in groups]
    return np.concatenate(rewards)


@pytest.fixture(scope="module")
def groups() -> list[PreferenceGroup]:
    return groups_to_score()


def test_the_implicit_reward_is_the_sum_over_response_tokens(
    policy: Path, reference: Path, groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    expected = [
        float((ours.sum() - theirs.sum()).float())
        for group in groups
        for ours, theirs in zip(token_log_probs(policy, group), token_log_probs(reference, group), strict=True)
    ]
    marked = tokenized(policy, groups)
    found = scores(load_policy(str(policy), str(reference)), marked, tmp_path)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
    assert any(group.starts[0] < len(group.prefix) for group in marked)  # shared first words count
    assert np.std(found) > 1


@pytest.mark.parametrize("reading", ["avg", "sum", "norm"])
def test_without_a_reference(policy: Path, groups: list[PreferenceGroup], tmp_path: Path, reading: Any) -> None:
    of = {"avg": torch.mean, "sum": torch.sum, "norm": lambda values: -values.norm()}[reading]
    expected = [float(of(values)) for group in groups for values in token_log_probs(policy, group)]
    found = scores(load_policy(str(policy), None, reading), tokenized(policy, groups), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("packing", ["shared_prompt", "padding_free", "none"])
def test_neither_batch_nor_packing_nor_company_matter(
    policy: Path, groups: list[PreferenceGroup], tmp_path: Path, packing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_policy(str(policy), None)
    marked = tokenized(policy, groups)
    expected = scores(loaded, one_by_one(marked), tmp_path / "alone", 1)
    monkeypatch.setattr(language_model, "choose_packing", lambda c, config, wanted: choose_packing(c, config, packing))
    for tokens in (1, 120, 100_000):
        found = scores(loaded, marked, tmp_path, tokens)
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)
        (tmp_path / "partial.0").unlink()


def one_by_one(marked: list[TokenizedGroup]) -> list[TokenizedGroup]:
    """Each completion as a group of its own."""
    alone = []
    for group in marked:
        for suffix, start in group.spread([*zip(group.suffixes, group.starts, strict=True)]):
            sequence = np.concatenate([group.prefix, suffix])
            one = group._replace(prefix=sequence[:-1], suffixes=(sequence[-1:],), starts=(start,), suffix_of=())
            alone.append(one)
    return alone


def test_few_logits_at_once_change_nothing(
    policy: Path, groups: list[PreferenceGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, marked = load_policy(str(policy), None), tokenized(policy, groups)
    expected = scores(loaded, marked, tmp_path)
    (tmp_path / "partial.0").unlink()
    monkeypatch.setattr(language_head, "LOGITS_AT_ONCE", 3 * 65)
    np.testing.assert_allclose(scores(loaded, marked, tmp_path), expected, atol=1e-5, rtol=0)


def test_the_header_of_an_answer_is_the_prompts(tmp_path: Path) -> None:
    folder = write_policy(tmp_path, 3, template=WITH_HEADER)
    group = groups_to_score()[0]
    (marked,) = tokenized(folder, [group])
    tokens = make_tokenizer().convert_ids_to_tokens(np.concatenate([marked.prefix, marked.suffixes[0]]))
    assert tokens[: marked.starts[0]] == [
        "<s>",
        "[INST]",
        *group.prompt[0].content.split(),
        "[/INST]",
        "[/INST]",
        "[INST]",
    ]
    assert tokens[marked.starts[0] :] == [*group.completions[0][0].content.split(), "</s>"]


@pytest.mark.parametrize("max_length", [10, 24])
def test_a_response_keeps_its_place_where_the_prompt_is_cut(policy: Path, max_length: int) -> None:
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w1"]
    group = groups_to_score()[0]._replace(
        prompt=(Message("user", " ".join(f"w{i}" for i in range(30))),),
        completions=tuple((Message("assistant", text),) for text in texts),
        preferences=(),
    )
    (marked,) = tokenized(policy, [group], max_length)
    tokenizer = make_tokenizer()
    for suffix, start, text in zip(marked.suffixes, marked.starts, texts, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(np.concatenate([marked.prefix, suffix]))
        assert len(tokens) <= max_length
        assert tokens[start - 1] == "[/INST]"
        assert tokens[start:-1] == text.split()[: max_length - 4]


def test_a_half_precision_policy_has_float32_logits(tmp_path: Path, groups: list[PreferenceGroup]) -> None:
    folder = write_policy(tmp_path / "p", 4)
    whole = scores(load_policy(str(folder), None), tokenized(folder, groups), tmp_path)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    (tmp_path / "partial.0").unlink()
    half = scores(load_policy(str(folder), None), tokenized(folder, groups), tmp_path)
    assert len({*half.tolist()}) > 0.9 * len(half)  # bfloat16 sums of this size would be eighths and quarters
    assert 0 < np.abs(half - whole).max() < 0.05 * np.abs(whole).max()


def test_final_logits_that_are_capped(tmp_path: Path, groups: list[PreferenceGroup]) -> None:
    folder = write_policy(tmp_path / "p", 5, "gemma2", sliding_window=64, final_logit_softcapping=0.5)
    expected = [float(values.sum()) for group in groups[:3] for values in token_log_probs(folder, group)]
    found = scores(load_policy(str(folder), None), tokenized(folder, groups[:3]), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("family", "scale"), [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.25})])
def test_final_logits_that_are_scaled(
    family: str, scale: dict[str, float], tmp_path: Path, groups: list[PreferenceGroup]
) -> None:
    folder = write_policy(tmp_path / "p", 7, family, **scale)
    expected = [float(values.sum()) for group in groups[:3] for values in token_log_probs(folder, group)]
    found = scores(load_policy(str(folder), None), tokenized(folder, groups[:3]), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_adapter_with_its_base_as_reference(
    policy: Path, reference: Path, groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(reference)
    adapted = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    make_tokenizer().save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(reference), tmp_path / "adapter"
    ).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    expected = [
        float((ours.sum() - theirs.sum()).float())
        for group in groups
        for ours, theirs in zip(
            token_log_probs(tmp_path / "merged", group), token_log_probs(reference, group), strict=True
        )
    ]
    found = scores(load_policy(str(tmp_path / "adapter"), str(reference)), tokenized(reference, groups), tmp_path)
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize(("tied", "saved"), [(False, None), (True, None), (False, ["embed_tokens", "lm_head"])])
def test_an_adapter_with_added_tokens_or_without_a_tokenizer(
    more: int, tied: bool, saved: list[str] | None, groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = write_policy(tmp_path / "base", 4, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + more, mean_resizing=False)
    how = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False, modules_to_save=saved)
    adapted = get_peft_model(model, how).eval()
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=more > 0)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = [float(each.sum().float()) for group in groups for each in token_log_probs(tmp_path / "merged", group)]
    found = scores(load_policy(str(tmp_path / "adapter"), None), tokenized(base, groups), tmp_path)
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


def test_an_interrupted_scoring_goes_on_with_either_model(
    policy: Path, reference: Path, groups: list[PreferenceGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, whole_path, path = load_policy(str(policy), str(reference)), tmp_path / "whole.jsonl", tmp_path / "a.jsonl"
    whole = score_rows(loaded, "made", groups, 100, whole_path, Silent())
    assert [p.name for p in tmp_path.iterdir()] == ["whole.jsonl"]
    for stop_at in ("0", "1"):

        class Stop(Silent):
            def progress(self, name: str, done: int, total: int, end: str = stop_at) -> None:
                if name.startswith("score") and 0 < done < total and list(tmp_path.glob(f".a*.{end}")):
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            score_rows(loaded, "made", groups, 100, path, Stop())
    assert list(tmp_path.glob(".a*.0"))
    assert list(tmp_path.glob(".a*.1"))
    again = score_rows(loaded, "made", groups, 100, path, Silent())
    assert again == whole
    assert path.read_text() == whole_path.read_text()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_one_reference_or_reading_left_is_not_taken_up_by_another(
    policy: Path, reference: Path, groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"

    class Stop(Silent):
        def progress(self, name: str, done: int, total: int, status: str = "") -> None:
            if name.startswith("score") and 0 < done < total and list(tmp_path.glob(".rows*.1")):
                raise KeyboardInterrupt

    other = write_policy(tmp_path / "other", 8)
    with pytest.raises(KeyboardInterrupt):
        score_rows(load_policy(str(policy), str(other)), "made", groups, 100, path, Stop())
    for against, reading in ((str(reference), "sum"), (None, "sum"), (None, "avg"), (None, "norm")):
        loaded = load_policy(str(policy), against, reading)
        whole = score_rows(loaded, "made", groups, 100, tmp_path / "whole.jsonl", Silent())
        assert score_rows(loaded, "made", groups, 100, path, Silent()) == whole
    assert len(list(tmp_path.glob(".rows*"))) == 2  # of the first alone


# What is refused


def test_a_reward_model_is_no_policy(base: Path, policy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for pair in ((str(tmp_path), str(policy)), (str(policy), str(tmp_path))):
        with pytest.raises(
            CheckpointError, match="MistralForSequenceClassification is a reward model, not a policy"
        ) as caught:
            load_policy(*pair)
        assert "a policy is a language model or its LoRA adapter" in caught.value.hint


def test_a_policy_is_no_reward_model_and_the_options_are_named(policy: Path) -> None:
    from rmtrain.model.checkpoint import load_checkpoint

    with pytest.raises(RmtrainError, match="no score head") as caught:
        load_checkpoint(str(policy))
    assert "with --reference or --reference-free" in caught.value.hint


def test_weights_without_a_language_head(base: Path, policy: Path) -> None:
    loaded = load_policy(str(policy), str(base))
    with pytest.raises(CheckpointError, match=r"the weights lack lm_head\.weight"):
        loaded.models[1].load("sum", "float32", None)


def test_another_tokenizer_is_refused(policy: Path, tmp_path: Path) -> None:
    folder = write_policy(tmp_path, 6)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>user"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="turn the same text into different tokens"):
        load_policy(str(policy), str(folder))


def test_a_template_that_refuses_a_question_alone_opens(policy: Path, tmp_path: Path) -> None:
    """The policy and its reference are compared on whole conversations, by the renderer of the rows."""
    template = "{% for m in messages %} {{ m['content'] }}{% endfor %}{{ messages[1]['content'][:0] }}"
    folders = [write_policy(tmp_path / name, 6, template=template) for name in ("policy", "reference")]
    assert load_policy(*map(str, folders)).info.details["policy"]["reference"] == str(folders[1])


def test_logits_made_in_another_way_are_refused(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = LogProbForward.float_head
    monkeypatch.setattr(LogProbForward, "float_head", lambda self: replace(own(self), scale=1.1))
    loaded = load_policy(str(policy), None)
    with pytest.raises(
        CheckpointError, match="MistralForCausalLM computes its logits in a way that rmtrain does not support"
    ):
        loaded.models[0].load("sum", "float32", None)


WORKER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from rmtrain.display import Silent
from rmtrain.evaluation.splits import score_rows
from rmtrain.model.devices import process_state
state = process_state(timeout_minutes=2)
sys.path.insert(0, sys.argv[4])
from test_score_policy import groups_to_score, load_policy  # takes the launcher's variables away
loaded = load_policy(sys.argv[1], sys.argv[2])
rows = score_rows(loaded, "made", groups_to_score(), 100, Path(sys.argv[3]) / "two.jsonl", Silent())
(Path(sys.argv[3]) / f"{state.process_index}.json").write_text(json.dumps([row.rewards for row in rows]))
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_same(
    policy: Path, reference: Path, groups: list[PreferenceGroup], tmp_path: Path
) -> None:
    alone = score_rows(load_policy(str(policy), str(reference)), "made", groups, 100, tmp_path / "one.jsonl", Silent())
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = Path(__file__).parent
    paths = [str(tmp_path / "worker.py"), str(policy), str(reference), str(tmp_path), str(here)]
    done = warm.run(
        launch + paths,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONPATH": str(here.parent)},
    )
    assert done.returncode == 0, done.stderr
    for process in range(2):
        rewards = json.loads((tmp_path / f"{process}.json").read_text())
        np.testing.assert_allclose(
            np.concatenate(rewards), np.concatenate([row.rewards for row in alone]), atol=1e-5, rtol=0
        )
