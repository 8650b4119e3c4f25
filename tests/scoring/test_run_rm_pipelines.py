"""The pipelines that the leaderboard's runner had for some published models, and its prompts for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from published_cases import CASES
from run_rm_cases import at, pair, random_pairs, rewards_of, scorer, write_model
from transformers import AutoTokenizer

from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.reward_model import BackboneOptions


def starlings(folder: Path, head: torch.Tensor, texts: list[str]) -> list[float]:
    """rewardbench/models/starling.py on one batch; the tiny tokenizer of the larger one knows no end token but EOS."""
    tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left")
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.add_eos_token = True
    pad_id = tokenizer(tokenizer.pad_token)["input_ids"][0]
    inputs = tokenizer(texts, truncation=True, max_length=2048, padding=True, return_tensors="pt")
    backbone = load_checkpoint(str(folder), options=BackboneOptions("float32", packing="none")).model.module.model
    with torch.no_grad():
        rewards = backbone(**inputs).last_hidden_state @ head
    scores = []
    for ids, reward in zip(inputs["input_ids"], rewards, strict=True):
        found = (ids == pad_id).nonzero()
        scores.append(float(reward[(found[0].item() if len(found) else len(ids)) - 1]))
    return scores


@pytest.mark.parametrize(
    ("name", "rendered"),
    [
        ("starling-7b", "[INST] {p} [/INST] {r} </s><s>"),
        ("starling-34b", "<|im_start|>user\n{p}<|im_end|>\n<|im_start|>assistant\n{r}<|im_end|>\n"),
    ],
)
def test_starling_was_read_before_what_its_unk_token_begins_with(name: str, rendered: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = case.write(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "right"}))
    groups = [pair(0, "w1", "w2 w3", "w4 <unk> w5 w6"), pair(1, "w7 " * 20, "w8", "w9")]
    rows = scorer(folder, groups)
    truth = [
        starlings(
            folder,
            case.all_tensors()["v_head.weight"][0],
            [rendered.format(p=g.prompt[0].content, r=g.completions[k][0].content) for g in groups],
        )
        for k in range(2)
    ]
    found = rewards_of(rows, 0)
    np.testing.assert_allclose(found, np.array(truth).T, atol=1e-5)
    assert rows.prompt == f"{name}-fastchat"
    alone = rewards_of(scorer(folder, groups[:1]), 0)
    depends = np.abs(alone[0] - found[0]) > 1e-3
    # the last column of the batch; or the row's own, but for what follows an unk in the text
    assert depends.tolist() == ([True, True] if name == "starling-7b" else [False, False])
    names = [step for step, _ in rows.steps()]
    before, after = (rewards_of(rows, names.index(step)) for step in ("rmtrain's truncation", "read at the last token"))
    assert (np.abs(before - after)[0] > 1e-3).tolist() == [name == "starling-7b", True]


def test_models_read_by_their_mask_had_another_prompt_and_an_end_token(tmp_path: Path) -> None:
    case = CASES["ultrarm"]
    folder = case.write(tmp_path)
    groups = random_pairs(3)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def truth(rendered: str, end: list[int]) -> np.ndarray:
        texts = [[rendered.format(p=g.prompt[0].content, r=c[0].content) for c in g.completions] for g in groups]
        return np.array([[case.reward(tokenizer(text)["input_ids"] + end) for text in both] for both in texts])

    rows = scorer(folder, groups)
    assert rows.prompt == "ultrarm-fastchat"
    names = [step for step, _ in rows.steps()]
    assert names[1] == "the prompt of its card"
    assert not any("BOS masked" in name or "last token" in name for name in names)
    theirs = truth("User: {p}\n\nAssistant: {r}\n\n", [2])
    np.testing.assert_allclose(rewards_of(rows, 0), theirs, atol=2e-5)
    np.testing.assert_allclose(rewards_of(rows, 1), truth("Human: {p}\n\nAssistant: {r}", []), atol=2e-5)
    chosen = scorer(folder, groups, prompt="ultrarm-billa", own_prompt=False)
    assert (chosen.prompt, len(chosen.steps())) == ("ultrarm-billa", len(names) - 1)
    billa = truth("\nHuman: {p}\nAssistant: {r}\n", [2])
    np.testing.assert_allclose(rewards_of(chosen, 0), billa, atol=2e-5)


def test_only_tokenizers_of_llamas_kind_take_the_runners_end_token(tmp_path: Path) -> None:
    rows = scorer(write_model(tmp_path), random_pairs(1), prompt="tulu")
    once = next(each for name, each in rows.steps() if name == "tokenised once, one BOS")
    assert [rows.sequences(settings)[0][0][-1] == 2 for settings in (at(rows, 0), once)] == [False, True]
