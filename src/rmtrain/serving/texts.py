"""Whole conversations as text, as trainers send them → the tokens that rmtrain scores of their messages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rmtrain.data.render import Renderer
from rmtrain.data.tokenizer import special_tokens
from rmtrain.data.types import Message, PreferenceGroup, of_ids
from rmtrain.errors import InputError

_QUESTION, _ANSWER = "A question that no template holds", "An answer that no template holds"
_PROBE = (Message("user", _QUESTION), Message("assistant", _ANSWER))


class _Frame(NamedTuple):
    """What the chat template writes around a conversation."""

    bos: str  # BOS as text; "" where the template writes none
    opening: str  # between the question and an answer that is yet to come, without blanks around it
    tail: str  # after the answer
    ends: "re.Pattern[str]"  # end and pad tokens at the end of a text


@dataclass(frozen=True)
class TextReader:
    """Reads whole conversations as text; a text of the model's own template gets the tokens of its messages.

    Attributes:
        renderer: of the reward model; None if it has none.
        max_length: tokens of a conversation; longer ones lose tokens at their start, after BOS.
    """

    renderer: Renderer | None
    max_length: int

    @cached_property
    def _frame(self) -> _Frame | None:
        """None for a model that reads question and answer apart."""
        text = self.renderer.text(_PROBE) if self.renderer is not None else None
        if self.renderer is None or not isinstance(text, str):
            return None
        tokenizer = self.renderer.tokenizer
        head, _, tail = text.rpartition(_ANSWER)
        ends = [tokenizer.eos_token, tokenizer.pad_token, *(t for t in special_tokens(tokenizer) if t in tail)]
        either = "|".join(re.escape(token) for token in ends if token) or r"(?!)"
        bos = tokenizer.bos_token or ""
        opening = self.renderer.render(_PROBE[:1], generation=True).rpartition(_QUESTION)[2].strip()
        written = bos if bos and head.startswith(bos) else ""
        return _Frame(written, opening, tail, re.compile(rf"(?:(?:{either})\s*)+\Z"))

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt ends as this model's chat template opens an answer; other prompts are plain text."""
        opening = self._frame.opening if self._frame is not None else ""
        return bool(opening) and prompt.rstrip().endswith(opening)

    def group(self, name: str, texts: Sequence[str], prompt: str | None = None) -> tuple[PreferenceGroup, bool]:
        """Texts of one prompt as one group, and whether one of them was too long.

        Args:
            name: of the group.
            texts: prompt and answer in one.
            prompt: that they begin with. If it is plain text, the texts are read as one user message and its answer;
                otherwise, and without it, they are taken as rendered by this model's chat template.

        Raises:
            InputError: the model reads no whole texts, or a text is not valid Unicode or has another prompt.
        """
        for text in [*texts, prompt or ""]:
            require_unicode(text)
        if prompt is not None and not self.is_rendered(prompt):
            answers = tuple((Message("assistant", self._answer(text, prompt)),) for text in texts)
            return PreferenceGroup(name, (Message("user", prompt),), answers, ()), False
        if self.renderer is None or self._frame is None:
            raise InputError(
                "this reward model has no chat template and reads question and answer apart",
                "give prompt and completions instead of whole texts",
            )
        encoded = self.renderer.encode([self._complete(text, self._frame) for text in texts])
        return self.group_of_ids(name, encoded)

    def group_of_ids(self, name: str, sequences: Sequence[list[int]]) -> tuple[PreferenceGroup, bool]:
        """Whole conversations as token ids as one group, and whether one of them was too long."""
        excess = max(map(len, sequences)) - self.max_length
        if excess > 0:
            bos = self.renderer.tokenizer.bos_token_id if self.renderer is not None else None
            first = int(sequences[0][0] == bos)
            sequences = [ids[:first] + ids[first + excess :] if len(ids) > first + excess else ids for ids in sequences]
        return PreferenceGroup(name, (), tuple((of_ids(ids),) for ids in sequences), ()), excess > 0

    def _complete(self, text: str, frame: _Frame) -> str:
        """The text with exactly one BOS, and with the end that the chat template writes after an answer."""
        bos = self.renderer.tokenizer.bos_token if self.renderer is not None else None
        while bos and text.startswith(bos):
            text = text.removeprefix(bos)
        blank = frame.tail[: len(frame.tail) - len(frame.tail.lstrip())]
        return frame.bos + frame.ends.sub("", text).removesuffix(blank) + frame.tail

    def _answer(self, text: str, prompt: str) -> str:
        """What follows a plain prompt, without end tokens."""
        if not text.startswith(prompt):
            raise InputError("a text does not begin with its prompt", "give texts of prompt and answer")
        answer = text.removeprefix(prompt)
        return self._frame.ends.sub("", answer) if self._frame is not None else answer


def require_unicode(text: str) -> None:
    """Raises InputError for text that holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the text holds half of a surrogate pair", "give valid Unicode") from None
