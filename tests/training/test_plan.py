"""The plan of a run: what is in a step is the seed's choice alone, how it is cut is the machine's."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.model.batch import GroupSize, Packing, batch_tokens
from rmtrain.training.plan import TrainingPlan, interval_steps, plan_training, whole_steps

group_sizes = st.builds(
    GroupSize,
    st.integers(0, 60),
    st.lists(st.integers(1, 40), min_size=2, max_size=5).map(tuple),
)
packings = st.sampled_from(["shared_prompt", "padding_free", "none"])
unhurried = settings(max_examples=60, deadline=None)


def plan(sizes: list[GroupSize], **changes: Any) -> TrainingPlan:
    values: dict[str, Any] = {
        "epochs": 1.0,
        "max_steps": None,
        "global_batch_size": 8,
        "processes": 1,
        "seed": 0,
        "packing": "shared_prompt",
        "max_tokens": None,
        "max_groups": None,
    }
    return plan_training(sizes, **(values | changes))


def batches(made: TrainingPlan) -> list[list[int]]:
    """What is in each step, however it is cut."""
    return [sorted(itertools.chain(*step)) for step in made.steps]


cases = st.fixed_dictionaries(
    {
        "sizes": st.lists(group_sizes, min_size=1, max_size=50),
        "global_batch_size": st.integers(1, 20),
        "processes": st.integers(1, 5),
        "seed": st.integers(0, 2**32 - 1),
        "packing": packings,
        "max_tokens": st.none() | st.integers(1, 800),
        "max_groups": st.none() | st.integers(1, 6),
        "epochs": st.sampled_from([0.3, 1.0, 1.5, 3.0]),
    }
)


@unhurried
@given(cases)
def test_every_group_goes_through_once_an_epoch(case: dict[str, Any]) -> None:
    made = plan(**(case | {"epochs": 3.0}))
    sizes = case["sizes"]
    per_epoch = math.ceil(len(sizes) / case["global_batch_size"])
    assert made.steps_per_epoch == per_epoch
    assert len(made.steps) == 3 * per_epoch
    for epoch in range(3):
        seen = itertools.chain(*batches(made)[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(seen) == list(range(len(sizes)))


@unhurried
@given(cases)
def test_a_global_batch_depends_on_seed_and_size_alone(case: dict[str, Any]) -> None:
    plain = plan(case["sizes"], seed=case["seed"], global_batch_size=case["global_batch_size"], epochs=case["epochs"])
    assert batches(plan(**case)) == batches(plain)


@unhurried
@given(cases)
def test_all_steps_and_processes_have_as_many_microbatches(case: dict[str, Any]) -> None:
    made = plan(**case)
    assert {len(step) for step in made.steps} == {made.accumulation * made.processes}
    shares = [made.share(process) for process in range(made.processes)]
    assert {len(share) for share in shares} == {len(made.steps) * made.accumulation}
    for index, step in enumerate(made.steps):
        mine = [share[index * made.accumulation + m] for m in range(made.accumulation) for share in shares]
        assert mine == step


@unhurried
@given(cases)
def test_a_microbatch_keeps_to_its_limits_unless_it_is_one_group(case: dict[str, Any]) -> None:
    made, sizes = plan(**case), case["sizes"]
    for members in itertools.chain(*made.steps):
        if case["max_groups"]:
            assert len(members) <= case["max_groups"]
        if case["max_tokens"] and len(members) > 1:
            assert batch_tokens([sizes[i] for i in members], case["packing"]) <= case["max_tokens"]


@unhurried
@given(cases)
def test_microbatches_are_empty_only_where_groups_are_fewer(case: dict[str, Any]) -> None:
    made = plan(**case)
    for step in made.steps:
        groups = sum(map(len, step))
        assert sum(1 for members in step if members) == min(groups, len(step))


@unhurried
@given(cases)
def test_there_are_no_more_microbatches_than_groups_and_one_without_limits(case: dict[str, Any]) -> None:
    made, sizes = plan(**case), case["sizes"]
    largest = min(case["global_batch_size"], len(sizes))
    assert made.accumulation <= math.ceil(largest / case["processes"])
    if case["max_tokens"] is None and case["max_groups"] is None:
        assert made.accumulation == 1


@unhurried
@given(cases)
def test_the_heaviest_packed_microbatch_is_at_most_the_mean_and_one_group(case: dict[str, Any]) -> None:
    packing: Packing = "padding_free" if case["packing"] == "none" else case["packing"]
    made, sizes = plan(**(case | {"packing": packing, "max_groups": None})), case["sizes"]
    for step in made.steps:
        loads = [batch_tokens([sizes[i] for i in members], packing) for members in step]
        heaviest = max(batch_tokens([sizes[i]], packing) for i in itertools.chain(*step))
        assert max(loads) <= sum(loads) / len(loads) + heaviest


def test_loads_are_even_on_many_groups() -> None:
    sizes = [GroupSize(20 + 7 * i % 90, (5 + 11 * i % 40, 5 + 13 * i % 60)) for i in range(512)]
    made = plan(sizes, global_batch_size=128, processes=4, max_tokens=1000)
    for step in made.steps:
        loads = [batch_tokens([sizes[i] for i in members], "shared_prompt") for members in step]
        assert max(loads) <= 1.1 * sum(loads) / len(loads)


@unhurried
@given(cases)
def test_the_seed_decides_the_order(case: dict[str, Any]) -> None:
    assert plan(**case) == plan(**case)


def test_epochs_and_seeds_differ_in_order() -> None:
    sizes = [GroupSize(3, (1, 2))] * 40
    two = batches(plan(sizes, epochs=2.0))
    assert two[:5] != two[5:]
    assert two[:5] != batches(plan(sizes, seed=1))
    assert two[:5] == batches(plan(sizes))


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [
        (1.0, None, 10),
        (0.5, None, 5),
        (0.01, None, 1),
        (1.1, None, 11),  # 1.1 * 10 is 11.000000000000002
        (2.25, None, 23),
        (3.0, 7, 7),
        (0.5, 100, 5),
        (1e-9, None, 1),
    ],
)
def test_steps_of_fractional_epochs_and_of_a_limit(epochs: float, max_steps: int | None, steps: int) -> None:
    sizes = [GroupSize(3, (1, 2))] * 78  # nine steps of eight, one of six
    assert len(plan(sizes, epochs=epochs, max_steps=max_steps).steps) == steps


def test_a_last_step_smaller_than_its_microbatches_leaves_some_empty() -> None:
    sizes = [GroupSize(10, (5, 5))] * 9
    made = plan(sizes, global_batch_size=8, processes=2, max_groups=2)
    assert made.accumulation == 2
    assert [sorted(map(len, step)) for step in made.steps] == [[2, 2, 2, 2], [0, 0, 0, 1]]


def test_groups_beyond_the_limit_go_alone_and_ask_for_no_empty_microbatches() -> None:
    sizes = [GroupSize(1000, (100, 100))] * 4
    made = plan(sizes, global_batch_size=4, max_tokens=100)
    assert [sorted(map(len, step)) for step in made.steps] == [[1, 1, 1, 1]]


def test_neighbours_in_length_share_a_padded_microbatch() -> None:
    sizes = [GroupSize(length, (1, 1)) for length in (100, 5, 90, 7, 110, 6)]
    made = plan(sizes, global_batch_size=6, packing="none", max_groups=3)
    assert sorted(map(sorted, made.steps[0])) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(("steps", "whole"), [(0.0, 0), (0.2, 1), (1.0, 1), (0.07 * 100, 7), (1.1 * 10, 11), (2.5, 3)])
def test_whole_steps(steps: float, whole: int) -> None:
    assert whole_steps(steps) == whole


@pytest.mark.parametrize(
    ("every", "total", "steps"),
    [(0.0, 100, 0), (0.25, 10, 3), (0.07, 100, 7), (0.001, 10, 1), (1.0, 10, 1), (7.0, 5, 7)],
)
def test_interval_steps(every: float, total: int, steps: int) -> None:
    assert interval_steps(every, total) == steps
