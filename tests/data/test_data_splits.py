"""Hold-outs, leaks and limits."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.digests import Digests, digests
from rmtrain.data.splits import find_leaks, hold_out, leak_key, mark_beyond_limit, mark_leaks
from rmtrain.data.types import Message
from rmtrain.errors import DataError


def key(text: str) -> bytes:
    return leak_key((Message("user", text),))


def keys_of(texts: Iterable[object]) -> Digests:
    return digests(key(str(text)) for text in texts)


def test_leak_keys_ignore_white_space_case_and_system_messages() -> None:
    same = [(Message("user", "What is  this\n?"),), (Message("system", "s"), Message("user", " what is THIS ?"))]
    assert leak_key(same[0]) == leak_key(same[1])
    assert leak_key(same[0]) != key("what is that ?")


def test_hold_out_is_exact_for_unique_prompts() -> None:
    keys = keys_of(range(1000))
    assignment = hold_out(keys, {"validation": 37, "test": 0.1}, seed=3)
    assert (assignment.count("validation"), assignment.count("test"), assignment.count(None)) == (37, 100, 863)
    assert hold_out(keys, {"validation": 0.3}, seed=0).count("validation") == 300  # 0.3 * 1000 is 299.99...


def test_hold_out_does_not_depend_on_the_order_of_the_rows_nor_on_a_later_split() -> None:
    texts = [str(i % 300) for i in range(500)]
    shares: dict[str, int | float] = {"validation": 40, "test": 60}
    assignment = dict(zip(texts, hold_out(keys_of(texts), shares, 1), strict=True))
    shuffled = random.Random(0).sample(texts, len(texts))
    assert dict(zip(shuffled, hold_out(keys_of(shuffled), shares, 1), strict=True)) == assignment
    alone = hold_out(keys_of(texts), {"validation": 40}, 1)
    assert [s for s in alone if s] == [s for s in map(assignment.get, texts) if s == "validation"]
    other_seed = hold_out(keys_of(texts), shares, 2)
    assert other_seed != [assignment[t] for t in texts]


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=4, max_size=40), st.integers(1, 3), st.integers(0, 5))
def test_a_prompt_has_one_assignment_and_the_share_is_reached(prompts: list[int], share: int, seed: int) -> None:
    keys = keys_of(prompts)
    try:
        assignment = hold_out(keys, {"test": share}, seed)
    except DataError:
        return
    assert all(len({split for p, split in zip(prompts, assignment, strict=True) if p == q}) == 1 for q in prompts)
    held = [p for p, split in zip(prompts, assignment, strict=True) if split]
    assert len(held) >= share
    smallest_last = min(held.count(p) for p in held)
    assert len(held) - share < max(held.count(p) for p in held)
    assert smallest_last >= 1


@pytest.mark.parametrize("share", [10, 11, 0.99])
def test_hold_out_leaves_something_to_train_on(share: int | float) -> None:
    with pytest.raises(DataError, match="leaves no training rows: the source has 10 rows"):
        hold_out(keys_of(range(10)), {"test": share}, 0)


@pytest.mark.parametrize("share", [0.049, 0.001])
def test_a_share_of_less_than_half_a_row_is_an_error(share: float) -> None:
    with pytest.raises(DataError, match=f"data.holdout.test = {share} holds out no row: the source has 10 rows"):
        hold_out(keys_of(range(10)), {"test": share}, 0)


def test_leaks_are_counted_between_every_two_splits() -> None:
    splits = {
        "train": keys_of(["a", "A ", "b", "c"]),
        "validation": keys_of("ad"),
        "test": keys_of("dbe"),
    }
    assert find_leaks(splits, drop=True) == [
        ("train", "validation", 1, 2, True),
        ("train", "test", 1, 1, True),
        ("validation", "test", 1, 1, False),
    ]
    assert mark_leaks(splits["train"], [splits["validation"], splits["test"]]).tolist() == [True, True, True, False]
    assert find_leaks({"train": splits["train"]}, drop=True) == []


def test_limit_draws_by_seed() -> None:
    marks = mark_beyond_limit(100, 30, seed=1)
    assert marks.count(False) == 30
    assert marks == mark_beyond_limit(100, 30, seed=1) != mark_beyond_limit(100, 30, seed=2)
    assert not any(mark_beyond_limit(10, 30, seed=1))
