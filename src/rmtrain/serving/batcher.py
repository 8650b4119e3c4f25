"""Requests of many clients → packed batches for one model, and each client's answer back."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rmtrain.data.types import PreferenceGroup, ids_in
from rmtrain.errors import RmtrainError
from rmtrain.serving.figures import Figures
from rmtrain.serving.online import OnlineScorer, RowScore

RowScores = list[list[RowScore | RmtrainError]]
_CHARACTERS = 3  # a token, roughly: only how much is gathered depends on it


class QueueFullError(Exception):
    """More rows wait than the server keeps."""


class StoppedError(Exception):
    """The server stops, and takes no more requests."""


@dataclass(frozen=True)
class BatchLimits:
    """How requests are gathered.

    Attributes:
        tokens: gathered at most, about; the scorer cuts them into forward passes.
        wait_seconds: for further requests, where fewer tokens wait.
        queue_rows: completions that may wait; further requests are refused.
    """

    tokens: int
    wait_seconds: float
    queue_rows: int


@dataclass(frozen=True)
class _Waiting:
    groups: Sequence[PreferenceGroup]
    answer: "asyncio.Future[RowScores]"
    rows: int

    @property
    def prompt(self) -> object:
        """The prompt of its first row, by which requests are gathered; one without rows or prompt is alone."""
        return (self.groups[0].prompt if self.groups else None) or id(self)

    def tokens(self, prompts: set[object]) -> int:
        """About how many tokens it adds to a batch with these prompts, each of which is computed once."""
        return sum(_tokens(group, prompts) for group in self.groups)


class Batcher:
    """A queue in front of a scorer. To be used from one event loop; the model runs in a thread beside it."""

    def __init__(self, scorer: OnlineScorer, limits: BatchLimits, figures: Figures) -> None:
        self._scorer, self._limits, self._figures = scorer, limits, figures
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "rmtrain-scorer")
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to score what is submitted."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Refuse further requests; those that still wait end with StoppedError."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._queue:
            if not waiting.answer.done():
                waiting.answer.set_exception(StoppedError())
        self._queue.clear()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    @property
    def rows_waiting(self) -> int:
        """Completions in the queue whose clients have not hung up."""
        return sum(waiting.rows for waiting in self._queue if not waiting.answer.done())

    async def submit(self, groups: Sequence[PreferenceGroup]) -> RowScores:
        """Scores of one request; a caller that is cancelled gives up its place.

        Raises:
            QueueFullError: too many rows wait.
            StoppedError: the server stops.
        """
        if self._stopped:
            raise StoppedError
        rows = sum(len(group.completions) for group in groups)
        if self._queue and self.rows_waiting + rows > self._limits.queue_rows:
            raise QueueFullError
        answer: asyncio.Future[RowScores] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(groups, answer, rows))
        self._arrived.set()
        return await answer

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            prompts: set[object] = set()
            if sum(waiting.tokens(prompts) for waiting in self._queue) < self._limits.tokens:
                await asyncio.sleep(self._limits.wait_seconds)
            await self._score(self._take())
            if not self._queue:
                self._arrived.clear()

    def _take(self) -> list[_Waiting]:
        """The requests of the next batch: the oldest, those that share its prompt, the next oldest, and so on."""
        there = [waiting for waiting in self._queue if not waiting.answer.done()]  # their clients have not hung up
        first = {waiting.prompt: place for place, waiting in reversed([*enumerate(there)])}
        batch: list[_Waiting] = []
        tokens, prompts = 0, set[object]()
        for waiting in sorted(there, key=lambda waiting: first[waiting.prompt]):
            tokens += waiting.tokens(prompts)
            if batch and tokens > self._limits.tokens:
                break
            batch.append(waiting)
        taken = {id(waiting) for waiting in batch}
        self._queue = deque(waiting for waiting in there if id(waiting) not in taken)
        return batch

    async def _score(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        groups = [
            group._replace(id=f"{number}.{place}")
            for number, waiting in enumerate(batch)
            for place, group in enumerate(waiting.groups)
        ]
        start = time.perf_counter()
        try:
            loop = asyncio.get_running_loop()
            scores = iter(await loop.run_in_executor(self._thread, self._scorer.score_rows, groups))
        except BaseException as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(StoppedError() if isinstance(error, asyncio.CancelledError) else error)
            if isinstance(error, Exception):
                return
            raise
        self._figures.scored(sum(waiting.rows for waiting in batch), time.perf_counter() - start)
        for waiting in batch:
            found = [next(scores) for _ in waiting.groups]
            if not waiting.answer.done():
                waiting.answer.set_result(found)


def _tokens(group: PreferenceGroup, prompts: set[object]) -> int:
    """About how many tokens a group adds to a batch with these prompts; its own is added to them."""
    known = group.prompt in prompts
    prompts.add(group.prompt or object())
    parts = [*(() if known else [group.prompt]), *group.completions]
    whole = [len(ids) for part in parts if (ids := ids_in(part)) is not None]
    if whole:
        return sum(whole)
    return sum(len(message.content) for part in parts for message in part) // _CHARACTERS + len(parts)
