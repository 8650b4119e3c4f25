"""Rows of a SOURCE → parts of an output: each process scores its own chunks, then unfinished ones of the others."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rmtrain.data.reader import SourceReader
from rmtrain.data.row_output import REFUSED, Kind, encode_rows
from rmtrain.data.token_notes import TokenNote, token_notes
from rmtrain.data.token_report import IDENTICAL, Omitted, TokenReport
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.errors import WriteError
from rmtrain.model.devices import process_state
from rmtrain.scoring.partial import OnePartial
from rmtrain.scoring.parts import Claims, Parts, Tally
from rmtrain.scoring.scorer import GroupScore, Scorer, ScoringTask

_VERSION = "1"  # raise this if a part with the same rows and scorer gets other content
_LOOK_SECONDS = 5.0  # between reads of the folder, for progress
_POLL_SECONDS = 0.5  # between checks for parts of other processes


@dataclass
class StreamScoring:
    """The scoring of a source by one or more processes that share a disk and never wait for each other."""

    scorer: Scorer
    rows: SourceReader
    parts: Parts  # the output, in parts
    kind: Kind
    tokens_per_batch: int  # maximum tokens per forward pass
    display: Display
    # rows that the chat template refuses get null rewards and the reason; otherwise they are errors
    skip_refused: bool = False
    _counted_at: float = -_LOOK_SECONDS
    _counted_rows: int = 0

    @cached_property
    def names(self) -> list[str]:
        """The names of the parts, one per chunk; each identifies the rows, their reading and writing, and the
        scorer."""
        about = [_VERSION, self.scorer.info.fingerprint, self.kind, *self.rows.reading.marks]
        about += [REFUSED] * self.skip_refused
        return [
            hashlib.sha256(json.dumps([chunk.digest, *about]).encode()).hexdigest()[:32]
            for chunk in self.rows.stream.chunks
        ]

    def run(self) -> None:
        """Score unfinished parts; the main process returns when all parts are finished.

        A process takes every `processes`-th chunk, then unfinished chunks of the others, including processes that
        ended. The batches of a chunk are planned from its rows alone, so rewards do not depend on the number of
        processes.

        Raises:
            InputError: the chat template refuses a row, and such rows are not skipped.
            RunFailedError: the rows changed since they were read, or as in `Scorer.score`.
        """
        state = process_state()
        rank, processes = state.process_index, state.num_processes
        numbers = range(len(self.names))
        own = [number for number in numbers if number % processes == rank]
        order = [*own, *(number for number in reversed(numbers) if number % processes != rank)]
        try:
            with self.parts.claims() as claims:
                while left := self._left(order):
                    scored = [number for number in left if self._score_claimed(number, claims)]
                    if not scored and not state.is_main_process:
                        return
                    if not scored:
                        time.sleep(_POLL_SECONDS)
        except (FileNotFoundError, WriteError):
            if state.is_main_process or self.parts.folder.exists():
                raise  # otherwise the main process has already joined and removed all parts

    def tally(self) -> Tally:
        """Counts and notes on all parts, once they are finished."""
        return sum((self.parts.tally(name) or Tally() for name in self.names), Tally())

    def _score_claimed(self, number: int, claims: Claims) -> bool:
        """Score a chunk, unless another process works on it or it is finished. Returns whether this process scored
        it."""
        with claims.of(number) as mine:
            if not mine or self.parts.is_finished(self.names[number]):
                return False
            self._score(number)
            return True

    def _score(self, number: int) -> None:
        name, chunk = self.names[number], self.rows.stream.chunks[number]
        rows, split = self.rows.read(chunk)
        partial = OnePartial(self.parts.batches(name))
        display = _PartDisplay(self.display, self._rows_done(), self.rows.stream.rows)
        task = ScoringTask(
            split.name,
            split.groups,
            self.tokens_per_batch,
            partial,
            display,
            split.place,
            drop_refused=self.skip_refused,
            counts=False,
        )
        scores = self.scorer.score(task)
        pairs = [(group, score) for group, score in zip(split.groups, scores, strict=True) if score is not None]
        columns: dict[str, list[Any]] = {"rewards": [score and list(score.rewards) for score in scores]}
        if self.scorer.info.members:
            columns["reward_std"] = [score and score.reward_std for score in scores]
        if self.skip_refused:
            columns[REFUSED] = [task.refusals.get(group.id) for group in split.groups]
        notes = token_notes(_report(pairs), split.place, split.groups, self.scorer.info.renderer)
        notes += _refusals(task)
        tally = Tally(len(pairs), sum(score.truncated for _, score in pairs), notes)
        self.parts.finish(name, encode_rows(rows, columns, self.kind), tally)

    def _left(self, order: Sequence[int]) -> list[int]:
        finished = self.parts.finished()
        return [number for number in order if self.names[number] not in finished]

    def _rows_done(self) -> int:
        """The number of rows in finished parts, a few seconds old at most."""
        now = time.monotonic()
        if now - self._counted_at >= _LOOK_SECONDS:
            finished = self.parts.finished()
            chunks = zip(self.rows.stream.chunks, self.names, strict=True)
            self._counted_rows = sum(chunk.rows for chunk, name in chunks if name in finished)
            self._counted_at = now
        return self._counted_rows


def _refusals(task: ScoringTask) -> list[TokenNote]:
    """The note on rows that the chat template refuses."""
    refused = task.refusals.items()
    first = next((f"{task.place(name)}: {why}" for name, why in refused), "")
    return [TokenNote("rows refused by the chat template, with null rewards", len(refused), first)] if refused else []


def _report(pairs: Sequence[tuple[PreferenceGroup, GroupScore]]) -> TokenReport:
    """The notes of tokenisation, from the scores of the groups."""
    report = TokenReport()
    for group, score in pairs:
        if score.identical:
            report.tie(IDENTICAL[score.truncated], score.identical)
        for omission in score.omitted:
            report.omit(omission.what, Omitted(1, group.id, omission.words))
    return report


@dataclass
class _PartDisplay:
    """Shows the progress of a part as progress of the whole output."""

    display: Display
    before: int
    rows: int

    def note(self, line: str) -> None:
        self.display.note(line)

    def progress(self, task: str, done: int, total: int) -> None:
        self.display.progress(task, self.before + done, self.rows)

    def metrics(self, figures: Mapping[str, Any]) -> None:
        self.display.metrics(figures)
