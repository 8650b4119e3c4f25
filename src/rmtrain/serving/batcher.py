"""Requests of many clients → packed batches for one model, and an answer for each client."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rmtrain.data.types import PreferenceGroup, ids_in
from rmtrain.errors import RmtrainError
from rmtrain.serving.counters import Counters
from rmtrain.serving.online import OnlineScorer, RowScore

RowScores = list[list[RowScore | RmtrainError]]
_CHARACTERS = 3  # per token, roughly; it only affects the size of batches


class QueueFullError(Exception):
    """The queue is full."""


class StoppedError(Exception):
    """The server is stopping and takes no more requests."""


@dataclass(frozen=True)
class BatchLimits:
    """How requests are gathered."""

    tokens: int  # approximate maximum to gather; the scorer splits them into forward passes
    wait_seconds: float  # time to wait for further requests if fewer tokens are waiting
    queue_rows: int  # maximum number of waiting completions; further requests are refused


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
        """About how many tokens the request adds to a batch with these prompts, each computed once."""
        return sum(_tokens(group, prompts) for group in self.groups)


class Batcher:
    """A queue in front of a scorer, for use from one event loop; the model runs in a separate thread."""

    def __init__(self, scorer: OnlineScorer, limits: BatchLimits, counters: Counters) -> None:
        self._scorer, self._limits, self._counters = scorer, limits, counters
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "rmtrain-scorer")
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start scoring submitted requests."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Refuse further requests; waiting ones end with StoppedError."""
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
        """Completions in the queue whose clients are still connected."""
        return sum(waiting.rows for waiting in self._queue if not waiting.answer.done())

    async def submit(self, groups: Sequence[PreferenceGroup]) -> RowScores:
        """Scores of one request; a cancelled caller leaves the queue.

        Raises:
            QueueFullError: too many rows are waiting.
            StoppedError: the server is stopping.
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
        connected = [waiting for waiting in self._queue if not waiting.answer.done()]
        first = {waiting.prompt: place for place, waiting in reversed([*enumerate(connected)])}
        batch: list[_Waiting] = []
        tokens, prompts = 0, set[object]()
        for waiting in sorted(connected, key=lambda waiting: first[waiting.prompt]):
            tokens += waiting.tokens(prompts)
            if batch and tokens > self._limits.tokens:
                break
            batch.append(waiting)
        taken = {id(waiting) for waiting in batch}
        self._queue = deque(waiting for waiting in connected if id(waiting) not in taken)
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
        self._counters.scored(sum(waiting.rows for waiting in batch), time.perf_counter() - start)
        for waiting in batch:
            answer = [next(scores) for _ in waiting.groups]
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


def _tokens(group: PreferenceGroup, prompts: set[object]) -> int:
    """About how many tokens a group adds to a batch with these prompts; its own is added to them."""
    known = group.prompt in prompts
    prompts.add(group.prompt or object())
    parts = [*(() if known else [group.prompt]), *group.completions]
    whole = [len(ids) for part in parts if (ids := ids_in(part)) is not None]
    if whole:
        return sum(whole)
    return sum(len(message.content) for part in parts for message in part) // _CHARACTERS + len(parts)
