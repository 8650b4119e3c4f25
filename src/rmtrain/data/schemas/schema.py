"""RowSchema: the columns with the prompt, the answers and the label or scores; and reading a row by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rmtrain.data.schemas.messages import as_messages, begins_as_transcript, completion_of, listed
from rmtrain.data.schemas.prompts import (
    in_turns,
    prompt_column,
    split_ids,
    split_prompt,
    split_texts,
    spoken,
    with_system,
)
from rmtrain.data.schemas.rows import (
    MISSING,
    TEMPLATE_COLUMNS,
    WRONG_TYPE,
    ParsedRow,
    RowFault,
    is_texts,
    number,
    rating_faults,
    refuse_media,
    row_id,
    row_source,
    score_gap,
    template_arguments,
    value_at,
)
from rmtrain.data.schemas.votes import with_votes, with_weights
from rmtrain.data.types import Conversation, Preference, Row, right_over_wrong

NEGATIVE_MARGIN = "negative margin"
UNKNOWN_LABEL = "unknown label"
NOT_COUNTED_FROM_0 = "label beyond the last answer"
_PAIR_SCORES = (  # names of the columns with the scores of a pair: of the chosen, of the rejected
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
_IDS = {"id", "prompt_id"}
_PAIR_READS = {"margin", "metadata", *(name for names in _PAIR_SCORES for name in names)}

Scores = tuple[float | None, ...]  # K; None: this completion has none


@dataclass(frozen=True)
class Label:
    """The label of the better answer.

    Attributes:
        columns: one column; or several, one for each answer and perhaps one for a tie, of which exactly one is 1.
        better: value → answer, from 0. Empty: the value is that number. `negative` and `positive` are signs.
        ties: values that mean a tie.
    """

    columns: tuple[str, ...]
    better: Mapping[str, int] = field(default_factory=dict)
    ties: frozenset[str] = frozenset()

    def verdict(self, row: Row, k: int) -> tuple[int | None, float | None]:
        """The better one of `k` answers (None for a tie), and the score gap if the label is a signed number.

        Raises:
            RowFault: the label is missing or unknown.
        """
        if len(self.columns) > 1:
            marked = [place for place, column in enumerate(self.columns) if _is_marked(row.get(column), column)]
            if len(marked) != 1:
                raise RowFault(UNKNOWN_LABEL, " and ".join(self.columns), marked, "1 in exactly one of them")
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
        if not self.better and key == str(k):
            raise RowFault(NOT_COUNTED_FROM_0, column, value, f"0 to {k - 1}, since answers are counted from 0")
        known = [*self.better, *sorted(self.ties)] or [str(place) for place in range(k)]
        raise RowFault(UNKNOWN_LABEL, column, value, f"one of: {', '.join(known)}")


def label_key(value: object) -> str:
    """A label's value for comparison: 1, 1.0 and "1" are equal, and so are true and "True"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().casefold()


def _is_marked(value: object, column: str) -> bool:
    return value if isinstance(value, bool) else bool(number(value, column))


@dataclass(frozen=True)
class RowSchema:
    """Which columns of a row hold its prompt, its answers, and what says which answer is better.

    Without a label, the scores decide; without both, the first answer is the best.
    """

    name: str  # the value of `data.row_schema`
    needs: tuple[str, ...]  # columns that identify it; `answers.rank`: the entries of the list have this key
    answers: tuple[str, ...] = ("chosen", "rejected")  # a column each, or one list: of answers, or of their objects
    prompt: str = "prompt"  # its column; empty: the common beginning of the answers
    label: Label | None = None
    scores: tuple[str, ...] = ()  # like answers
    ranked: bool = False  # the scores are ranks, of which 1 is the best
    turns: bool = False  # prompt and answers may be lists of each speaker's texts by turn
    judged: str = ""  # column with the number of judged answers, if conversations may continue after them
    source: tuple[str, ...] = ("source",)  # columns for figures by source
    read_prompt: Callable[[Row, str], Conversation] = prompt_column
    reads: tuple[str, ...] = ()  # further columns
    reader: Callable[[Row], ParsedRow] | None = None  # reads rows that this description can't describe
    votes: str = ""  # column with raters' votes, which then decide which answer is better
    weights: str = ""  # column with the weights of preferences
    tokens: bool = False  # prompt and answers are token ids, used without a chat template
    when: Callable[[Row], bool] | None = None  # a further condition on a sample

    @property
    def columns(self) -> frozenset[str]:
        """All used columns."""
        named = {
            *self.needs,
            *self.answers,
            *self.scores,
            *self.source,
            *self.reads,
            self.prompt,
            self.judged,
            self.votes,
            self.weights,
        }
        named |= {*self.label.columns} if self.label else set()
        named |= _PAIR_READS if self._best_first else set()
        named |= set() if self.tokens else {"system", *TEMPLATE_COLUMNS}
        return frozenset(_IDS | {name.partition(".")[0] for name in named if name})

    @property
    def _best_first(self) -> bool:
        return self.label is None and not self.scores and self.reader is None

    def read(self, row: Row) -> ParsedRow:
        """Read one row.

        Raises:
            RowFault: the row does not fit the schema.
        """
        refuse_media(row)
        parsed = self.reader(row) if self.reader else self._read(row)
        if self.votes:
            parsed = with_votes(parsed, row.get(self.votes), self.votes)
        if self.weights:
            parsed = with_weights(parsed, row.get(self.weights), self.weights)
        parsed = parsed._replace(id=row_id(row), source=row_source(row, *self.source))
        if self.tokens:
            return parsed
        return parsed._replace(prompt=with_system(row, parsed.prompt), arguments=template_arguments(row))

    def _read(self, row: Row) -> ParsedRow:
        cells = _cells(row, self.answers)
        two = self._best_first and not self.tokens and len(self.answers) == 2
        if two and any(is_texts(value) for _, value in cells):
            return self._right_and_wrong(row, cells)
        prompt, completions = self._conversations(row, cells)
        k = len(completions)
        if self._best_first:
            pair, gap = pair_scores(row)
            return ParsedRow(prompt, completions, tuple(Preference(0, other, gap) for other in range(1, k)), pair)
        scores = self._scores(row, k)
        if self.label is None:
            return ParsedRow(prompt, completions, scores=scores, faults=rating_faults(scores))
        return ParsedRow(prompt, completions, self._stated(row, self.label, k, scores), scores)

    def _stated(self, row: Row, label: Label, k: int, scores: Scores | None) -> tuple[Preference, ...]:
        best, strength = label.verdict(row, k)
        if best is None:
            return tuple(Preference(0, other, 0.0) for other in range(1, k))
        if best >= k:
            raise RowFault(UNKNOWN_LABEL, label.columns[0], best, f"one of the {k} answers")
        return tuple(
            Preference(best, other, strength if strength is not None else score_gap(scores, best, other))
            for other in range(k)
            if other != best
        )

    def _conversations(self, row: Row, cells: list[tuple[str, Any]]) -> tuple[Conversation, tuple[Conversation, ...]]:
        """Prompt and answers, from their own columns or with the prompt inside every answer."""
        if self.tokens:
            return split_ids(row.get(self.prompt), self.prompt, cells)
        asked = (self.prompt, row.get(self.prompt) if self.prompt else None)  # a CSV column may have no heading
        said = [spoken(value, column) for column, value in (asked, *cells)] if self.turns else []
        if said and None not in said:
            return in_turns(*said)  # type: ignore[arg-type]
        values = [(column, as_messages(value, column)) for column, value in cells]
        if missing := next((column for column, value in values if value is None), None):
            raise RowFault(MISSING, missing)
        answers = [completion_of(value, column) for column, value in values]
        first, like = values[0]
        for column, value in values:
            if isinstance(value, str) != isinstance(like, str):
                kind = "text" if isinstance(like, str) else "messages"
                raise RowFault(WRONG_TYPE, column, value, f"{kind}, as in {first}")
        texts = [value for _, value in values if isinstance(value, str) and not begins_as_transcript(value)]
        if not self.prompt and len(texts) == len(values) > 1:
            return split_texts(texts)
        if self.judged and (judged := number(row.get(self.judged), self.judged)):
            answers = [_first_answers(answer, int(judged)) for answer in answers]
        if all(answer[0].role == "assistant" for answer in answers):
            return self.read_prompt(row, self.prompt or "prompt"), tuple(answers)
        return split_prompt(answers, as_messages(asked[1], self.prompt))

    def _right_and_wrong(self, row: Row, cells: list[tuple[str, Any]]) -> ParsedRow:
        """A list of right texts and one of wrong texts: each right one is preferred to each wrong one."""
        for column, texts in cells:
            if not is_texts(texts):
                raise RowFault(WRONG_TYPE, column, texts, "a list of texts") if texts else RowFault(MISSING, column)
        right, wrong = (texts for _, texts in cells)
        return ParsedRow(
            prompt=self.read_prompt(row, self.prompt),
            completions=tuple(completion_of(text) for text in [*right, *wrong]),
            stated=right_over_wrong(len(right), len(wrong)),
        )

    def _scores(self, row: Row, k: int) -> Scores | None:
        if not self.scores:
            return None
        values = [number(value, column) for column, value in _cells(row, self.scores)]
        if len(values) != k:
            raise RowFault(WRONG_TYPE, self.scores[0], values, f"{k} numbers, one for each answer")
        if self.ranked:
            values = [None if value is None else -value for value in values]
        return None if all(value is None for value in values) else tuple(values)


def _first_answers(conversation: Conversation, count: int) -> Conversation:
    """A conversation up to its `count`-th answer."""
    ends = [place for place, message in enumerate(conversation, 1) if message.role == "assistant"]
    return conversation[: ends[count - 1]] if 0 < count < len(ends) else conversation


def _cells(row: Row, columns: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Name and value of each column; of a single column, of each entry of its list."""
    if len(columns) > 1:
        return [(column, value_at(row, column)) for column in columns]
    column, _, key = columns[0].partition(".")
    entries = listed(row.get(column), column)
    named = [(f"{column}[{place}]", entry) for place, entry in enumerate(entries)]
    if not key:
        return named
    for name, entry in named:
        if not isinstance(entry, dict):
            raise RowFault(WRONG_TYPE, name, entry, f"an object with {key}")
    return [(f"{name}.{key}", entry.get(key)) for name, entry in named]


def pair_scores(row: Row) -> tuple[tuple[float, float] | None, float | None]:
    """The scores of chosen and rejected and their difference, if the row has both scores; else the row's `margin`."""
    metadata = row.get("metadata")
    beside = metadata if isinstance(metadata, dict) else {}
    for names in _PAIR_SCORES:
        if not any(name in row or name in beside for name in names):
            continue
        chosen, rejected = (number(row.get(name, beside.get(name)), name) for name in names)
        if chosen is not None and rejected is not None:
            return (chosen, rejected), chosen - rejected
    margin = number(row.get("margin"), "margin")
    if margin is not None and margin < 0:
        raise RowFault(NEGATIVE_MARGIN, "margin", margin, "0 or more, since the other columns say which is better")
    return None, margin
