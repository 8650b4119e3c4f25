"""Rewards of many groups: invariance, resuming, memory, numbers that are not finite, several processes."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from conftest import make_groups, make_tokenizer, write_base
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.data.render import Renderer
from rmtrain.data.token_table import group_to_row
from rmtrain.data.tokenize import Tokenization, TokenizedGroup, tokenize_groups
from rmtrain.errors import RunFailedError
from rmtrain.model.batch import GroupSize, Packing, batch_tokens
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone
from rmtrain.scoring import batches, token_budget
from rmtrain.scoring.batches import Rewards, score_groups

BUDGET = 150  # tokens a batch: several batches of several groups


@pytest.fixture(scope="module")
def models(base: Path) -> dict[str, RewardModel]:
    return {
        packing: load_backbone(str(base), None, BackboneOptions("float32", packing=packing), pad_id=0, seed=0)
        for packing in ("shared_prompt", "padding_free", "none")
    }


@pytest.fixture(scope="module")
def model(models: dict[str, RewardModel]) -> RewardModel:
    return models["shared_prompt"]


@pytest.fixture(scope="module")
def groups() -> list[TokenizedGroup]:
    renderer = Renderer.for_tokenizer(make_tokenizer())
    made = make_groups(17, seed=1) + make_groups(6, seed=2, k=2)
    made = [group._replace(id=f"g{i}") for i, group in enumerate(made)]
    return [group for group in tokenize_groups(made, Tokenization(renderer, 512, "error")) if group is not None]


@pytest.fixture(scope="module")
def expected(models: dict[str, RewardModel], groups: list[TokenizedGroup]) -> list[Rewards]:
    """Each group alone, in padded rows."""
    return [score_groups(models["none"], [group], 0, 1)[0] for group in groups]


def near(rewards: Sequence[Rewards], expected: Sequence[Rewards]) -> None:
    assert list(map(len, rewards)) == list(map(len, expected))
    np.testing.assert_allclose(np.concatenate(rewards), np.concatenate(expected), atol=1e-5, rtol=0)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Ids of the groups of every pass through the model."""
    seen: list[list[str]] = []
    original = batches._forward

    def counting(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
        seen.append([group.id for group in groups])
        return original(model, groups, pad_id)

    monkeypatch.setattr(batches, "_forward", counting)
    return seen


# Invariance


@pytest.mark.parametrize("packing", ["shared_prompt", "padding_free", "none"])
@pytest.mark.parametrize("tokens", [1, BUDGET, 100_000])
def test_neither_batch_nor_packing_matter(
    models: dict[str, RewardModel], groups: list[TokenizedGroup], expected: list[Rewards], packing: str, tokens: int
) -> None:
    near(score_groups(models[packing], groups, 0, tokens), expected)


def test_the_order_of_the_groups_is_kept_and_does_not_matter(
    model: RewardModel, groups: list[TokenizedGroup], expected: list[Rewards]
) -> None:
    order = np.random.default_rng(0).permutation(len(groups))
    near(score_groups(model, [groups[i] for i in order], 0, BUDGET), [expected[i] for i in order])


def test_rewards_are_float32_values_in_full(model: RewardModel, groups: list[TokenizedGroup]) -> None:
    rewards = np.concatenate(score_groups(model, groups, 0, BUDGET))
    assert np.array_equal(rewards, rewards.astype(np.float32))
    assert len(set(rewards.tolist())) > 0.9 * len(rewards)


def test_the_model_is_left_as_it_was_and_keeps_no_graph(model: RewardModel, groups: list[TokenizedGroup]) -> None:
    for training in (True, False):
        model.module.train(training)
        score_groups(model, groups[:2], 0, BUDGET)
        assert model.module.training is training


def test_progress_ends_at_all_and_nothing_is_scored_of_nothing(
    model: RewardModel, groups: list[TokenizedGroup]
) -> None:
    seen: list[tuple[int, int]] = []
    score_groups(model, groups, 0, BUDGET, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(groups), len(groups))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert score_groups(model, [], 0, BUDGET) == []


# Going on where it stopped


def interrupted(model: RewardModel, groups: list[TokenizedGroup], partial: Path, after: int) -> None:
    """Score until so many batches are done, then stop as on Ctrl-C."""

    def stop(done: int, total: int) -> None:
        if len(partial.read_text().splitlines()) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_groups(model, groups, 0, BUDGET, partial, stop)


def test_batches_that_are_done_are_not_run_again(
    model: RewardModel, groups: list[TokenizedGroup], tmp_path: Path, forwards: list[list[str]]
) -> None:
    whole = score_groups(model, groups, 0, BUDGET)
    batches = list(forwards)
    partial = tmp_path / "partial"
    interrupted(model, groups, partial, after=3)
    forwards.clear()
    assert score_groups(model, groups, 0, BUDGET, partial) == whole  # bit for bit
    assert forwards == batches[3:]
    forwards.clear()
    assert score_groups(model, groups, 0, BUDGET, partial) == whole
    assert forwards == []


@pytest.mark.parametrize(
    "tail",
    [
        "[3, [1",
        "[3, [1, 2], [[0.1]]]",
        "nonsense\n",
        "7\n",
        "null\n",
        '{"a": 1}\n',
        '["x", [], []]\n',
        "[900, [], []]\n",
    ],
)
def test_a_torn_or_foreign_line_is_cut_off(
    model: RewardModel, groups: list[TokenizedGroup], tmp_path: Path, forwards: list[list[str]], tail: str
) -> None:
    whole = score_groups(model, groups, 0, BUDGET)
    batches = list(forwards)
    partial = tmp_path / "partial"
    interrupted(model, groups, partial, after=2)
    with partial.open("a") as stream:
        stream.write(tail)
    forwards.clear()
    assert score_groups(model, groups, 0, BUDGET, partial) == whole
    assert forwards == batches[2:]
    assert len(partial.read_text().splitlines()) == len(batches)


@pytest.mark.parametrize("tokens", [60, 2 * BUDGET])
def test_what_is_done_stays_done_with_another_budget(
    model: RewardModel,
    groups: list[TokenizedGroup],
    expected: list[Rewards],
    tmp_path: Path,
    forwards: list[list[str]],
    tokens: int,
) -> None:
    partial = tmp_path / "partial"
    interrupted(model, groups, partial, after=3)
    before = {name for names in forwards for name in names}
    forwards.clear()
    near(score_groups(model, groups, 0, tokens, partial), expected)
    assert before.isdisjoint(name for names in forwards for name in names)
    assert before | {name for names in forwards for name in names} == {group.id for group in groups}


def test_a_line_of_other_groups_is_cut_off(
    model: RewardModel, groups: list[TokenizedGroup], tmp_path: Path, forwards: list[list[str]]
) -> None:
    partial = tmp_path / "partial"
    score_groups(model, groups, 0, 100_000, partial)
    forwards.clear()
    near(score_groups(model, groups[:5], 0, 100_000, partial), score_groups(model, groups[:5], 0, 100_000))
    assert len(forwards) == 2  # not one of it was taken up


@given(data=st.data(), packing=st.sampled_from(["shared_prompt", "padding_free", "none"]))
def test_pieces_hold_every_completion_that_is_not_done_once(
    groups: list[TokenizedGroup], data: st.DataObject, packing: Packing
) -> None:
    places = [(i, k) for i, group in enumerate(groups) for k in range(len(group.suffixes))]
    done = set(data.draw(st.lists(st.sampled_from(places), unique=True)))
    planned = data.draw(st.integers(1, 400))
    most = data.draw(st.integers(planned, 800))
    pieces = batches.cut_pieces(groups, done, packing, planned, most)
    assert sorted((piece.group_index, k) for piece in pieces for k in piece.completions) == sorted(set(places) - done)
    for piece in pieces:
        whole = groups[piece.group_index]
        assert [s.tolist() for s in piece.group.suffixes] == [whole.suffixes[k].tolist() for k in piece.completions]
        beside = len(whole.prefix) if packing == "shared_prompt" else 0
        assert len(piece.completions) == 1 or batch_tokens([GroupSize.of(piece.group)], packing) <= min(
            most, planned + beside
        )


def test_a_prompt_as_long_as_a_pass_on_a_cpu_is_run_once(
    model: RewardModel, forwards: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = np.arange(2, 32, dtype=np.int32)
    suffixes = tuple(np.array([token, 5, 2], dtype=np.int32) for token in range(7, 15))
    group = TokenizedGroup("long", "", prompt, suffixes, (), False)
    apart = [score_groups(model, [group._replace(suffixes=(suffix,))], 0, 100)[0][0] for suffix in suffixes]
    monkeypatch.setattr(batches, "CPU_PASS", 30)
    forwards.clear()
    near(score_groups(model, [group], 0, 100), [tuple(apart)])
    assert len(forwards) == 1
    score_groups(model, [group], 0, 45)  # the user's own maximum holds
    assert len(forwards) == 1 + 2


# Memory


def too_large(limit: int) -> Any:
    original = batches._forward

    def forward(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
        if len(groups) > limit:
            raise torch.OutOfMemoryError("no room")
        return original(model, groups, pad_id)

    return forward


@pytest.fixture
def fresh(base: Path) -> RewardModel:
    """A model of which nothing is known yet."""
    return load_backbone(str(base), None, BackboneOptions("float32"), pad_id=0, seed=0)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_what_did_not_fit_is_told_of_once_and_not_tried_again(
    fresh: RewardModel,
    groups: list[TokenizedGroup],
    expected: list[Rewards],
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
) -> None:
    original, passes, most = batches._forward, list[int](), 300

    def forward(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
        passes.append(sum(GroupSize.of(group).distinct_tokens for group in groups))
        if passes[-1] > most:
            raise error
        return original(model, groups, pad_id)

    monkeypatch.setattr(batches, "_forward", forward)
    told: list[str] = []
    near(score_groups(fresh, groups, 0, 900, notify=told.append), expected)
    failed = [tokens for tokens in passes if tokens > most]
    for place, tokens in enumerate(passes):
        assert tokens <= most or all(later <= tokens // 2 for later in passes[place + 1 :])
    assert 1 <= len(failed) <= 2
    assert told == [
        f"out of memory at {failed[0]} tokens per forward pass: continuing with at most {failed[0] // 2}; "
        "lower tokens_per_batch to avoid this"
    ]
    passes.clear()
    near(score_groups(fresh, groups, 0, 900), expected)  # another split, or the next validation
    assert max(passes) <= most


def test_another_error_is_not_taken_for_full_memory(
    model: RewardModel, groups: list[TokenizedGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(batches, "_forward", forward)
    with pytest.raises(RuntimeError, match="shapes differ"):
        score_groups(model, groups, 0, BUDGET)


def test_little_free_memory_makes_small_batches_from_the_start(
    fresh: RewardModel,
    groups: list[TokenizedGroup],
    expected: list[Rewards],
    monkeypatch: pytest.MonkeyPatch,
    forwards: list[list[str]],
    tmp_path: Path,
) -> None:
    width = token_budget.bytes_per_token(fresh.module)
    assert width is not None
    monkeypatch.setattr(token_budget, "free_memory", lambda device: 2 * 300 * width)
    told: list[str] = []
    near(score_groups(fresh, groups, 0, 100_000, tmp_path / "partial", notify=told.append), expected)
    sizes = {group.id: GroupSize.of(group).distinct_tokens for group in groups}
    assert len(forwards) > 1
    assert all(sum(sizes[name] for name in names) <= 300 for names in forwards)
    assert len(told) == 1
    assert "space for about 300 tokens per forward pass, not 2,048" in told[0]  # the most on a CPU
    assert len((tmp_path / "partial").read_text().splitlines()) == 1  # the plan itself does not hang on the memory
    forwards.clear()
    monkeypatch.setattr(token_budget, "free_memory", lambda device: 0)
    score_groups(fresh, groups, 0, 100_000, tmp_path / "partial")
    assert forwards == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_pass_takes_about_the_memory_predicted(dtype: str, tmp_path: Path) -> None:
    """Of a wide model: the largest sum of tensors alive at once, by torch's own record of allocations."""
    config = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = write_base(tmp_path, "llama", max_position_embeddings=512, **config)
    wide = load_backbone(str(folder), None, BackboneOptions(dtype), pad_id=0, seed=0)
    tokens = np.arange(5, 15, dtype=np.int32)
    made = [TokenizedGroup(f"g{i}", "", np.tile(tokens, 10), (np.tile(tokens, 10),) * 2, (), False) for i in range(8)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        batches._forward(wide, made, 0)
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    predicted = token_budget.bytes_per_token(wide.module)
    assert predicted is not None
    total = sum(GroupSize.of(group).distinct_tokens for group in made)
    assert 0.5 < peak / total / predicted < 1 / token_budget._SHARE


def test_a_group_that_does_not_fit_alone_is_named(
    model: RewardModel, groups: list[TokenizedGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_forward", too_large(0))
    tokens = len(groups[3].prefix) + len(groups[3].suffixes[0])
    with pytest.raises(RunFailedError, match=rf"completion of group g3 alone \({tokens} tokens with") as error:
        score_groups(model, [groups[3]], 0, BUDGET)
    assert "data.max_length" in error.value.hint


def test_a_group_that_does_not_fit_is_cut_between_its_completions(
    fresh: RewardModel,
    groups: list[TokenizedGroup],
    expected: list[Rewards],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, completions = batches._forward, list[int]()

    def forward(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
        completions.append(sum(len(group.suffixes) for group in groups))
        if completions[-1] > 1:
            raise torch.OutOfMemoryError("no room")
        return original(model, groups, pad_id)

    monkeypatch.setattr(batches, "_forward", forward)
    wide = [i for i, group in enumerate(groups) if len(group.suffixes) > 2][:3]
    assert wide
    near(score_groups(fresh, [groups[i] for i in wide], 0, 100_000), [expected[i] for i in wide])
    assert completions.count(1) == sum(len(groups[i].suffixes) for i in wide)


def test_under_sharded_weights_a_batch_that_does_not_fit_ends_the_run(
    model: RewardModel, groups: list[TokenizedGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_forward", too_large(2))
    with pytest.raises(RunFailedError, match="out of memory in a forward pass over") as error:
        score_groups(dataclasses.replace(model, sharded=True), groups, 0, 500)
    assert "evaluation.tokens_per_batch" in error.value.hint


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_names_its_group(
    model: RewardModel, groups: list[TokenizedGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    original = batches._forward

    def forward(model: RewardModel, groups: Sequence[TokenizedGroup], pad_id: int) -> list[float]:
        flat, position = original(model, groups, pad_id), 0
        for group in groups:
            if group.id == "g5":
                flat[position + len(group.suffixes) - 1] = value
            position += len(group.suffixes)
        return flat

    monkeypatch.setattr(batches, "_forward", forward)
    partial = tmp_path / "partial"
    with pytest.raises(RunFailedError, match="group g5: a reward is not finite") as error:
        score_groups(model, groups, 0, BUDGET, partial)
    assert "float32 as model.dtype" in error.value.hint
    assert "NaN" not in partial.read_text()
    assert "Infinity" not in partial.read_text()


# Several processes

WORKER = """
import json, sys
from pathlib import Path
from rmtrain.data.token_table import row_to_group
from rmtrain.model.devices import process_state
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.scoring.batches import score_groups
folder, out, *budgets = sys.argv[1:]
state = process_state(timeout_minutes=2)
model = load_backbone(folder, None, BackboneOptions("float32"), pad_id=0, seed=0)
groups = [row_to_group(row) for row in json.loads((Path(out) / "rows.json").read_text())]
for tokens in budgets:
    rewards = score_groups(model, groups, 0, int(tokens), Path(out) / f"partial-{tokens}")
    (Path(out) / f"{tokens}-{state.process_index}.json").write_text(json.dumps([state.num_processes, rewards]))
state.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "budgets"), [(2, [BUDGET]), (3, [300, 100_000])])
def test_any_number_of_processes_gives_the_same_rewards(
    model: RewardModel, groups: list[TokenizedGroup], base: Path, tmp_path: Path, processes: int, budgets: list[int]
) -> None:
    rows = [{**group_to_row(group), "tokens": group_to_row(group)["tokens"].tolist()} for group in groups]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = [str(tmp_path / "worker.py"), str(base), str(tmp_path), *map(str, budgets)]
    done = warm.run(launch + arguments, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    for tokens in budgets:
        alone = score_groups(model, groups, 0, tokens)
        for process in range(processes):
            count, rewards = json.loads((tmp_path / f"{tokens}-{process}.json").read_text())
            assert count == processes
            assert list(map(len, rewards)) == list(map(len, alone))
            np.testing.assert_allclose(np.concatenate(rewards), np.concatenate(alone), atol=1e-6, rtol=0)
        lines = [json.loads(line) for line in (tmp_path / f"partial-{tokens}").read_text().splitlines()]
        assert len(lines) % processes  # they don't divide
        written = [(i, k) for places, _ in lines for i, completions in places for k in completions]
        every = [(i, k) for i, group in enumerate(groups) for k in range(len(group.suffixes))]
        assert sorted(written) == every  # none missing, none doubled
