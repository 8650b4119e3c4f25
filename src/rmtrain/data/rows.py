"""What a row schema makes of one source row, and the checks that all schemas share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmtrain.data.types import Conversation, Message, Preference

Row = Mapping[str, Any]

ROLES = frozenset({"system", "user", "assistant"})

WRONG_TYPE = "wrong type"
MISSING = "missing value"
NO_COMMON_PROMPT = "no common prompt"
UNANSWERED = "does not end with the assistant"
BAD_PREFERENCE = "bad preference"
EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"


class RowFault(Exception):  # noqa: N818 - a verdict on a row, never shown as an error by itself
    """A row that its schema can't read; `cause` is what the ledger books it under."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class ParsedRow(NamedTuple):
    """One row as its schema reads it, before any choice of preferences."""

    prompt: Conversation
    completions: tuple[Conversation, ...]  # K
    stated: tuple[Preference, ...] | None = None  # the preferences that the row itself states; None: it states none
    scores: tuple[float | None, ...] | None = None  # K, or None where the source has no scores
    faults: tuple[str | None, ...] | None = None  # K: why a completion can't be ranked; None: it can
    id: str | None = None
    source: str = ""
    suspect: int = 0  # completions whose overall score is the known recording fault of UltraFeedback


def row_id(row: Row) -> str | None:
    """The row's own id: `id`, else `prompt_id`."""
    for key in ("id", "prompt_id"):
        value = row.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def row_source(row: Row, *columns: str) -> str:
    """The first of `columns` that holds text: what figures are broken down by."""
    return next((value for value in map(row.get, columns) if isinstance(value, str) and value), "")


def number(value: object) -> float | None:
    """A finite number, also from text as CSV has it; None for null, empty text and N/A.

    Raises:
        RowFault: anything else.
    """
    if value is None or (isinstance(value, str) and value.strip().upper() in ("", "N/A", "NA")):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise RowFault(WRONG_TYPE)
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise RowFault(WRONG_TYPE) from None
    if not math.isfinite(result):
        raise RowFault(WRONG_TYPE)
    return result


def conversation(value: object) -> Conversation:
    """A list of `{role, content}` objects as messages.

    Raises:
        RowFault: it is not such a list, it is empty, or a role is unknown.
    """
    if value is None or (isinstance(value, list) and not value):
        raise RowFault(MISSING)
    if not isinstance(value, list):
        raise RowFault(WRONG_TYPE)
    messages = []
    for entry in value:
        if not isinstance(entry, dict):
            raise RowFault(WRONG_TYPE)
        role, content = entry.get("role"), entry.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise RowFault(WRONG_TYPE)
        if role not in ROLES:
            raise RowFault("unknown role")
        messages.append(Message(role, content))
    return tuple(messages)


def prompt_of(value: object) -> Conversation:
    """A prompt given as text (one user message) or as messages."""
    return (Message("user", value),) if isinstance(value, str) else conversation(value)


def completion_of(value: object) -> Conversation:
    """A completion given as text (one assistant message) or as messages that end with the assistant."""
    if isinstance(value, str):
        return (Message("assistant", value),)
    messages = conversation(value)
    if messages[-1].role != "assistant":
        raise RowFault(UNANSWERED)
    return messages


def is_texts(value: object) -> bool:
    """Whether a value is a list of texts and nothing else."""
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)


def common_prefix(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many leading messages two conversations share, leaving each at least one."""
    shared = 0
    for a, b in zip(first[:-1], second[:-1], strict=False):
        if a != b:
            break
        shared += 1
    return shared


def is_empty(completion: Conversation) -> bool:
    """Whether a completion's last message has no text."""
    return not completion[-1].content.strip()


def empty_cause(row: ParsedRow) -> str | None:
    """Whether a row is no use because its prompt, or all but one of its completions, have no text."""
    if not any(message.content.strip() for message in row.prompt):
        return EMPTY_PROMPT
    empty = sum(map(is_empty, row.completions))
    return EMPTY_COMPLETION if empty and len(row.completions) - empty < 2 else None
