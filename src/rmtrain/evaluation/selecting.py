"""Scored rows → best answers, preference pairs or filtered answers in TRL's formats, and a report on the choice."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.local_files import Shard
from rmtrain.data.reader import SourceReader, read_all
from rmtrain.data.row_output import REFUSED, json_line, part_lines
from rmtrain.data.schemas.rows import TEMPLATE_COLUMNS
from rmtrain.data.types import Conversation, PreferenceGroup, Row, holds_ids
from rmtrain.errors import DataError, InputError
from rmtrain.json_values import JsonObject
from rmtrain.metrics.graded import expected_best_of_n
from rmtrain.metrics.selection import Mean, Rule, Taken, order_statistic

_KEPT = ("id", *TEMPLATE_COLUMNS)  # columns of a row that are written with its answers
_BLOCK = 1 << 17  # rewards read at once
Form = Literal["messages", "text"]


class Answers(NamedTuple):
    """A prompt's answers with their rewards."""

    row: Row
    group: PreferenceGroup
    rewards: tuple[float, ...]  # empty if the chat template refuses the row, as `rmtrain score --skip-refused` notes
    place: str

    @property
    def lengths(self) -> list[int]:
        """Characters of each answer."""
        return [sum(len(message.content) for message in answer) for answer in self.group.completions]


def read_answers(rows: SourceReader, parts: Sequence[Path] | None) -> Iterator[Answers]:
    """The rows of a source in order, with the rewards of scored parts (one per chunk) or their own.

    Raises:
        DataError: a row has no rewards, or not one per completion.
    """
    for number, chunk in enumerate(rows.stream.chunks):
        if parts is None:
            source = rows.stream.read(chunk).rows
        else:
            scored = list(part_lines(parts[number]))
            shard = Shard(rows.stream.names[chunk.shard], len(scored), None, chunk.place.row)
            source = rows.stream.source._replace(rows=scored, shards=[shard])
        for index, group in enumerate(read_all(source, rows.reading, 1.0).groups):
            row, place = source.rows[index], source.where(index)
            refused = row.get("rewards") is None and row.get(REFUSED)
            yield Answers(row, group, () if refused else stated_rewards(row, group, place), place)


def stated_rewards(row: Row, group: PreferenceGroup, place: str) -> tuple[float, ...]:
    """The rewards that a row states; raises DataError if they are not one number per completion."""
    given = row.get("rewards")
    numbers = isinstance(given, list) and all(
        type(reward) in (int, float) and math.isfinite(reward) for reward in given
    )
    if not numbers or len(given or ()) != len(group.completions):
        raise DataError(
            f"{place}: its rewards are not {len(group.completions)} numbers, one per completion",
            "score the rows first with rmtrain score, or name a model with --ckpt",
        )
    return tuple(map(float, given or ()))


@dataclass
class Report:
    """Counts and means over prompts; kept + dropped by cause = all prompts."""

    prompts: int = 0
    answers: int = 0
    written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    ties: int = 0
    reward: dict[str, Mean] = field(default_factory=dict)
    length: dict[str, Mean] = field(default_factory=dict)
    best_of: dict[int, Mean] = field(default_factory=dict)
    highest: float = -math.inf  # reward

    def count(self, answers: Answers, taken: Taken) -> None:
        """Count a prompt."""
        rewards, lengths = answers.rewards, answers.lengths
        self.prompts += 1
        if not rewards:
            self.dropped[taken.cause] += 1
            return
        self.answers += len(rewards)
        self.highest = max(self.highest, *rewards)
        texts = {answers.group.completions[k] for k, reward in enumerate(rewards) if reward == max(rewards)}
        self.ties += len(texts) > 1
        curve = expected_best_of_n(rewards, rewards)
        for n in dict.fromkeys([*(1 << bit for bit in range(len(rewards).bit_length())), len(rewards)]):
            self.best_of.setdefault(n, Mean()).add(float(curve[n - 1]))
        if not taken.chosen:
            self.dropped[taken.cause] += 1
            return
        chosen = list(taken.chosen)
        for figures, values in ((self.reward, np.asarray(rewards)), (self.length, np.asarray(lengths, float))):
            of_all, of_chosen = float(values.mean()), float(values[chosen].mean())
            shown = {"all": of_all, "chosen": of_chosen, "shift": of_chosen - of_all}
            if taken.rejected is not None:
                shown["rejected"] = float(values[taken.rejected])
            for name, value in shown.items():
                figures.setdefault(name, Mean()).add(value)
        self.written += len(chosen)

    def to_json(self) -> JsonObject:
        """The report as in `select --json`."""
        kept = self.prompts - sum(self.dropped.values())
        return {
            "prompts": self.prompts,
            "answers": self.answers,
            "kept": kept,
            "dropped": dict(sorted(self.dropped.items())),
            "written": self.written,
            "ties": self.ties,
            "reward": {name: mean.figures() for name, mean in self.reward.items()},
            "length": {name: mean.figures() for name, mean in self.length.items()},
            "best_of_n": {str(n): mean.figures() for n, mean in sorted(self.best_of.items())},
        }


@dataclass(frozen=True)
class Selection:
    """How answers are chosen and written."""

    rule: Rule
    form: Form = "messages"  # write conversations, or plain texts
    seed: int = 0  # for random choices; a row's draw depends only on the seed and the row's number

    def write(self, answers: Iterator[Answers], file: BinaryIO) -> Report:
        """Write the chosen answers of each prompt, and report on the choice.

        Raises:
            InputError: no answer is chosen.
        """
        report = Report()
        for number, prompt in enumerate(answers):
            rng = np.random.default_rng([self.seed, number])
            refused = Taken(cause="refused by the chat template")
            taken = self.rule.take(prompt.rewards, prompt.lengths, rng) if prompt.rewards else refused
            report.count(prompt, taken)
            for row in self._rows(prompt, taken):
                file.write(json_line(row))
        if not report.written:
            causes = ", ".join(f"{cause}: {prompts}" for cause, prompts in sorted(report.dropped.items()))
            highest = f"; the highest reward is {report.highest:.6g}" if report.answers else ""
            raise InputError(f"no answer is chosen (prompts dropped, {causes}){highest}", "relax the options")
        return report

    def _rows(self, answers: Answers, taken: Taken) -> Iterator[Row]:
        """Rows in TRL's formats: prompt and completion, or prompt, chosen and rejected with their margin."""
        group, rewards = answers.group, answers.rewards
        kept = {name: answers.row[name] for name in _KEPT if answers.row.get(name) is not None}
        prompt = self._shown(group.prompt, "user", answers.place)
        for k in taken.chosen:
            chosen = self._shown(group.completions[k], "assistant", answers.place)
            if taken.rejected is None:
                yield {**kept, "prompt": prompt, "completion": chosen, "reward": rewards[k]}
            else:
                rejected = self._shown(group.completions[taken.rejected], "assistant", answers.place)
                margin = rewards[k] - rewards[taken.rejected]
                yield {**kept, "prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin}

    def _shown(self, messages: Conversation, role: str, place: str) -> Any:
        if holds_ids([messages]):
            raise InputError(
                f"{place}: the row holds token ids, which TRL's formats do not allow", "give texts or messages"
            )
        if self.form == "messages":
            return [message.as_dict() for message in messages]
        if len(messages) != 1 or messages[0].role != role or messages[0].fields:
            raise InputError(
                f"{place}: the row is not a single question with plain-text answers", "leave out --format text"
            )
        return messages[0].content


def reward_quantile(answers: Iterator[Answers], share: float, scratch: Path) -> float:
    """The smallest reward that a filter keeps: at most this share of all answers has a lower one.

    The answers are read once; their rewards, 8 bytes each, are kept in the file `scratch` until the end.
    """
    count = 0
    try:
        with open(scratch, "wb") as file:
            for prompt in answers:
                file.write(np.asarray(prompt.rewards, dtype=np.float64).tobytes())
                count += len(prompt.rewards)

        def pieces() -> Iterator[NDArray[np.float64]]:
            with open(scratch, "rb") as file:
                while data := file.read(8 * _BLOCK):
                    yield np.frombuffer(data, dtype=np.float64)

        return order_statistic(pieces, int(share * count))
    finally:
        scratch.unlink(missing_ok=True)
