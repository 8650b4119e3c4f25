"""The leaderboard's habits, each on rows built to show it, against transformers' own classification forward."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEMPLATE, make_config, make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmtrain.data.tokenize import tokenize_groups
from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.display import Silent
from rmtrain.errors import InputError
from rmtrain.evaluation.bench_parity import ladder_json, ladder_markdown, score_official
from rmtrain.evaluation.results import ScoredRow
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.reward_model import BackboneOptions, load_config
from rmtrain.scoring import official
from rmtrain.scoring.official import STEPS, Habits, OfficialScorer, PadIds, ladder

RUNGS = [name for name, _ in ladder()]
COUNT = 70  # more than one batch of 64


def pair(index: int, prompt: str, chosen: str, rejected: str) -> PreferenceGroup:
    completions = ((Message("assistant", chosen),), (Message("assistant", rejected),))
    return PreferenceGroup(f"r{index}", (Message("user", prompt),), completions, (Preference(0, 1),), "made")


def random_pairs(count: int, seed: int = 0) -> list[PreferenceGroup]:
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 60, rng.integers(2, 14)))

    return [pair(i, text(), text(), text()) for i in range(count)]


def write_model(folder: Path, family: str = "mistral", pad: str | None = "<unk>", side: str = "right") -> Path:
    """A random reward model whose tokenizer adds the BOS that its template writes too."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.chat_template, tokenizer.padding_side, tokenizer.pad_token = TEMPLATE, side, pad
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = make_config(family, initializer_range=0.3, num_labels=1, pad_token_id=tokenizer.pad_token_id)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def scorer(
    folder: Path, groups: list[PreferenceGroup], dtype: str = "float32", max_length: int = 512
) -> OfficialScorer:
    checkpoint = load_checkpoint(str(folder), options=BackboneOptions(dtype, packing="none"))
    tokenized = [g for g in tokenize_groups(groups, checkpoint.renderer, max_length, "truncate_prompt") if g]
    return OfficialScorer(checkpoint, load_config(str(folder), None).pad_token_id, groups, tokenized)


def at(rung: str) -> Habits:
    return dict(ladder())[rung]


def as_the_runner(folder: Path, groups: list[PreferenceGroup], dtype: Any, max_length: int = 2048) -> np.ndarray:
    """run_rm.py in a dozen lines: text, tokenised again, front cut, 64 padded rows, the second BOS's first masked."""
    tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    columns = []
    for k in range(2):
        texts = [
            tokenizer.apply_chat_template([m._asdict() for m in (*g.prompt, *g.completions[k])], tokenize=False)
            for g in groups
        ]
        found = []
        for start in range(0, len(texts), 64):
            batch = texts[start : start + 64]
            inputs = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
            starts = inputs["attention_mask"].argmax(1)
            for row, first in enumerate(starts):
                if inputs["input_ids"][row, first : first + 2].tolist() == [1, 1]:
                    inputs["attention_mask"][row, first] = 0
            with torch.no_grad():
                found += model(**inputs).logits.float().squeeze(-1).tolist()
        columns.append(found)
    return np.array(columns).T


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("pad", "side"), [("<unk>", "right"), (None, "left")])
def test_the_first_rung_is_the_runner_to_the_last_bit(tmp_path: Path, dtype: str, pad: str | None, side: str) -> None:
    folder, groups = write_model(tmp_path, pad=pad, side=side), random_pairs(COUNT)
    found = np.array(scorer(folder, groups, dtype).score(Habits()))
    assert np.array_equal(found, as_the_runner(folder, groups, getattr(torch, dtype)))


@pytest.mark.parametrize("pad", ["<unk>", None])
def test_the_last_rung_is_one_sequence_at_a_time_at_its_last_token(tmp_path: Path, pad: str | None) -> None:
    folder, groups = write_model(tmp_path, pad=pad), random_pairs(5)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    tokenizer = make_tokenizer()
    for group, rewards in zip(groups, scorer(folder, groups).score(at(RUNGS[-1])), strict=True):
        for completion, reward in zip(group.completions, rewards, strict=True):
            text = f"<s> [INST] {group.prompt[0].content} [/INST] {completion[0].content} </s>"
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([tokenizer.convert_tokens_to_ids(text.split())])).logits
            assert reward == pytest.approx(float(expected), abs=1e-5)


def test_every_rung_gives_up_one_habit() -> None:
    for (_, before), (name, after) in pairwise(ladder()):
        changed = [habit for habit in STEPS if getattr(before, habit) != getattr(after, habit)]
        assert [STEPS[habit] for habit in changed] == [name]


# Each habit on its own rows


def rewards_of(rows: OfficialScorer, rung: str) -> np.ndarray:
    return np.array(rows.score(at(rung)))


def test_a_doubled_bos_shifts_absolute_positions_but_not_rotary_ones(tmp_path: Path) -> None:
    """Masked, the first BOS only moves the others along: that changes GPT-2's rewards and leaves Mistral's alone."""
    groups = random_pairs(8)
    for family, same in (("mistral", True), ("gpt2", False)):
        rows = scorer(write_model(tmp_path / family, family), groups)
        twice, once = rows.sequences(Habits()), rows.sequences(at(RUNGS[1]))
        assert [[[1, *ids] for ids in group] for group in once] == twice
        difference = np.abs(rewards_of(rows, RUNGS[0]) - rewards_of(rows, RUNGS[1])).max()
        assert (difference < 1e-5) == same


def test_the_runner_cuts_the_front_with_the_template_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "MAX_LENGTH", 12)
    long = pair(0, " ".join(f"w{i}" for i in range(20)), "w1 w2", "w3")
    rows = scorer(write_model(tmp_path), [long, pair(1, "w1", "w2", "w3")], max_length=12)
    tokens = make_tokenizer().convert_ids_to_tokens
    assert tokens(rows.sequences(at(RUNGS[1]))[0][0]) == [f"w{i}" for i in range(12, 20)] + [
        "[/INST]",
        "w1",
        "w2",
        "</s>",
    ]
    ours = tokens(rows.sequences(at(RUNGS[2]))[0][0])
    assert ours == ["<s>", "[INST]", *[f"w{i}" for i in range(14, 20)], "[/INST]", "w1", "w2", "</s>"]
    before, after = rewards_of(rows, RUNGS[1]), rewards_of(rows, RUNGS[2])
    assert np.abs(before - after)[0].min() > 1e-3
    np.testing.assert_allclose(before[1], after[1], atol=1e-6)
    assert np.array_equal(
        rewards_of(rows, RUNGS[0]), as_the_runner(tmp_path, [long, pair(1, "w1", "w2", "w3")], torch.float32, 12)
    )


def test_with_the_end_token_for_padding_the_end_is_passed_over(tmp_path: Path) -> None:
    """Rows that differ in the end token alone tie where that is skipped."""
    groups = [pair(0, "w1", "w2 w3", "w2 w3 </s>"), *random_pairs(3)]
    rows = scorer(write_model(tmp_path, pad=None), groups)
    assert rows.pads == PadIds(fill=2, skip=2, side="right")
    by_pad, by_place = rewards_of(rows, RUNGS[2]), rewards_of(rows, RUNGS[3])
    assert by_pad[0, 0] == by_pad[0, 1]
    assert by_place[0, 0] != by_place[0, 1]
    assert (by_pad != by_place).all()
    other = scorer(write_model(tmp_path / "padded", pad="<unk>"), groups)
    assert np.array_equal(rewards_of(other, RUNGS[2]), rewards_of(other, RUNGS[3]))


def test_a_half_precision_head_ties_what_differs(tmp_path: Path) -> None:
    groups = [pair(i, f"w{i % 60}", f"w{i % 59} w1", f"w{i % 53} w2") for i in range(400)]
    rows = scorer(write_model(tmp_path), groups, "bfloat16")
    half, whole = rewards_of(rows, RUNGS[3]), rewards_of(rows, RUNGS[4])
    ties, left = ((r[:, 0] == r[:, 1]).sum() for r in (half, whole))
    assert ties > left
    assert np.array_equal(half, torch.tensor(half).bfloat16().double().numpy())
    assert not np.array_equal(whole, torch.tensor(whole).bfloat16().double().numpy())


def test_company_matters_in_half_precision_alone(tmp_path: Path) -> None:
    folder, groups = write_model(tmp_path, side="left"), random_pairs(COUNT)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", None)):
        rows = scorer(folder, groups, dtype)
        difference = np.abs(rewards_of(rows, RUNGS[4]) - rewards_of(rows, RUNGS[5])).max()
        assert difference < tolerance if tolerance else difference > 1e-4


# The ladder


def row(index: int, chosen: float, rejected: float, subset: str = "hep-go") -> ScoredRow:
    return ScoredRow(f"{subset}/{index}", subset, (chosen, rejected), ((0, 1),), False)


def test_the_ladder_counts_which_rows_flip() -> None:
    first = [row(0, 1, 0), row(1, 0, 1), row(2, 1, 1), row(3, 0, 0, "hep-js")]
    second = [row(0, 0, 1), row(1, 1, 0), row(2, 1, 0), row(3, 0, 0, "hep-js")]
    a, b, c = ladder_json([("a", first), ("b", second), ("ties half", second)])
    assert (a["accuracy"], a["flipped"], a["ties"], a["flipped_rows"]) == (0.25, 0, 2, [])
    assert (b["accuracy"], b["flipped"], b["to_right"], b["to_wrong"], b["ties"]) == (0.5, 3, 2, 1, 1)
    assert b["flipped_rows"] == ["hep-go/0", "hep-go/1", "hep-go/2"]
    assert b["subsets"] == {"hep-go": pytest.approx(2 / 3), "hep-js": 0.0}
    assert (c["accuracy"], c["to_right"], c["flipped_rows"]) == (0.625, 1, ["hep-js/3"])
    assert all(entry["mean_of_sections"] is None for entry in (a, b, c))
    assert ladder_markdown([a, b]).splitlines()[2:] == [
        "| a | 25.00 | – | 0 | 0 | 2 |",
        "| b | 50.00 | – | 2 | 1 | 1 |",
    ]


def test_the_settings_tell_what_the_runner_met(tmp_path: Path) -> None:
    folder, groups = write_model(tmp_path, pad=None), random_pairs(3)
    checkpoint = load_checkpoint(str(folder), options=BackboneOptions("float32", packing="none"))
    settings, rungs = score_official(checkpoint, load_config(str(folder), None).pad_token_id, groups, Silent())
    assert settings == {
        "batch": 64, "max_length": 2048, "padding_side": "right", "pad_id": 2, "pooling_skips_id": 2,
        "rows_with_double_bos": 3, "rows_cut": 0,
    }  # fmt: skip
    assert [name for name, _ in rungs] == RUNGS
    assert [row.id for row in rungs[0][1]] == [group.id for group in groups]
    for (_, before), (_, after) in pairwise(rungs[3:]):  # float32: nothing more to differ
        np.testing.assert_allclose([r.rewards for r in before], [r.rewards for r in after], atol=1e-5)


def test_parity_is_for_reward_models_on_rewardbench_1(tmp_path: Path) -> None:
    from rmtrain.cli.rewardbench import rewardbench

    folder = write_model(tmp_path)
    for options in ({"benchmark": "judgebench"}, {"reference_free": "avg"}):
        with pytest.raises(InputError, match="--parity is for reward models on rewardbench-1"):
            rewardbench(ckpt=str(folder), parity="float16", **options)  # type: ignore[arg-type]
