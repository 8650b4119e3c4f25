"""The rows of a request: groups to score, the place of each reward in the answer, and faults of unreadable rows."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rmtrain.data.schemas.messages import completion_of, conversation, prompt_of, token_ids
from rmtrain.data.schemas.rows import RowFault, template_arguments
from rmtrain.data.types import Conversation, PreferenceGroup
from rmtrain.errors import InputError, RmtrainError, printable
from rmtrain.serving.online import RowScore
from rmtrain.serving.texts import ReadTexts, TextReader, require_unicode

_GROUP = re.compile(r"^group [\d. ]+: ")
_CHARACTERS_PER_TOKEN = 64  # longer texts are refused before tokenisation


@dataclass
class RequestRows:
    """The rows of one request."""

    reader: TextReader  # reads whole texts
    size: int = 0  # number of rewards in the answer
    # what to score, each with the places of its completions in the answer
    groups: list[tuple[PreferenceGroup, list[int]]] = field(default_factory=list)
    faults: dict[int, RmtrainError] = field(default_factory=dict)  # by place, why a row has no reward
    cut: set[int] = field(default_factory=set)  # places of texts that were truncated to the maximum length

    def completions(self, prompt: object, values: Sequence[object], where: str, arguments: dict[str, Any]) -> None:
        """Add the completions of one prompt.

        Raises:
            InputError: the prompt, or the variables of its chat template, can't be read.
        """
        given = self._read(template_arguments, arguments, "")
        messages = self._read(prompt_of, prompt, "prompt")
        answers: list[tuple[int, Conversation]] = []
        for number, value in enumerate(values):
            place = self._next()
            try:
                answers.append((place, self._read(completion_of, value, f"{where}[{number}]")))
            except InputError as error:
                self.faults[place] = error
        if answers:
            group = PreferenceGroup("", messages, tuple(answer for _, answer in answers), (), arguments=given)
            self.groups.append((group, [place for place, _ in answers]))

    def dialogue(self, value: object, arguments: dict[str, Any]) -> None:
        """Add a whole conversation as messages, the last of which is the assistant's.

        Raises:
            InputError: it can't be read.
        """
        messages = self._read(conversation, value, "messages")
        if messages[-1].role != "assistant":
            raise InputError(
                f"messages: the role of the last message is {messages[-1].role}",
                "end with the assistant's answer, or give completions",
            )
        given = self._read(template_arguments, arguments, "")
        group = PreferenceGroup("", messages[:-1], (messages[-1:],), (), arguments=given)
        self.groups.append((group, [self._next()]))

    def texts(self, values: Sequence[object], where: str, prompts: Sequence[object] | None = None) -> None:
        """Add whole conversations as text or token ids, with the prompts at their beginning, if known."""
        together: dict[object, list[tuple[int, str]]] = {}
        for number, value in enumerate(values):
            place, at = self._next(), f"{where}[{number}]"
            prompt = prompts[number] if prompts is not None else None
            try:
                if isinstance(value, list):
                    group = self._read(lambda ids: self.reader.group_of_ids("", token_ids(ids, "ids")), value, at)
                    self._add([place], [group])
                elif isinstance(value, str) and (prompt is None or isinstance(prompt, str)):
                    self._read(str, value, at)
                    together.setdefault(place if prompt is None else prompt, []).append((place, value))
                else:
                    raise InputError(f"{at}: no text", "give text, rendered by the model's chat template")
            except InputError as error:
                self.faults[place] = error
        for key, rows in together.items():
            self._texts_of(rows, key if isinstance(key, str) else None)

    def _texts_of(self, rows: Sequence[tuple[int, str]], prompt: str | None) -> None:
        """Add texts of one prompt; they are read one by one if they can't be read together."""
        try:
            self._add([place for place, _ in rows], self.reader.groups("", [text for _, text in rows], prompt))
        except InputError as error:
            if len(rows) == 1:
                self.faults[rows[0][0]] = error
            else:
                for row in rows:
                    self._texts_of([row], prompt)

    def _add(self, places: list[int], read: Sequence[ReadTexts]) -> None:
        for group, numbers, cut in read:
            of_group = [places[number] for number in numbers]
            self.groups.append((group, of_group))
            self.cut |= set(of_group) if cut else set()

    def _read(self, read: Callable[[Any], Any], value: object, where: str) -> Any:
        """The result of a reader for a value; raises InputError with the place if it can't be read."""
        try:
            _check(value, _CHARACTERS_PER_TOKEN * self.reader.max_length)
            return read(value)
        except RowFault as fault:
            raise _at(where, InputError(fault.detail, "see /docs for the forms of a request")) from None
        except InputError as error:
            raise _at(where, error) from None
        except RecursionError:
            raise _at(where, InputError("nested too deeply", "see /docs for the forms of a request")) from None

    def _next(self) -> int:
        self.size += 1
        return self.size - 1

    def answer(self, scores: Sequence[Sequence[RowScore | RmtrainError]]) -> "Answer":
        """The answer from the scores of the groups."""
        rewards: list[float | None] = [None] * self.size
        faults, truncated, tokens = dict(self.faults), set(self.cut), 0
        for (_, places), rows in zip(self.groups, scores, strict=True):
            for place, row in zip(places, rows if len(rows) == len(places) else [rows[0]] * len(places), strict=True):
                if isinstance(row, RmtrainError):
                    faults[place] = row
                else:
                    rewards[place] = row.reward
                    tokens += row.tokens
                    truncated |= {place} if row.truncated else set()
        return Answer(rewards, dict(sorted(faults.items())), sorted(truncated), tokens)


@dataclass(frozen=True)
class Answer:
    """The rewards of a request (None for a row in `faults`), the places of truncated rows, and the number of tokens."""

    rewards: list[float | None]
    faults: dict[int, RmtrainError]
    truncated: list[int]
    tokens: int = 0

    def why(self, place: int) -> str:
        """Why a row has no reward, in one line."""
        error = self.faults[place]
        text = without_group(error.message)
        return printable(f"{text} ({error.hint})" if error.hint else text)


def without_group(message: str) -> str:
    """A message without the group's number in the batch, which is meaningless to a client."""
    return _GROUP.sub("", message)


def _at(where: str, error: RmtrainError) -> InputError:
    return InputError(f"{where}: {error.message}" if where else error.message, error.hint)


def _check(value: object, longest: int) -> None:
    """Raise InputError unless all texts of a value are valid Unicode and of sensible length."""
    if isinstance(value, str):
        require_unicode(value)
        if len(value) > longest:
            raise InputError(f"a text of {len(value):,} characters", f"give at most {longest:,}")
    elif isinstance(value, (list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            _check(entry, longest)
        if isinstance(value, dict):
            _check([*value], longest)
