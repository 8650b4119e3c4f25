"""Whole conversations as text from trainers → the same tokens as those of their messages."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rmtrain.data.render import Renderer
from rmtrain.data.responses import common_prefix
from rmtrain.data.template import TemplateRefusalError
from rmtrain.data.tokenizer import special_tokens
from rmtrain.data.types import Message, PreferenceGroup, of_ids
from rmtrain.errors import InputError

_QUESTION, _ANSWER = "A question that no template holds", "An answer that no template holds"
_PROBE = (Message("user", _QUESTION), Message("assistant", _ANSWER))


class ReadTexts(NamedTuple):
    """Texts read as one group."""

    group: PreferenceGroup
    places: list[int]  # places of its completions among the texts
    cut: bool  # whether a text was truncated


class _Frame(NamedTuple):
    """The parts that the chat template writes around a conversation."""

    bos: str  # BOS as text; "" if the template writes none
    opening: str  # the generation prompt after a question, without leading white space
    tail: str  # after the answer
    ends: "re.Pattern[str]"  # end and pad tokens at the end of a text
    before: str | None  # between question and answer, a generation prompt first; None if the template begins otherwise
    lead: str  # of which this comes after the generation prompt

    def without_end(self, text: str) -> str:
        """A text without the end tokens and what the template writes before them."""
        blank = self.tail[: len(self.tail) - len(self.tail.lstrip())]
        return self.ends.sub("", text).removesuffix(blank)


@dataclass(frozen=True)
class TextReader:
    """Reads whole conversations as text; a text in the model's template gets the tokens of its messages."""

    renderer: Renderer | None  # the reward model's; None if it has none
    max_length: int  # tokens of a conversation; longer ones are truncated at the start, after BOS
    # split whole texts into prompt and answer, for rewards that depend on the length of the answer
    splits: bool = False

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
        opening = self.renderer.render(_PROBE[:1], generation=True).rpartition(_QUESTION)[2]
        before = head.rpartition(_QUESTION)[2]
        known = bool(opening.strip()) and before.startswith(opening)
        return _Frame(
            bos if bos and head.startswith(bos) else "",
            opening.lstrip(),
            tail,
            re.compile(rf"(?:(?:{either})\s*)+\Z"),
            before if known else None,
            before.removeprefix(opening),
        )

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt ends with this chat template's generation prompt; other prompts are plain text."""
        opening = self._frame.opening.rstrip() if self._frame is not None else ""
        return bool(opening) and prompt.rstrip().endswith(opening)

    def groups(self, name: str, texts: Sequence[str], prompt: str | None = None) -> list[ReadTexts]:
        """Texts of one prompt as one group; with `splits`, as one group for each prompt in tokens.

        Args:
            texts: prompt and answer in one.
            prompt: the beginning of the texts. If it is plain text, the texts are read as one user message and its
                answer; otherwise, or without a prompt, as rendered by this model's chat template.

        Raises:
            InputError: the model reads no whole texts, or a text is not valid Unicode or has another prompt, or it
                can't be split.
        """
        places = [*range(len(texts))]
        for text in [*texts, prompt or ""]:
            require_unicode(text)
        if prompt is not None and not self.is_rendered(prompt):
            answers = tuple((Message("assistant", self._answer(text, prompt)),) for text in texts)
            return [ReadTexts(PreferenceGroup(name, (Message("user", prompt),), answers, ()), places, False)]
        if self.renderer is None or self._frame is None:
            raise InputError(
                "this reward model has no chat template and reads question and answer apart",
                "give prompt and completions instead of whole texts",
            )
        bare = [self._bare(text) for text in texts]
        opened = [self._opened(text, prompt, self._frame) for text in bare]
        written = self._written(bare, opened, prompt is not None, self._frame)
        encoded = self.renderer.encode([self._frame.bos + text for text in written])
        if not self.splits:
            return [self._group(name, encoded, places, [0] * len(texts))]
        if 0 in opened:
            raise _unsplit("a text that this model's chat template did not render")
        asked = [self._frame.bos + text[:end] for text, end in zip(bare, opened, strict=True)]
        starts = map(common_prefix, self.renderer.encode(asked), encoded)
        together: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # by the prompt's tokens
        for place, start in enumerate(starts):
            together.setdefault(tuple(encoded[place][:start]), []).append((place, start))
        return [
            self._group(name, [encoded[place] for place, _ in of], [place for place, _ in of], [at for _, at in of])
            for of in together.values()
        ]

    def group_of_ids(self, name: str, ids: list[int]) -> ReadTexts:
        """A whole conversation as token ids; raises InputError if it must be split."""
        if self.splits:
            raise _unsplit("token ids")
        return self._group(name, [ids], [0], [0])

    def _group(self, name: str, sequences: Sequence[list[int]], places: list[int], starts: Sequence[int]) -> ReadTexts:
        """A group of sequences, truncated to the maximum length; `starts` are those of the answers, 0 for a whole
        text."""
        excess = max(map(len, sequences)) - self.max_length
        if excess > 0:
            bos = self.renderer.tokenizer.bos_token_id if self.renderer is not None else None
            first = int(sequences[0][0] == bos)
            longer = [len(ids) > first + excess for ids in sequences]
            starts = [max(min(first, at), at - excess * cut) for at, cut in zip(starts, longer, strict=True)]
            sequences = [
                ids[:first] + ids[first + excess :] if cut else ids for ids, cut in zip(sequences, longer, strict=True)
            ]
        start = min(starts)
        prompt = (of_ids(sequences[0][:start]),) if start else ()
        answers = tuple((of_ids(ids[start:]),) for ids in sequences)
        return ReadTexts(PreferenceGroup(name, prompt, answers, ()), places, excess > 0)

    def _opened(self, text: str, prompt: str | None, frame: _Frame) -> int:
        """Where the answer of a rendered text begins: after the given prompt, or after the last generation prompt; 0 if
        that is not found."""
        opening = frame.opening.rstrip()
        head = self._bare(prompt).rstrip() if prompt is not None else text[: text.rfind(opening) + len(opening)]
        if not opening or not text.startswith(head) or not head.endswith(opening):
            return 0
        blank = frame.opening[len(opening) :]
        return len(head) + len(blank) * text.startswith(blank, len(head))

    def _written(self, texts: Sequence[str], opened: Sequence[int], certain: bool, frame: _Frame) -> list[str]:
        """Texts without BOS, with their answers and ends as the chat template writes them.

        It may strip an answer, or put more before it than the generation prompt, which is added to `certain` prompts.
        """
        cut = [frame.without_end(text) for text in texts]
        answers = [text[end:].removeprefix(frame.lead) for text, end in zip(cut, opened, strict=True)]
        opening = frame.before.removesuffix(frame.lead) if frame.before is not None else None
        written = []
        for text, whole, end in zip(cut, self._rendered(answers), opened, strict=True):
            after = whole.partition(_QUESTION)[2]
            if opening is None or not end or not after.startswith(opening):
                written.append(text + frame.tail)
                continue
            answer = after.removeprefix(opening)
            if not certain and not text.startswith(frame.lead, end):
                answer = answer.removeprefix(frame.lead)
            blank = opening[len(opening.rstrip()) :]
            written.append(text[:end].removesuffix(blank) + blank + answer)
        return written

    def _rendered(self, answers: Sequence[str]) -> list[str]:
        """The chat template's texts of answers to a question; "" for one that it refuses."""
        assert self.renderer is not None
        conversations = [(_PROBE[0], Message("assistant", answer)) for answer in answers]
        try:
            return self.renderer.texts(conversations)
        except TemplateRefusalError:  # of one of them
            texts = []
            for conversation in conversations:
                with contextlib.suppress(TemplateRefusalError):
                    texts.append(self.renderer.text(conversation))
                    continue
                texts.append("")
            return texts

    def _bare(self, text: str) -> str:
        """A text without BOS at its start."""
        bos = self.renderer.tokenizer.bos_token if self.renderer is not None else None
        while bos and text.startswith(bos):
            text = text.removeprefix(bos)
        return text

    def _answer(self, text: str, prompt: str) -> str:
        """The text after a plain prompt, without end tokens."""
        if not text.startswith(prompt):
            raise InputError("a text does not begin with its prompt", "give texts of prompt and answer")
        answer = text.removeprefix(prompt)
        return self._frame.ends.sub("", answer) if self._frame is not None else answer


def _unsplit(what: str) -> InputError:
    return InputError(
        f"these rewards depend on the length of the answer, but {what} does not show where it begins",
        "give messages, or prompt and completions",
    )


def require_unicode(text: str) -> None:
    """Raise InputError if a text holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("the text holds half of a surrogate pair", "give valid Unicode") from None
