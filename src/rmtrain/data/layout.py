"""The layout of a source's rows as one description, and the reading of rows by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from rmtrain.data.prompts import in_turns, prompt_column, split_ids, split_prompt, split_texts, spoken, with_system
from rmtrain.data.rows import (
    ARGUMENTS,
    MISSING,
    WRONG_TYPE,
    ParsedRow,
    Row,
    RowFault,
    as_messages,
    completion_of,
    is_texts,
    number,
    row_id,
    row_source,
    template_arguments,
)
from rmtrain.data.transcripts import begins_as_transcript, list_in
from rmtrain.data.types import Conversation, Preference

UNRATED = "unrated completion"
NEGATIVE_MARGIN = "negative margin"
_PAIR_SCORES = (  # the names under which pairs carry their scores: of the chosen, of the rejected
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
_IDS = {"id", "prompt_id"}
_FOR_TEMPLATES = {"system", *ARGUMENTS}
_PAIR_READS = {"margin", "metadata", *(name for names in _PAIR_SCORES for name in names)}


@dataclass(frozen=True)
class Label:
    """What says which answer is better."""

    columns: tuple[
        str, ...
    ]  # of several, the one that is true or 1 names the answer in its place, or a tie behind them
    better: Mapping[str, int] = field(default_factory=dict)  # value → answer, from 0; empty: the value is that number
    ties: frozenset[str] = frozenset()

    def verdict(self, row: Row, k: int) -> tuple[int | None, float | None]:
        """The better one of `k` answers, None for a tie, and by how much where the label is a number with a sign.

        Raises:
            RowFault: the label is missing, or none that is known.
        """
        if len(self.columns) > 1:
            marked = [place for place, column in enumerate(self.columns) if _mark(row, column)]
            if len(marked) != 1:
                raise RowFault("unknown label", " and ".join(self.columns), marked, "1 in exactly one of them")
            return (marked[0] if marked[0] < k else None), None
        column = self.columns[0]
        value = row.get(column)
        key = label_key(value)
        if key == "":
            raise RowFault(MISSING, column)
        if key in self.ties:
            return None, None
        if key in self.better:
            return self.better[key], None
        if "positive" in self.better and (strength := number(value, column)) is not None:
            return (None if strength == 0 else self.better["positive" if strength > 0 else "negative"]), abs(strength)
        if not self.better and key in map(str, range(k)):
            return int(key), None
        known = [*self.better, *sorted(self.ties)] or [str(place) for place in range(k)]
        raise RowFault("unknown label", column, value, f"one of: {', '.join(known)}")


def label_key(value: object) -> str:
    """A label's value as it is compared: 1, 1.0 and "1" are the same, and so are true and "True"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().casefold()


def _mark(row: Row, column: str) -> bool:
    value = row.get(column)
    return value if isinstance(value, bool) else bool(number(value, column))


@dataclass(frozen=True)
class Layout:
    """Where a row has its prompt, its answers, and what says which answer is better.

    Without a label, the scores say it; without either, the first answer is the best.
    """

    name: str  # as `data.row_schema` states it
    needs: tuple[str, ...]  # columns that tell the layout; `answers.rank`: the list's entries have that key
    answers: tuple[str, ...] = ("chosen", "rejected")  # a column each, or one list: of answers, or of their objects
    prompt: str = "prompt"  # its column; empty: what the answers begin with alike
    label: Label | None = None
    scores: tuple[str, ...] = ()  # like answers
    ranked: bool = False  # the scores are ranks, of which 1 is the best
    turns: bool = False  # prompt and answers may be lists of what either side said, turn by turn
    judged: str = ""  # column with the number of answers that were judged, where conversations may go on behind them
    source: tuple[str, ...] = ("source",)  # columns for the subset that figures are broken down by
    read_prompt: Callable[[Row, str], Conversation] = prompt_column
    reads: tuple[str, ...] = ()  # further columns
    reader: Callable[[Row], ParsedRow] | None = None  # where rows are read in a way of their own
    tokens: bool = False  # prompt and answers are token ids, which no chat template is applied to
    when: Callable[[Row], bool] | None = None  # what else a sample must be for the columns to tell this layout

    @property
    def columns(self) -> frozenset[str]:
        """All columns that are read."""
        named = {*self.needs, *self.answers, *self.scores, *self.source, *self.reads, self.prompt, self.judged}
        named |= {*self.label.columns} if self.label else set()
        named |= _PAIR_READS if self._best_first else set()
        named |= set() if self.tokens else _FOR_TEMPLATES
        return frozenset(_IDS | {name.partition(".")[0] for name in named if name})

    @property
    def _best_first(self) -> bool:
        return self.label is None and not self.scores and self.reader is None

    def read(self, row: Row) -> ParsedRow:
        """Read one row.

        Raises:
            RowFault: what is wrong with it.
        """
        parsed = self.reader(row) if self.reader else self._read(row)
        if self.tokens:
            return parsed
        return parsed._replace(prompt=with_system(row, parsed.prompt), arguments=template_arguments(row))

    def _read(self, row: Row) -> ParsedRow:
        named = _values(row, self.answers)
        if self._best_first and not self.tokens and any(is_texts(value) for _, value in named):
            return self._right_and_wrong(row, named)
        prompt, completions = self._conversations(row, named)
        parsed = ParsedRow(prompt, completions, id=row_id(row), source=row_source(row, *self.source))
        if self._best_first:
            scores, gap = pair_scores(row)
            others = range(1, len(completions))
            return parsed._replace(stated=tuple(Preference(0, other, gap) for other in others), scores=scores)
        graded = self._scores(row, len(completions))
        if self.label is None:
            return parsed._replace(scores=graded, faults=rating_faults(graded))
        return parsed._replace(stated=self._stated(row, len(completions), graded), scores=graded)

    def _stated(self, row: Row, k: int, scores: tuple[float | None, ...] | None) -> tuple[Preference, ...]:
        assert self.label is not None
        best, strength = self.label.verdict(row, k)
        if best is None:
            return tuple(Preference(0, other, 0.0) for other in range(1, k))
        if best >= k:
            raise RowFault("unknown label", self.label.columns[0], best, f"one of the {k} answers")
        return tuple(
            Preference(best, other, strength if strength is not None else score_gap(scores, best, other))
            for other in range(k)
            if other != best
        )

    def _conversations(self, row: Row, named: list[tuple[str, Any]]) -> tuple[Conversation, tuple[Conversation, ...]]:
        """Prompt and answers: each in columns of its own, or the prompt inside of every answer."""
        if self.tokens:
            return split_ids(row.get(self.prompt), self.prompt, named)
        asked = (self.prompt, row.get(self.prompt))
        said = [spoken(value, column) for column, value in (asked, *named)] if self.turns else []
        if said and None not in said:
            return in_turns(*said)  # type: ignore[arg-type]
        values = [(column, as_messages(value, column)) for column, value in named]
        for column, value in values:
            if value is None:
                raise RowFault(MISSING, column)
        answers = [completion_of(value, column) for column, value in values]
        first, like = values[0]
        for column, value in values:
            if isinstance(value, str) != isinstance(like, str):
                kind = "text" if isinstance(like, str) else "messages"
                raise RowFault(WRONG_TYPE, column, value, f"{kind}, as in {first}")
        texts = [value for _, value in values if isinstance(value, str) and not begins_as_transcript(value)]
        if not self.prompt and len(texts) == len(values) > 1:
            return split_texts(texts)
        if judged := number(row.get(self.judged), self.judged):
            answers = [_first_answers(answer, int(judged)) for answer in answers]
        if all(answer[0].role == "assistant" for answer in answers):
            return self.read_prompt(row, self.prompt or "prompt"), tuple(answers)
        return split_prompt(answers, as_messages(row.get(self.prompt), self.prompt))

    def _right_and_wrong(self, row: Row, named: list[tuple[str, Any]]) -> ParsedRow:
        """Lists of right and of wrong texts: each right one is preferred to each wrong one."""
        for column, texts in named:
            if not texts:
                raise RowFault(MISSING, column)
            if not is_texts(texts):
                raise RowFault(WRONG_TYPE, column, texts, "a list of texts")
        right, wrong = (texts for _, texts in named)
        pairs = product(range(len(right)), range(len(right), len(right) + len(wrong)))
        return ParsedRow(
            prompt=self.read_prompt(row, self.prompt),
            completions=tuple(completion_of(text) for text in [*right, *wrong]),
            stated=tuple(Preference(better, worse) for better, worse in pairs),
            id=row_id(row),
            source=row_source(row, *self.source),
        )

    def _scores(self, row: Row, k: int) -> tuple[float | None, ...] | None:
        if not self.scores:
            return None
        values = [number(value, column) for column, value in _values(row, self.scores)]
        if len(values) != k:
            raise RowFault(WRONG_TYPE, self.scores[0], values, f"{k} numbers, one for each answer")
        if self.ranked:
            values = [None if value is None else -value for value in values]
        return None if all(value is None for value in values) else tuple(values)


def _first_answers(conversation: Conversation, count: int) -> Conversation:
    """A conversation up to its `count`-th answer."""
    ends = [place for place, message in enumerate(conversation, 1) if message.role == "assistant"]
    return conversation[: ends[count - 1]] if 0 < count < len(ends) else conversation


def rating_faults(scores: tuple[float | None, ...] | None) -> tuple[str | None, ...] | None:
    """The completions that can't be ranked."""
    return tuple(UNRATED if score is None else None for score in scores) if scores else None


def score_gap(scores: tuple[float | None, ...] | None, better: int, worse: int) -> float | None:
    """The difference of two scores, where there are both."""
    a, b = (scores[better], scores[worse]) if scores else (None, None)
    return None if a is None or b is None else a - b


def listed(value: object, column: str) -> list[Any]:
    """A list, or the list that a text holds as JSON or as Python prints it.

    Raises:
        RowFault: it is neither, or empty.
    """
    found = list_in(value)
    if found is None and value not in (None, ""):
        raise RowFault(WRONG_TYPE, column, value, "a list")
    if not found:
        raise RowFault(MISSING, column)
    return found


def _values(row: Row, columns: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The value of each column, or of each entry of the one list, with its place."""
    if len(columns) > 1:
        return [(column, row.get(column)) for column in columns]
    column, _, key = columns[0].partition(".")
    entries = listed(row.get(column), column)
    places = [f"{column}[{place}]" for place in range(len(entries))]
    if not key:
        return list(zip(places, entries, strict=True))
    for place, entry in zip(places, entries, strict=True):
        if not isinstance(entry, dict):
            raise RowFault(WRONG_TYPE, place, entry, f"an object with {key}")
    return [(f"{place}.{key}", entry.get(key)) for place, entry in zip(places, entries, strict=True)]


def pair_scores(row: Row) -> tuple[tuple[float, float] | None, float | None]:
    """Both scores where the row has both, and their difference; else the row's `margin`."""
    metadata = row.get("metadata")
    beside: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
    for names in _PAIR_SCORES:
        chosen, rejected = (number(row.get(name, beside.get(name)), name) for name in names)
        if chosen is not None and rejected is not None:
            return (chosen, rejected), chosen - rejected
    margin = number(row.get("margin"), "margin")
    if margin is not None and margin < 0:
        raise RowFault(NEGATIVE_MARGIN, "margin", margin, "0 or more, since the other columns say which is better")
    return None, margin
