"""Objectives: their formulas, each group weighing the same, and the same step however the groups are dealt out."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from training_cases import Recorder, make_recipe, make_renderer, make_splits, reward_batch, run
from transformers import AutoModelForSequenceClassification

from rmtrain.data.types import Message, Preference
from rmtrain.model.batch import GroupSize
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.training.checkpointing import verify
from rmtrain.training.microbatches import MicrobatchDataset
from rmtrain.training.objectives import OBJECTIVES, Objective, RewardBatch, bradley_terry, make_objective
from rmtrain.training.plan import plan_training
from rmtrain.training.step_loss import join, loss_of_step, move_averages

unhurried = settings(max_examples=80, deadline=None)


@st.composite
def preferences(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(2, 9))
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] != pair[1]),
            min_size=1,
            max_size=12,
        )
    )
    numbers = st.floats(-30, 30, width=32)
    return {
        "rewards": draw(st.lists(numbers, min_size=count, max_size=count)),
        "better": [better for better, _ in pairs],
        "worse": [worse for _, worse in pairs],
        "weights": draw(st.lists(st.floats(0, 2, width=32), min_size=len(pairs), max_size=len(pairs))),
        "score_gaps": draw(st.lists(st.floats(0, 10, width=32), min_size=len(pairs), max_size=len(pairs))),
        "margin": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "centering": draw(st.sampled_from([0.0, 0.01])),
    }


def batch_of(case: dict[str, Any], **changes: Any) -> Any:
    given = {"weights": case["weights"], "gaps": case["score_gaps"]} | changes
    return reward_batch(torch.tensor(case["rewards"]), case["better"], case["worse"], **given)


@unhurried
@given(preferences())
def test_loss_equals_an_independent_computation(case: dict[str, Any]) -> None:
    rewards = np.asarray(case["rewards"], dtype=np.float64)
    chosen, rejected = rewards[case["better"]], rewards[case["worse"]]
    logits = chosen - rejected - case["margin"] * np.asarray(case["score_gaps"])
    nats = np.log1p(np.exp(-np.abs(logits))) + np.maximum(-logits, 0)
    expected = np.sum(np.asarray(case["weights"]) * (nats + case["centering"] * (chosen + rejected) ** 2))
    made = bradley_terry(batch_of(case), case["margin"], case["centering"])
    assert made.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    alone = [bradley_terry(batch_of(case, weights=row), case["margin"]).item() for row in torch.eye(len(nats))]
    np.testing.assert_allclose(alone, nats, rtol=1e-5, atol=1e-6)
    pairs = batch_of(case).pairs
    np.testing.assert_allclose(pairs[0] - pairs[1], chosen - rejected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_on_pairs_it_is_trls_formula(margin: float, centering: float) -> None:
    torch.manual_seed(0)
    chosen, rejected = (torch.randn(16, requires_grad=True) for _ in range(2))
    gaps = torch.rand(16)
    trl = -logsigmoid(chosen - rejected - margin * gaps).mean() + centering * ((chosen + rejected) ** 2).mean()
    trl.backward()

    rewards = torch.stack([chosen.detach(), rejected.detach()], dim=1).flatten().requires_grad_()
    better = torch.arange(0, 32, 2)
    batch = reward_batch(rewards, better, better + 1, weights=torch.full((16,), 1 / 16), gaps=gaps)
    made = bradley_terry(batch, margin, centering)
    made.backward()  # type: ignore[no-untyped-call]
    assert made.item() == pytest.approx(trl.item(), abs=1e-6)
    assert rewards.grad is not None
    torch.testing.assert_close(rewards.grad, torch.stack([chosen.grad, rejected.grad], dim=1).flatten())  # type: ignore[list-item]


def test_extreme_gaps_stay_finite() -> None:
    rewards = torch.tensor([1e4, -1e4], requires_grad=True)
    for better, worse, nats in ((0, 1, 0.0), (1, 0, 2e4)):
        made = bradley_terry(reward_batch(rewards, [better], [worse]))
        made.backward()  # type: ignore[no-untyped-call]
        assert made.item() == nats
        assert rewards.grad is not None
        assert rewards.grad.isfinite().all()


def test_half_precision_rewards_are_compared_in_float32() -> None:
    rewards = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)
    batch = reward_batch(rewards, [1], [0])
    assert bradley_terry(batch).dtype == torch.float32
    chosen, rejected = batch.pairs
    assert (chosen - rejected).item() == 0.0078125


PLAIN = Objective(partial(bradley_terry, margin=0.5, centering=0.01))


def of_microbatches(
    split: Any,
    rewards: Tensor,
    objective: Objective = PLAIN,
    reads: dict[str, Any] | None = None,
    by_preference: bool = False,
    **changes: Any,
) -> list[Tensor]:
    """Each step's loss as the trainer sums it: the mean over micro-batches and processes.

    `reads` has hidden states as rows beside the rewards, and moving averages.
    """
    reads = reads or {}
    sizes = [GroupSize(prefix, suffixes) for prefix, suffixes in split.lengths()]
    values: dict[str, Any] = {
        "epochs": 1.0,
        "max_steps": None,
        "global_batch_size": 8,
        "processes": 1,
        "seed": 3,
        "packing": "shared_prompt",
        "max_tokens": None,
        "max_groups": None,
    }
    plan = plan_training(sizes, **(values | changes))
    starts = np.cumsum([0] + [len(size.suffixes) for size in sizes])
    steps: list[list[RewardBatch]] = [[] for _ in plan.steps]
    for process in range(plan.processes):
        data = MicrobatchDataset(split, plan, process, "shared_prompt", 0, by_preference=by_preference)
        for place, members in enumerate(data.share):
            batch = data[place]
            step = place // plan.accumulation
            shown = members or next(part for part in plan.steps[step] if part)[:1]
            mine = torch.cat([rewards[starts[i] : starts[i + 1]] for i in shown])
            assert len(mine) == len(batch["ends"])
            part = RewardBatch(mine, batch["preferences"], batch["completions"], averages=reads.get("averages", {}))
            if "states" in reads:
                part = replace(part, states=torch.cat([reads["states"][starts[i] : starts[i + 1]] for i in shown]))
            steps[step].append(part)
    if not objective.whole_step:
        return [torch.stack([objective.loss(part) for part in parts]).mean() for parts in steps]
    losses = []
    for parts in steps:
        still = [part.moved("cpu") for part in parts]
        of_parts = [loss_of_step(objective, still, place, part) for place, part in enumerate(parts)]
        losses.append(torch.stack(of_parts).mean())
    return losses


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    groups = [*make_groups(10, k=2), *(g._replace(id=f"k4-{g.id}") for g in make_groups(9, seed=1, k=4))]
    return make_splits(tmp_path_factory.mktemp("cache"), groups)["train"].tokens


def test_any_split_into_microbatches_and_processes_is_the_same_step(split: Any) -> None:
    torch.manual_seed(0)
    rewards = torch.randn(10 * 2 + 9 * 4, requires_grad=True)
    whole = of_microbatches(split, rewards)
    gradients = [torch.autograd.grad(loss, rewards)[0] for loss in whole]
    for changes in (
        {"max_groups": 1},
        {"max_groups": 3},
        {"max_tokens": 80},
        {"processes": 2},
        {"processes": 3, "max_groups": 2},
        {"processes": 5},  # the last step's three groups leave some micro-batches empty
    ):
        cut = of_microbatches(split, rewards, **changes)
        torch.testing.assert_close(torch.stack(cut), torch.stack(whole))
        for loss, gradient in zip(cut, gradients, strict=True):
            torch.testing.assert_close(torch.autograd.grad(loss, rewards)[0], gradient)


def test_a_step_may_be_the_mean_over_all_its_preferences(split: Any) -> None:
    """As one sum over the pairs, for any split into micro-batches and processes; groups have 1 or 6 preferences."""
    torch.manual_seed(0)
    rewards = torch.randn(10 * 2 + 9 * 4, requires_grad=True)
    starts = np.cumsum([0] + [len(suffixes) for _, suffixes in split.lengths()])
    for changes in ({}, {"max_groups": 1}, {"processes": 5}):
        losses = of_microbatches(split, rewards, by_preference=True, global_batch_size=19, **changes)
        margins = [
            (rewards[starts[i] + p.better], rewards[starts[i] + p.worse], p.gap or 0.0)
            for i in range(len(split))
            for p in split.group(i).preferences
        ]
        terms = [softplus(0.5 * gap - (good - bad)) + 0.01 * (good + bad) ** 2 for good, bad, gap in margins]
        expected = torch.stack(terms).mean()
        torch.testing.assert_close(torch.stack(losses), expected[None])
        found, wanted = (torch.autograd.grad(loss, rewards, retain_graph=True)[0] for loss in (losses[0], expected))
        torch.testing.assert_close(found, wanted)
    objective = Objective(sum_to_zero, whole_step=True)  # it holds that the completions' weights sum to 1
    torch.testing.assert_close(
        of_microbatches(split, rewards, objective, by_preference=True, processes=2),
        of_microbatches(split, rewards, objective, by_preference=True, max_groups=3),
    )


def sum_to_zero(batch: RewardBatch) -> Tensor:
    """An objective of the whole step, and no sum over its parts."""
    weights = batch.completions.weights
    assert weights.sum().item() == pytest.approx(1)
    mean = (weights * batch.rewards).sum()
    return bradley_terry(batch) + 0.3 * mean**2 + (weights * batch.completions.lengths * batch.rewards).sum() ** 2


def test_an_objective_of_the_whole_step_is_the_same_for_any_split(split: Any) -> None:
    torch.manual_seed(0)
    rewards = torch.randn(10 * 2 + 9 * 4, requires_grad=True)
    objective = Objective(sum_to_zero, whole_step=True)
    whole = of_microbatches(split, rewards, objective)
    gradients = [torch.autograd.grad(loss, rewards)[0] for loss in whole]
    for changes in ({"max_groups": 1}, {"max_groups": 3}, {"processes": 2}, {"processes": 5, "max_groups": 2}):
        cut = of_microbatches(split, rewards, objective, **changes)
        torch.testing.assert_close(torch.stack(cut), torch.stack(whole))
        for loss, gradient in zip(cut, gradients, strict=True):
            torch.testing.assert_close(torch.autograd.grad(loss, rewards)[0], gradient)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_trainer_gives_an_objective_all_that_it_reads(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """The whole step under any accumulation, hidden states, and averages that a resumed run goes on with."""
    seen: list[tuple[float, Tensor]] = []

    def loss(batch: RewardBatch) -> Tensor:
        seen.append((batch.averages.get("reward", 0.0), batch.rewards.detach()))
        return sum_to_zero(batch)

    def observe(batch: RewardBatch) -> dict[str, Tensor]:
        assert batch.states is not None
        assert len(batch.states) == len(batch.rewards)
        weights = batch.completions.weights
        return {"reward": torch.stack([(weights * batch.rewards).sum(), weights.sum()])}

    objective = Objective(loss, whole_step=True, observe=observe, decay=0.5)
    monkeypatch.setitem(OBJECTIVES, "bradley_terry", lambda section: objective)
    figures = []
    for tokens in (90, 100_000):
        display = Recorder()
        seen.clear()
        changes: dict[str, Any] = {"optim__tokens_per_microbatch": tokens, "lora__dropout": dropout}
        result = run(base, tmp_path / str(tokens), display=display, evaluation__every=0.0, **changes)
        figures.append([line["loss"] for line in display.lines if "loss" in line])
        assert len({average for average, _ in seen}) == 6  # one a step, the first 0
        if tokens == 90:  # the pass before has the rewards, to the bit and with dropout, of the one with gradients
            first = [rewards for average, rewards in seen if average == 0.0]
            assert len(first) > 1
            assert all(torch.equal(rewards, first[0]) for rewards in first)
    if not dropout:
        assert figures[0] == pytest.approx(figures[1], abs=1e-5)
    checkpoint = verify(result.run / "checkpoints/checkpoint-6")
    assert checkpoint["averages"].keys() == {"reward"}


def test_a_moving_average_begins_with_the_first_mean() -> None:
    observed = [{"x": torch.tensor([1.0, 1.0])}, {"x": torch.tensor([5.0, 2.0])}]
    first = move_averages({}, observed, 0.9)
    assert first == {"x": pytest.approx(2.0)}
    assert move_averages(first, [{"x": torch.tensor([12.0, 1.0])}], 0.9) == {"x": pytest.approx(3.0)}


def test_the_recipes_settings_reach_the_objective(base: Path, tmp_path: Path) -> None:
    section = make_recipe(base, tmp_path, loss__margin=0.5, loss__centering=0.01).loss
    batch = reward_batch(torch.tensor([0.2, 1.0]), [0], [1], gaps=torch.tensor([2.0]))
    assert make_objective(section).loss(batch).item() == pytest.approx(np.log1p(np.exp(1.8)) + 0.01 * 1.44)


def test_completions_know_their_group_length_and_score(tmp_path: Path) -> None:
    (group,) = make_groups(1, k=4)
    group = group._replace(completions=(*group.completions[:3], group.completions[0]), scores=(1.0, 2.0, 3.0, 4.0))
    other = make_groups(1, seed=1, k=2)[0]._replace(id="other")
    tokens = make_splits(tmp_path, [group, other])["train"].tokens
    sizes = [GroupSize(prefix, suffixes) for prefix, suffixes in tokens.lengths()]
    plan = plan_training(
        sizes, epochs=1, max_steps=None, global_batch_size=2, processes=1, seed=0, packing="shared_prompt",
        max_tokens=None, max_groups=None,
    )  # fmt: skip
    batch = MicrobatchDataset(tokens, plan, 0, "shared_prompt", 0)[0]
    rows, order = batch["completions"], plan.steps[0][0]
    by_group = [rows._replace(**{n: v[rows.groups == place] for n, v in rows._asdict().items()}) for place in (0, 1)]
    first, second = by_group if order == [0, 1] else by_group[::-1]
    assert first.lengths.tolist() == list(sizes[0].suffixes)
    assert first.scores.tolist() == [2.5, 2.0, 3.0]  # equal completions have the mean of their scores
    assert first.weights.tolist() == pytest.approx([1 / 6] * 3)
    assert second.scores.isnan().all()
    assert rows.weights.sum().item() == pytest.approx(1)


def test_joined_batches_keep_their_preferences_and_groups_apart() -> None:
    parts = [reward_batch(torch.tensor(rewards), [0], [1]) for rewards in ([1.0, 2.0, 3.0], [4.0, 5.0])]
    whole = join(parts)
    assert whole.preferences.better.tolist() == [0, 3]
    assert whole.preferences.worse.tolist() == [1, 4]
    assert whole.completions.groups.tolist() == [0, 0, 0, 1, 1]


def test_each_group_weighs_the_same_whatever_its_k(split: Any) -> None:
    """The step's loss is the mean over groups of the mean over a group's preferences."""
    rewards = torch.linspace(-2, 2, 10 * 2 + 9 * 4, dtype=torch.float64)
    means, start = [], 0
    for index in range(len(split)):
        group = split.group(index)
        chosen = np.asarray([rewards[start + p.better] for p in group.preferences])
        rejected = np.asarray([rewards[start + p.worse] for p in group.preferences])
        gaps = np.asarray([p.gap or 0.0 for p in group.preferences])
        nats = np.log1p(np.exp(-(chosen - rejected - 0.5 * gaps))) + 0.01 * (chosen + rejected) ** 2
        means.append(nats.mean())
        start += len(group.suffixes)
    (loss,) = of_microbatches(split, rewards.float(), global_batch_size=100)
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-5)


@pytest.mark.parametrize("packing", ["shared_prompt", "none"])
def test_equal_completions_are_trained_on_as_if_each_were_there(base: Path, tmp_path: Path, packing: Any) -> None:
    """The loss of a group with completions of the same tokens, against each sequence alone in plain transformers."""
    texts = ("w1 w2", "w9 w8 w7", "w1  w2", "w20")
    pairs = [(0, 1, 2.0), (2, 1, 1.0), (3, 0, 0.5), (3, 2, None)]
    group = make_groups(1)[0]._replace(
        completions=tuple((Message("assistant", text),) for text in texts),
        preferences=tuple(Preference(*pair) for pair in pairs),
    )
    split = make_splits(tmp_path, [group])["train"].tokens
    model = load_backbone(str(base), None, BackboneOptions("float32", packing=packing), pad_id=0, seed=0)
    sizes = [GroupSize(prefix, suffixes) for prefix, suffixes in split.lengths()]
    plan = plan_training(
        sizes, epochs=1, max_steps=None, global_batch_size=1, processes=1, seed=0, packing=packing, max_tokens=None,
        max_groups=None,
    )  # fmt: skip
    batch = MicrobatchDataset(split, plan, 0, packing, 0)[0]
    assert len(batch["ends"]) == len(split.group(0).suffixes) == 3
    inputs = {
        key: batch[key] for key in ("input_ids", "position_ids", "attention_mask", "ends", "layout") if key in batch
    }
    rewards = model.module(**inputs).logits
    made = bradley_terry(RewardBatch(rewards, batch["preferences"], batch["completions"]), 0.3, 0.01)

    renderer = make_renderer()
    plain = [renderer.tokenize([group.prompt + completion])[0] for completion in group.completions]
    plainly = load_alone(base, model)
    alone = [plainly(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in plain]
    nats = [
        np.log1p(np.exp(-(alone[b] - alone[w] - 0.3 * (gap or 0.0)))) + 0.01 * (alone[b] + alone[w]) ** 2
        for b, w, gap in pairs
    ]
    assert made.item() == pytest.approx(np.mean(nats), rel=1e-5)


def load_alone(base: Path, model: Any) -> Any:
    """The same weights in transformers' own class."""
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    plain.load_state_dict(model.module.state_dict())
    return plain.eval()


def test_an_empty_microbatch_has_neither_weight_nor_counts(split: Any, tmp_path: Path) -> None:
    sizes = [GroupSize(prefix, suffixes) for prefix, suffixes in split.lengths()]
    plan = plan_training(
        sizes,
        epochs=1.0,
        max_steps=None,
        global_batch_size=18,
        processes=2,
        seed=0,
        packing="shared_prompt",
        max_tokens=None,
        max_groups=None,
    )
    batches = [MicrobatchDataset(split, plan, process, "shared_prompt", 0)[1] for process in range(2)]
    assert [batch["counts"]["groups"] for batch in batches] == [1, 0]
    assert batches[1]["counts"] == dict.fromkeys(batches[1]["counts"], 0)
    assert not batches[1]["preferences"].weights.any()
    assert not batches[1]["completions"].weights.any()
    assert batches[1]["input_ids"].numel()  # it still goes through the model: collectives need all processes
