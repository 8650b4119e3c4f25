"""The settings of the leaderboard's runner, each on rows built for it, against transformers' own forward pass."""

from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from run_rm_cases import at, pair, random_pairs, rewards_of, scorer, write_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmtrain.data.benchmarks.load import BenchmarkRows
from rmtrain.data.benchmarks.rewardbench1 import PRIOR_SETS, SUBSETS
from rmtrain.data.types import Message, PreferenceGroup
from rmtrain.display import Silent
from rmtrain.errors import InputError
from rmtrain.evaluation.parity import ParityStep, runner_steps, step_figures
from rmtrain.evaluation.results import ScoredRow
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.reward_model import BackboneOptions
from rmtrain.scoring import run_rm
from rmtrain.scoring.run_rm import PadIds, RunnerSettings

THEN, MASKED, NOW, ONCE, CUT, LAST, HEAD, ALONE = range(8)  # steps of the default pipeline
COUNT = 70  # more than one batch of 64


def as_the_runner(
    folder: Path, groups: list[PreferenceGroup], dtype: Any, max_length: int = 2048, then: bool = False, **how: Any
) -> np.ndarray:
    """run_rm.py in two dozen lines: text, tokenised again, front cut, 64 padded rows, the second BOS's first masked.

    `then`: as in March 2024, with no BOS masked, and read before the first pad id.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **how).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    columns = []
    for k in range(2):
        texts = [
            tokenizer.apply_chat_template([m.as_dict() for m in (*g.prompt, *g.completions[k])], tokenize=False)
            for g in groups
        ]
        found = []
        for start in range(0, len(texts), 64):
            batch = texts[start : start + 64]
            inputs = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
            starts = inputs["attention_mask"].argmax(1)
            for row, first in enumerate(starts):
                if not then and inputs["input_ids"][row, first : first + 2].tolist() == [1, 1]:
                    inputs["attention_mask"][row, first] = 0
            with torch.no_grad():
                if then:
                    logits = model.score(model.model(**inputs).last_hidden_state).float().squeeze(-1)
                    ends = (inputs["input_ids"] == model.config.pad_token_id).int().argmax(1) - 1
                    found += logits[torch.arange(len(batch)), ends].tolist()
                else:
                    found += model(**inputs).logits.float().squeeze(-1).tolist()
        columns.append(found)
    return np.array(columns).T


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("pad", "side"), [("<unk>", "right"), (None, "left")])
def test_the_first_steps_are_the_runner_to_the_last_bit(tmp_path: Path, dtype: str, pad: str | None, side: str) -> None:
    folder, groups = write_model(tmp_path, pad=pad, side=side), random_pairs(COUNT)
    rows = scorer(folder, groups, dtype)
    for step, then in ((THEN, True), (NOW, False)):
        assert np.array_equal(rewards_of(rows, step), as_the_runner(folder, groups, getattr(torch, dtype), then=then))


def test_int8_is_the_runners_too(tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    folder, groups = write_model(tmp_path), random_pairs(6)
    eight = as_the_runner(
        folder, groups, torch.float16, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    assert np.array_equal(rewards_of(scorer(folder, groups, "float16", quantization="int8"), NOW), eight)
    assert np.abs(eight - as_the_runner(folder, groups, torch.float16)).max() > 1e-3


@pytest.mark.parametrize("pad", ["<unk>", None])
def test_the_last_rung_is_one_sequence_at_a_time_at_its_last_token(tmp_path: Path, pad: str | None) -> None:
    folder, groups = write_model(tmp_path, pad=pad), random_pairs(5)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    tokenizer = make_tokenizer()
    for group, rewards in zip(groups, rewards_of(scorer(folder, groups), ALONE), strict=True):
        for completion, reward in zip(group.completions, rewards, strict=True):
            text = f"<s> [INST] {group.prompt[0].content} [/INST] {completion[0].content} </s>"
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([tokenizer.convert_tokens_to_ids(text.split())])).logits
            assert reward == pytest.approx(float(expected), abs=1e-5)


def test_every_rung_changes_one_thing(tmp_path: Path) -> None:
    steps = scorer(write_model(tmp_path), random_pairs(1)).steps()
    assert len({name for name, _ in steps}) == ALONE + 1
    for (_, before), (name, after) in pairwise(steps):
        names = [field.name for field in fields(RunnerSettings)]
        changed = {field for field in names if getattr(before, field) != getattr(after, field)}
        assert len(changed - {"mask_bos"}) == 1 or changed == {"mask_bos"}, name


# Each setting on its own rows


def test_a_doubled_bos_shifts_absolute_positions_but_not_rotary_ones(tmp_path: Path) -> None:
    """Masked, the first BOS only moves the others along: that changes GPT-2's rewards and leaves Mistral's alone."""
    groups = random_pairs(8)
    for family, same in (("mistral", True), ("gpt2", False)):
        rows = scorer(write_model(tmp_path / family, family), groups)
        twice, once = rows.sequences(at(rows, NOW)), rows.sequences(at(rows, ONCE))
        assert [[[1, *ids] for ids in group] for group in once] == twice
        difference = np.abs(rewards_of(rows, NOW) - rewards_of(rows, ONCE)).max()
        assert (difference < 1e-5) == same
        assert np.abs(rewards_of(rows, THEN) - rewards_of(rows, MASKED)).max() > 1e-3  # in 2024-03 it was not masked


def test_the_runner_cuts_the_front_with_the_template_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_rm, "MAX_LENGTH", 12)
    long = pair(0, " ".join(f"w{i}" for i in range(20)), "w1 w2", "w3")
    rows = scorer(write_model(tmp_path), [long, pair(1, "w1", "w2", "w3")], max_length=12)
    tokens = make_tokenizer().convert_ids_to_tokens
    assert tokens(rows.sequences(at(rows, ONCE))[0][0]) == [f"w{i}" for i in range(12, 20)] + [
        "[/INST]",
        "w1",
        "w2",
        "</s>",
    ]
    ours = tokens(rows.sequences(at(rows, CUT))[0][0])
    assert ours == ["<s>", "[INST]", *[f"w{i}" for i in range(14, 20)], "[/INST]", "w1", "w2", "</s>"]
    before, after = rewards_of(rows, ONCE), rewards_of(rows, CUT)
    assert np.abs(before - after)[0].min() > 1e-3
    np.testing.assert_allclose(before[1], after[1], atol=1e-6)
    assert np.array_equal(
        rewards_of(rows, NOW), as_the_runner(tmp_path, [long, pair(1, "w1", "w2", "w3")], torch.float32, 12)
    )


def test_with_the_end_token_for_padding_the_end_is_passed_over(tmp_path: Path) -> None:
    """Rows that differ in the end token alone tie where that is skipped."""
    groups = [pair(0, "w1", "w2 w3", "w2 w3 </s>"), *random_pairs(3)]
    rows = scorer(write_model(tmp_path, pad=None), groups)
    assert rows.pads == PadIds(fill=2, skip=2, side="right")
    by_pad, by_place = rewards_of(rows, CUT), rewards_of(rows, LAST)
    assert by_pad[0, 0] == by_pad[0, 1]
    assert by_place[0, 0] != by_place[0, 1]
    assert (by_pad != by_place).all()
    other = scorer(write_model(tmp_path / "padded", pad="<unk>"), groups)
    assert np.array_equal(rewards_of(other, CUT), rewards_of(other, LAST))


def test_a_half_precision_head_ties_what_differs(tmp_path: Path) -> None:
    groups = [pair(i, f"w{i % 60}", f"w{i % 59} w1", f"w{i % 53} w2") for i in range(400)]
    rows = scorer(write_model(tmp_path), groups, "bfloat16")
    half, whole = rewards_of(rows, LAST), rewards_of(rows, HEAD)
    ties, left = ((r[:, 0] == r[:, 1]).sum() for r in (half, whole))
    assert ties > left
    assert np.array_equal(half, torch.tensor(half).bfloat16().double().numpy())
    assert not np.array_equal(whole, torch.tensor(whole).bfloat16().double().numpy())


def test_company_matters_in_half_precision_alone(tmp_path: Path) -> None:
    folder, groups = write_model(tmp_path, side="left"), random_pairs(COUNT)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", None)):
        rows = scorer(folder, groups, dtype)
        difference = np.abs(rewards_of(rows, HEAD) - rewards_of(rows, ALONE)).max()
        assert difference < tolerance if tolerance else difference > 1e-4


def test_in_2024_a_dialogue_was_read_before_its_first_end_where_that_was_the_padding(tmp_path: Path) -> None:
    turns = (Message("user", "w1"), Message("assistant", "w2 w3"), Message("user", "w4"))
    groups = [pair(0, "", "w5 w6", "w7")._replace(prompt=turns), *random_pairs(3)]
    rows = scorer(write_model(tmp_path, pad=None), groups)
    then, now = rewards_of(rows, MASKED), rewards_of(rows, NOW)
    assert then[0, 0] == pytest.approx(then[0, 1], abs=1e-5)  # of the first answer, which both have
    assert abs(now[0, 0] - now[0, 1]) > 1e-2
    assert np.array_equal(then[1:], now[1:])  # with one end, both read before it


def test_roles_are_given_in_turn(tmp_path: Path) -> None:
    turns = (Message("system", "w1"), Message("user", "w2"), Message("assistant", "w3"), Message("user", "w4"))
    rows = scorer(write_model(tmp_path), [pair(0, "", "w5", "w6")._replace(prompt=turns)])
    texts = [make_tokenizer().convert_ids_to_tokens(rows.sequences(at(rows, step))[0][0]) for step in (THEN, ONCE)]
    assert " ".join(texts[0]) == "<s> <s> [INST] w1 [/INST] w2 </s> [INST] w3 [/INST] w4 </s> [INST] w5 [/INST]"
    assert texts[1][-4:] == ["w4", "[/INST]", "w5", "</s>"]


# Passes


def test_steps_that_differ_in_the_reading_share_a_pass_and_none_is_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_rm, "BATCH", 2)
    groups = random_pairs(6)
    rows = scorer(write_model(tmp_path / "model"), groups)
    passes: list[int] = []
    forward = rows._forward
    monkeypatch.setattr(rows, "_forward", lambda *args: passes.append(1) or forward(*args))
    settings = [each for _, each in rows.steps()]
    whole = rows.score(settings)
    assert len(passes) == 2 * (3 + 3 + 3 + 6)  # two BOS, one masked, one BOS, alone: batches of chosen and rejected
    for step, rewards in enumerate(whole):
        assert np.array_equal(rewards, rewards_of(rows, step))

    def stop(done: int, total: int) -> None:
        if (done, total) == (2, 3) and len(passes) > 8:
            raise KeyboardInterrupt

    passes.clear()
    partial = tmp_path / ".steps"
    with pytest.raises(KeyboardInterrupt):
        rows.score(settings, partial, stop)
    run = len(passes)
    assert run == 2 * (3 + 2)
    with open(max(tmp_path.glob(".steps-*"), key=lambda path: path.stat().st_mtime_ns), "a") as stream:
        stream.write("[2, [[[0.")  # torn
    assert rows.score(settings, partial) == whole
    assert len(passes) == 2 * (3 + 3 + 3 + 6)
    assert rows.score(settings, partial) == whole
    assert len(passes) == 2 * (3 + 3 + 3 + 6)
    monkeypatch.setattr(rows, "_name", "other weights")
    rows.score(settings[:1], partial)
    assert len(passes) == 2 * (3 + 3 + 3 + 6) + 6
    run_rm.remove_partials(partial)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# The steps


def row(index: int, chosen: float, rejected: float, subset: str = "hep-go") -> ScoredRow:
    return ScoredRow(f"{subset}/{index}", subset, (chosen, rejected), ((0, 1),), False)


def test_the_steps_count_which_rows_flip() -> None:
    first = [row(0, 1, 0), row(1, 0, 1), row(2, 1, 1), row(3, 0, 0, "hep-js")]
    second = [row(0, 0, 1), row(1, 1, 0), row(2, 1, 0), row(3, 0, 0, "hep-js")]
    a, b, c = map(
        asdict, step_figures([ParityStep("a", first), ParityStep("b", second), ParityStep("ties half", second)])
    )
    assert (a["accuracy"], a["flipped"], a["ties"], a["flipped_rows"]) == (0.25, 0, 2, [])
    assert (b["accuracy"], b["flipped"], b["to_right"], b["to_wrong"], b["ties"]) == (0.5, 3, 2, 1, 1)
    assert b["flipped_rows"] == ["hep-go/0", "hep-go/1", "hep-go/2"]
    assert b["subsets"] == {"hep-go": pytest.approx(2 / 3), "hep-js": 0.0}
    assert (c["accuracy"], c["to_right"], c["flipped_rows"]) == (0.625, 1, ["hep-js/3"])
    assert all(entry["mean_of_sections"] is None for entry in (a, b, c))


def test_a_rung_has_the_score_that_tables_of_its_time_give() -> None:
    rows = [row(i, i % 2, 0.5, subset) for subset in SUBSETS for i in range(2)]
    prior = [row(0, 1, 0, name) for name in PRIOR_SETS[:3]] + [row(0, 0, 1, PRIOR_SETS[3])]
    (entry, _) = map(asdict, step_figures([ParityStep("a", rows, prior), ParityStep("ties half", rows, prior)]))
    assert entry["prior_sets"] == dict(zip(PRIOR_SETS, (1, 1, 1, 0), strict=True))
    assert entry["scores"]["2024-03"]["with_prior_sets"] == pytest.approx((4 * 0.5 + 0.75) / 5)
    assert entry["scores"]["current"]["with_prior_sets"] == pytest.approx((8 * 0.5 + 0.75) / 9)


def test_the_settings_tell_what_the_runner_met(tmp_path: Path) -> None:
    folder, groups = write_model(tmp_path, pad=None), random_pairs(3)
    checkpoint = load_checkpoint(str(folder), options=BackboneOptions("float32", packing="none"))
    prior = [group._replace(id=f"p{i}", source="shp") for i, group in enumerate(random_pairs(2, seed=1))]
    rows = BenchmarkRows(groups, {}, prior, [])
    facts, steps = runner_steps(checkpoint, rows, True, tmp_path / ".parity", Silent())
    assert asdict(facts) == {
        "prompt": None, "batch": 64, "max_length": 2048, "padding_side": "right", "pad_id": 2,
        "pooling_looks_for_id": 2, "rows_with_double_bos": 3, "rows_cut": 0,
    }  # fmt: skip
    assert len(steps) == ALONE + 1
    assert [row.id for row in steps[0].rows] == [group.id for group in groups]
    assert [row.id for row in steps[0].prior_rows] == ["p0", "p1"]
    for before, after in pairwise(steps[LAST:]):  # float32: nothing more to differ
        for part in ("rows", "prior_rows"):
            rewards = ([r.rewards for r in getattr(step, part)] for step in (before, after))
            np.testing.assert_allclose(*rewards, atol=1e-5)


def test_parity_is_for_reward_models_on_rewardbench_1(tmp_path: Path) -> None:
    from rmtrain.cli.rewardbench import rewardbench

    folder = write_model(tmp_path)
    for options in ({"benchmark": "judgebench"}, {"reference_free": "avg"}):
        with pytest.raises(InputError, match="--parity is for a single reward model on rewardbench-1"):
            rewardbench(ckpt=str(folder), parity="float16", **options)  # type: ignore[arg-type]
