"""A scorer shared by many callers: groups in memory → their scores, with a lock around the model."""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from rmtrain.data.types import PreferenceGroup, ids_in
from rmtrain.display import Silent
from rmtrain.errors import InputError, RmtrainError, RunFailedError, first_line
from rmtrain.runs import locate_model
from rmtrain.scoring.kinds import open_scorer
from rmtrain.scoring.scorer import GroupScore, Scorer, ScorerInfo, ScorerRequest, ScoringOptions, ScoringTask
from rmtrain.serving.texts import TextReader

_logger = logging.getLogger("rmtrain")
_SHARED = 300  # characters of token ids as JSON, about 50 tokens: worth sharing


class LogOnce(Silent):
    """A display that writes each line once to the log of Python, under the name `rmtrain`."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def note(self, line: str) -> None:
        """Log a line as a warning, unless it was logged before."""
        if line not in self._seen:
            self._seen.add(line)
            _logger.warning(line)


class RowScore(NamedTuple):
    """A scorer's result for one completion."""

    reward: float
    truncated: bool
    tokens: int = 0  # tokens of prompt and completion


@dataclass(frozen=True)
class OnlineScorer:
    """A scorer in this process, shared by any number of threads."""

    scorer: Scorer
    name: str  # the model's name in logs and replies
    tokens_per_batch: int  # maximum tokens per forward pass
    reader: TextReader  # reads conversations that a chat template has already rendered
    _display: LogOnce = field(default_factory=LogOnce)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(
        cls,
        ckpt: str,
        options: ScoringOptions = ScoringOptions(),  # noqa: B008 - a frozen value
        device: str | None = None,
        tokens_per_batch: int | None = None,
        verify: bool = True,
    ) -> "OnlineScorer":
        """Load a reward model on a device, by default the GPU of this process; see `RewardFunction` for the others.

        Raises:
            CheckpointError: it can't be loaded.
            InputError: there is no such device, an option does not fit the model, or it only compares completions.
        """
        where, run = locate_model(ckpt)
        scorer = open_scorer(
            ScorerRequest(where, options, verify, known_device(device) if device else default_device())
        )
        scorer.info.require_rewards("a server or a reward function")
        name = run.name if run is not None else os.path.basename(os.path.normpath(where))
        reader = TextReader(scorer.info.renderer, scorer.info.max_length, scorer.info.by_length)
        online = cls(scorer, name, tokens_per_batch or scorer.info.tokens_per_batch, reader)
        for note in scorer.info.notes:
            online._display.note(f"{name}: {note}")
        return online

    @property
    def info(self) -> ScorerInfo:
        """The scorer's info."""
        return self.scorer.info

    def score(self, groups: Sequence[PreferenceGroup], counts: bool = False) -> list[GroupScore | RmtrainError]:
        """A score for each group, or the reason why it has none, which does not affect other groups.

        With `counts`, it has the number of tokens of each completion after its prompt.
        """
        if not groups:
            return []
        # a trainer's mixed precision must not affect the reward model
        with self._lock, torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return self._score(groups, counts)

    def score_rows(self, groups: Sequence[PreferenceGroup]) -> list[list[RowScore | RmtrainError]]:
        """As `score`, by completion; groups with the same prompt, also of different clients, share a forward pass.

        A group that is too long or can't be scored does not affect others with its prompt: they are scored again
        without it. The same holds for a completion within its group.
        """
        rows_of: list[list[RowScore | RmtrainError]] = [[] for _ in groups]
        left: list[int] = []
        joined = join_prompts(groups)
        together = [_together([groups[place] for place in places]) for places in joined]
        for places, score in zip(joined, self.score(together), strict=True):
            if isinstance(score, RmtrainError) or (score.truncated and len(places) > 1):
                left += places
                continue
            rows = iter(_rows(score))
            for place in places:
                rows_of[place] = [next(rows) for _ in groups[place].completions]
        for place, rows_apart in zip(left, self._score_apart([groups[place] for place in left]), strict=True):
            rows_of[place] = rows_apart
        return rows_of

    def _score_apart(self, groups: Sequence[PreferenceGroup]) -> list[list[RowScore | RmtrainError]]:
        """Scores of groups by completion; a completion that can't be scored does not affect the others of its group."""
        scores = self.score(groups)
        apart = [
            group._replace(completions=(completion,), id=f"{group.id} {place}")
            for group, score in zip(groups, scores, strict=True)
            if isinstance(score, RmtrainError) and len(group.completions) > 1
            for place, completion in enumerate(group.completions)
        ]
        again = iter(self.score(apart))
        rows_of: list[list[RowScore | RmtrainError]] = []
        for group, score in zip(groups, scores, strict=True):
            several = isinstance(score, RmtrainError) and len(group.completions) > 1
            parts = [next(again) for _ in group.completions] if several else [score]
            rows_of.append([row for part in parts for row in _rows(part)])
        return rows_of

    def _score(self, groups: Sequence[PreferenceGroup], counts: bool) -> list[GroupScore | RmtrainError]:
        drops = len(groups) > 1
        task = ScoringTask(
            "rows", groups, self.tokens_per_batch, None, self._display, drop_refused=drops, counts=counts
        )
        try:
            scores = self.scorer.score(task)
        except Exception as error:
            if len(groups) == 1:
                return [error if isinstance(error, RmtrainError) else _unexpected(error)]
            middle = len(groups) // 2
            return self._score(groups[:middle], counts) + self._score(groups[middle:], counts)
        for what in sorted({omission.what for score in scores if score for omission in score.omitted}):
            self._display.note(f"the chat template leaves out parts of some rows: {what}")
        return [
            score if score is not None else self._score([group], counts)[0]
            for group, score in zip(groups, scores, strict=True)
        ]


def join_prompts(groups: Sequence[PreferenceGroup]) -> list[list[int]]:
    """The places of groups with the same prompt, together; a long common beginning of whole texts counts as a
    prompt."""
    joined: dict[object, list[int]] = {}
    for place, group in enumerate(groups):
        key: object = place
        if group.prompt:
            key = group.prompt, group.arguments
        elif ids_in(group.completions[0]) is not None:
            start = group.completions[0][0].content[:_SHARED]
            key = start if len(start) == _SHARED else place
        joined.setdefault(key, []).append(place)
    return [*joined.values()]


def _together(groups: Sequence[PreferenceGroup]) -> PreferenceGroup:
    return groups[0]._replace(completions=tuple(answer for group in groups for answer in group.completions))


def _rows(score: GroupScore | RmtrainError) -> list[RowScore | RmtrainError]:
    if isinstance(score, RmtrainError):
        return [score]
    tokens = score.tokens or (0,) * len(score.rewards)
    return [RowScore(reward, score.truncated, count) for reward, count in zip(score.rewards, tokens, strict=True)]


def default_device() -> str:
    """The device that a trainer gives this process, without joining its process group."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def known_device(name: str) -> str:
    """The name of a device that torch can use here.

    Raises:
        InputError: there is no such device.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:  # AssertionError: torch was built without CUDA
        raise InputError(
            f"device {name}: {first_line(error)}", "name one of this machine, such as cuda:0 or cpu"
        ) from error
    return name


def _unexpected(error: Exception) -> RunFailedError:
    failed = RunFailedError(f"{type(error).__name__}: {first_line(error)}")
    failed.__cause__ = error
    return failed


def rewards_or_raise(scores: Sequence[GroupScore | RmtrainError]) -> list[GroupScore]:
    """The scores; raises the first error among them."""
    if error := next((score for score in scores if isinstance(score, RmtrainError)), None):
        raise error
    return [score for score in scores if not isinstance(score, RmtrainError)]


def require_strings(values: Sequence[Any], what: str) -> None:
    """Raise InputError if a value is not text."""
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{what}[{place}] is of type {type(value).__name__}", "give text")
