"""Micro-batches that a thread packs ahead: the same ones in the same order, and its errors are the trainer's."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rmtrain.training.microbatches import packed_ahead


def numbered(count: int, threads: set[int], end: Exception | None = None) -> Iterator[dict[str, Any]]:
    for number in range(count):
        threads.add(threading.get_ident())
        yield {"number": number}
    if end is not None:
        raise end


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_batches_come_in_order_from_one_other_thread(count: int) -> None:
    threads: set[int] = set()
    assert [batch["number"] for batch in packed_ahead(numbered(count, threads), 4)] == list(range(count))
    assert len(threads) == min(count, 1)
    assert threading.get_ident() not in threads


def test_no_more_is_packed_than_was_asked_for() -> None:
    made: list[int] = []

    def batches() -> Iterator[dict[str, Any]]:
        for number in range(100):
            made.append(number)
            yield {"number": number}

    ahead = packed_ahead(batches(), 3)
    for _ in range(5):
        next(ahead)
    ahead.close()
    assert len(made) <= 5 + 3


def test_an_error_of_the_thread_is_raised_where_its_batch_would_be() -> None:
    ahead = packed_ahead(numbered(3, set(), ZeroDivisionError("by nought")), 2)
    assert [next(ahead)["number"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="by nought"):
        next(ahead)
    assert threading.active_count() == 1 or not any("ThreadPool" in thread.name for thread in threading.enumerate())
