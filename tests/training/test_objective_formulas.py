"""Every objective equals an independent computation in float64, in value and gradient, under any split of a step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_groups
from test_objectives import of_microbatches
from training_cases import Recorder, make_recipe, make_splits, reward_batch, run

from rmtrain.data.types import Preference
from rmtrain.errors import DataError
from rmtrain.recipe.rules import conflicts
from rmtrain.recipe.schema import LossSection
from rmtrain.training.build import plan_run
from rmtrain.training.objectives import (
    DISTANCE,
    OBJECTIVES,
    THRESHOLD,
    RewardBatch,
    bradley_terry,
    length_decorrelation,
    make_objective,
    plackett_luce,
)
from rmtrain.training.step_loss import move_averages


class Row(NamedTuple):
    """A group as the references see it."""

    preferences: list[tuple[int, int, float]]  # better, worse, gap
    scores: Sequence[float]
    lengths: Sequence[int]
    states: np.ndarray


Rewards = list[np.ndarray]  # by group
Reference = Callable[[Rewards, list[Row]], float]


def pairwise(loss: Callable[[float, float, float, float], float]) -> Reference:
    """The mean over groups of the mean over preferences of a loss of r_better, r_worse, gap and hidden distance."""

    def mean(rewards: Rewards, rows: list[Row]) -> float:
        means = []
        for r, row in zip(rewards, rows, strict=True):
            far = [float(np.linalg.norm(row.states[b] - row.states[w])) for b, w, _ in row.preferences]
            losses = [loss(r[b], r[w], gap, d) for (b, w, gap), d in zip(row.preferences, far, strict=True)]
            means.append(np.mean(losses))
        return float(np.mean(means))

    return mean


def nats(gap: float) -> float:
    return math.log1p(math.exp(-gap))


def rankings(rewards: Rewards, rows: list[Row]) -> float:
    """From best to worst score: the chance that this completion is drawn before all of lower score."""
    means = []
    for r, row in zip(rewards, rows, strict=True):
        below = [[j for j in range(len(r)) if row.scores[j] < row.scores[i]] for i in range(len(r))]
        losses = [math.log1p(sum(math.exp(r[j] - r[i]) for j in js)) for i, js in enumerate(below) if js]
        means.append(np.mean(losses))
    return float(np.mean(means))


def flat(values: Sequence[Any], rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(values), np.concatenate([np.full(len(v), 1 / len(v) / len(rows)) for v in values])


def squared_correlation(rewards: Rewards, rows: list[Row]) -> float:
    values, weights = flat(rewards, rows)
    covariance = np.cov(values, np.concatenate([row.lengths for row in rows]), aweights=weights, ddof=0)
    return float(covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1]))


def squared_mean(rewards: Rewards, rows: list[Row]) -> float:
    return float(np.mean([r.mean() for r in rewards]) ** 2)


def squared_errors(rewards: Rewards, rows: list[Row]) -> float:
    return float(np.mean([np.mean((r - row.scores) ** 2) for r, row in zip(rewards, rows, strict=True)]))


AVERAGES = {DISTANCE: 1.7, THRESHOLD.format(0): 0.2, THRESHOLD.format(1): -0.5}


def graded(*log_widths: float) -> Reference:
    """Gaps of 1, 2 and 3 are three grades."""

    def chance(above: float, gap: float) -> float:
        first, second = math.exp(log_widths[0]), math.exp(log_widths[0]) + math.exp(log_widths[1])
        low, high = {1.0: (0.0, first), 2.0: (first, second), 3.0: (second, math.inf)}[gap]
        return 1 / (1 + math.exp(low - above)) - (1 / (1 + math.exp(high - above)) if high < math.inf else 0)

    return pairwise(lambda b, w, gap, far: -math.log(chance(b - w, gap)))


PLAIN = pairwise(lambda b, w, gap, far: nats(b - w))
CASES: dict[str, tuple[dict[str, Any], Reference]] = {
    "smoothed": (
        {"label_smoothing": 0.1, "margin": 0.3, "centering": 0.02},
        pairwise(
            lambda b, w, gap, far: (
                0.9 * nats(b - w - 0.3 * gap) + 0.1 * nats(-(b - w - 0.3 * gap)) + 0.02 * (b + w) ** 2
            )
        ),
    ),
    "scaled": (
        {"objective": "scaled", "gap_unit": 2.0, "weight_range": (0.6, 1.2), "centering": 0.02},
        pairwise(lambda b, w, gap, far: min(max(gap / 2, 0.6), 1.2) * (nats(b - w) + 0.02 * (b + w) ** 2)),
    ),
    "hinge": (
        {"objective": "hinge", "margin": 0.3, "centering": 0.02},
        pairwise(lambda b, w, gap, far: max(0.0, 1 + 0.3 * gap - (b - w)) + 0.02 * (b + w) ** 2),
    ),
    "norm_bt": ({"objective": "norm_bt"}, pairwise(lambda b, w, gap, far: 1.7 / (far + 1e-6) * nats(b - w))),
    "plackett_luce": (
        {"objective": "plackett_luce", "centering": 0.02},
        lambda r, x: rankings(r, x) + pairwise(lambda b, w, gap, far: 0.02 * (b + w) ** 2)(r, x),
    ),
    "ordinal": ({"objective": "ordinal", "grades": [1.5, 2.5]}, graded(0.2, -0.5)),
    "ordinal with a term": (
        {"objective": "ordinal", "grades": [1.5, 2.5], "centering": 0.02, "sum_to_zero": 0.4},
        lambda r, x: (
            graded(0.2, -0.5)(r, x)
            + pairwise(lambda b, w, gap, far: 0.02 * (b + w) ** 2)(r, x)
            + 0.4 * squared_mean(r, x)
        ),
    ),
    "regression": ({"objective": "regression"}, squared_errors),
    "sum_to_zero": ({"sum_to_zero": 0.4}, lambda r, x: PLAIN(r, x) + 0.4 * squared_mean(r, x)),
    "length_decorrelation": (
        {"length_decorrelation": 0.7},
        lambda r, x: PLAIN(r, x) + 0.7 * squared_correlation(r, x),
    ),
    "all terms on a ranking": (
        {"objective": "plackett_luce", "sum_to_zero": 0.4, "length_decorrelation": 0.7},
        lambda r, x: rankings(r, x) + 0.4 * squared_mean(r, x) + 0.7 * squared_correlation(r, x),
    ),
}


def scored_groups(count: int, k: int, seed: int) -> list[Any]:
    """Groups with graded scores, some equal, and the preferences that follow from them."""
    rng, groups = np.random.default_rng(seed), []
    for group in make_groups(count, seed=seed, k=k):
        scores = tuple(float(score) for score in rng.integers(1, 5, k))
        scores = scores if len({*scores}) > 1 else (scores[0] + 1, *scores[1:])
        pairs = [(a, b) for a in range(k) for b in range(k) if scores[a] > scores[b]]
        preferences = tuple(Preference(a, b, scores[a] - scores[b]) for a, b in pairs)
        groups.append(group._replace(id=f"k{k}-{group.id}", preferences=preferences, scores=scores))
    return groups


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    groups = [*scored_groups(8, 2, 0), *scored_groups(7, 4, 1)]
    return make_splits(tmp_path_factory.mktemp("cache"), groups)["train"].tokens


@pytest.mark.parametrize("case", CASES)
def test_an_objective_equals_an_independent_computation_under_any_split(split: Any, case: str) -> None:
    settings, reference = CASES[case]
    groups, rng = [split.group(place) for place in range(len(split))], np.random.default_rng(3)
    sizes = [len(group.suffixes) for group in groups]
    rewards, states = rng.normal(size=sum(sizes)), rng.normal(size=(sum(sizes), 6)).astype(np.float32)
    starts = np.cumsum(sizes)[:-1]
    rows = [
        Row([(p.better, p.worse, p.gap) for p in g.preferences], g.suffix_scores(), [*map(len, g.suffixes)], own)
        for g, own in zip(groups, np.split(states.astype(float), starts), strict=True)
    ]

    def at(values: np.ndarray) -> float:
        return reference(np.split(values, starts), rows)

    steps = 1e-5 * np.eye(len(rewards))
    gradient = [(at(rewards + step) - at(rewards - step)) / 2e-5 for step in steps]
    given = torch.tensor(rewards, dtype=torch.float32, requires_grad=True)
    objective = make_objective(LossSection(**settings))
    reads = {"states": torch.tensor(states), "averages": AVERAGES}
    for changes in ({}, {"max_groups": 1}, {"max_tokens": 80}, {"processes": 2}, {"processes": 4, "max_groups": 2}):
        (loss,) = of_microbatches(split, given, objective, reads=reads, global_batch_size=100, **changes)
        assert loss.item() == pytest.approx(at(rewards), rel=1e-5)
        found = torch.autograd.grad(loss, given)[0].numpy()
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_thresholds_take_a_step_of_gradient_descent_the_same_for_any_split(split: Any) -> None:
    groups, rng = [split.group(place) for place in range(len(split))], np.random.default_rng(3)
    sizes = [len(group.suffixes) for group in groups]
    rewards = np.split(rng.normal(size=sum(sizes)), np.cumsum(sizes)[:-1])
    rows = [
        Row([(p.better, p.worse, p.gap) for p in g.preferences], (), (), np.zeros((len(g.suffixes), 1))) for g in groups
    ]

    def slope(place: int) -> float:
        low, high = ([(AVERAGES[THRESHOLD.format(k)]) + sign * 1e-5 * (k == place) for k in (0, 1)] for sign in (-1, 1))
        return (graded(*high)(rewards, rows) - graded(*low)(rewards, rows)) / 2e-5

    objective = make_objective(LossSection(objective="ordinal", grades=[1.5, 2.5]))
    observed: list[Any] = []

    def loss(batch: RewardBatch) -> torch.Tensor:
        assert objective.observe is not None
        observed.append(objective.observe(batch))
        return objective.loss(batch)

    given, spied = torch.tensor(np.concatenate(rewards), dtype=torch.float32), replace(objective, loss=loss)
    for changes in ({}, {"processes": 2, "max_groups": 2}):
        observed.clear()
        of_microbatches(split, given, spied, reads={"averages": AVERAGES}, global_batch_size=100, **changes)
        after = move_averages(AVERAGES, observed, objective.decay)
        for place in (0, 1):
            name = THRESHOLD.format(place)
            assert after[name] == pytest.approx(AVERAGES[name] - 0.1 * slope(place), abs=1e-5)


def test_a_soft_label_is_the_share_of_the_stated_preference() -> None:
    rewards = torch.tensor([0.3, -0.4, 1.0], requires_grad=True)
    batch = reward_batch(rewards, [0, 1], [1, 2], probabilities=[0.8, 0.5])
    expected = 0.8 * nats(0.7) + 0.2 * nats(-0.7) + 0.5 * nats(-1.4) + 0.5 * nats(1.4)
    assert bradley_terry(batch).item() == pytest.approx(expected)
    smoothed = 0.74 * nats(0.7) + 0.26 * nats(-0.7) + 0.5 * nats(-1.4) + 0.5 * nats(1.4)
    assert bradley_terry(batch, label_smoothing=0.1).item() == pytest.approx(smoothed)
    level = torch.zeros(2, requires_grad=True)
    bradley_terry(reward_batch(level, [0], [1], probabilities=[0.5])).backward()  # type: ignore[no-untyped-call]
    assert level.grad is not None
    assert not level.grad.any()  # a tie pulls equal rewards nowhere


def test_a_ranking_of_two_is_bradley_terry_and_repeated_preferences_count_once() -> None:
    rewards = torch.tensor([0.3, -0.4])
    once = reward_batch(rewards, [0], [1])
    assert plackett_luce(once).item() == pytest.approx(bradley_terry(once).item())
    twice = reward_batch(rewards, [0, 0], [1, 1], weights=[0.5, 0.5])
    assert plackett_luce(twice).item() == pytest.approx(bradley_terry(once).item())


def test_equal_lengths_or_rewards_have_no_correlation_to_lower() -> None:
    for rewards in (torch.tensor([0.3, -0.4], requires_grad=True), torch.zeros(2, requires_grad=True)):
        loss = length_decorrelation(reward_batch(rewards, [0], [1]))
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.item() == 0
        assert rewards.grad is not None
        assert rewards.grad.isfinite().all()


def test_hidden_distances_are_averaged_over_steps_the_same_for_any_split(base: Path, tmp_path: Path) -> None:
    figures = []
    for tokens in (90, 100_000):
        display = Recorder()
        run(
            base, tmp_path / str(tokens), display=display, optim__tokens_per_microbatch=tokens, optim__max_steps=3,
            loss__objective="norm_bt", lora__dropout=0.0, evaluation__every=0.0,
        )  # fmt: skip
        figures.append([line["loss"] for line in display.lines if "loss" in line])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("scaled", "scaled needs scores, and 2 of 3 training preferences have no score gap"),
        ("regression", "regression needs scores, and 1 of 2 training groups have no scores"),
    ],
)
def test_rows_without_the_scores_that_an_objective_reads_are_refused(
    base: Path, tmp_path: Path, objective: str, said: str
) -> None:
    first, second = scored_groups(2, 2, 0)
    bare = second._replace(scores=None, preferences=(Preference(0, 1), Preference(1, 0)))
    recipe = make_recipe(base, tmp_path, loss__objective=objective)
    with pytest.raises(DataError, match=said):
        plan_run(recipe, make_splits(tmp_path, [first, bare]), 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"objective": "plackett_luce", "margin": 0.1},
            "loss.margin is not supported with the objective plackett_luce",
        ),
        ({"objective": "regression", "centering": 0.1}, "loss.centering is not"),
        ({"objective": "hinge", "label_smoothing": 0.1}, "loss.label_smoothing is not"),
        ({"gap_unit": 2.0}, "loss.gap_unit is not supported with the objective bradley_terry"),
        ({"objective": "norm_bt", "length_decorrelation": 0.1}, "loss.length_decorrelation is not"),
        ({"objective": "norm_bt", "sum_to_zero": 0.1}, "loss.sum_to_zero is not"),
        ({"objective": "ordinal"}, "loss.objective ordinal needs loss.grades"),
        ({"objective": "ordinal", "grades": [2.0, 1.0]}, "loss.grades the gaps are not in ascending order"),
        ({"grades": [1.0]}, "loss.grades is not supported with the objective bradley_terry"),
        ({"objective": "scaled", "weight_range": (2.0, 1.0)}, "loss.weight_range the smallest weight is above"),
        ({"objective": "scaled", "weight_range": (1.0, 2.0), "sum_to_zero": 0.1}, None),
    ],
)
def test_settings_that_an_objective_does_not_read_are_refused(
    base: Path, tmp_path: Path, settings: dict[str, Any], said: str | None
) -> None:
    recipe = make_recipe(base, tmp_path)
    recipe = recipe.model_copy(update={"loss": LossSection(**settings)})
    found = [f"{conflict.keys[0]} {conflict.message}" for conflict in conflicts(recipe)]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_every_objective_of_the_schema_is_in_the_registry_and_under_test() -> None:
    named = {settings.get("objective", "bradley_terry") for settings, _ in CASES.values()}
    assert {*LossSection.model_json_schema()["properties"]["objective"]["enum"]} == {*OBJECTIVES} == named
