"""What a layout makes of one source row, and the checks that all layouts share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmtrain.data.transcripts import SPEAKERS, begins_as_transcript, messages_in, turns
from rmtrain.data.types import Conversation, Message, Preference

Row = Mapping[str, Any]

ROLES = frozenset({"system", "user", "assistant"})

WRONG_TYPE = "wrong type"
MALFORMED = "malformed transcript"
MISSING = "missing value"
NO_COMMON_PROMPT = "no common prompt"
UNANSWERED = "does not end with the assistant"
BAD_PREFERENCE = "bad preference"
EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"

_MESSAGES = "text, or a list of messages with `role` and `content`"
_SHOWN = 40  # characters of a value in a message


class RowFault(Exception):  # noqa: N818 - a verdict on a row, never shown as an error by itself
    """A row that its layout can't read; `cause` is what the ledger books it under.

    Args:
        cause: in a few words, the same for all rows with this fault.
        column: the column that is at fault; empty for the row as a whole.
        value: what the column holds; shown only with `wanted`.
        wanted: what the column should hold.
    """

    def __init__(self, cause: str, column: str = "", value: object = None, wanted: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        found = f" holds {shown(value)}, expected {wanted}" if wanted else ""
        self.detail = f"{cause}: column {column}{found}" if column else cause


def shown(value: object) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:_SHOWN]}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= _SHOWN else value[:_SHOWN] + '…'!r}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} that begins with {shown(value[0])}" if value else "an empty list"
    if isinstance(value, Mapping):
        return (
            f"an object with {', '.join(repr(str(key)[:_SHOWN]) for key in list(value)[:4])}"
            if value
            else "an empty object"
        )
    return f"a {type(value).__name__}"


class ParsedRow(NamedTuple):
    """One row as its layout reads it, before any choice of preferences."""

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


def number(value: object, column: str = "") -> float | None:
    """A finite number, also from text as CSV has it; None for null, empty text and N/A.

    Raises:
        RowFault: anything else.
    """
    if value is None or (isinstance(value, str) and value.strip().upper() in ("", "N/A", "NA")):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        result = float(value)
        if not math.isfinite(result):
            raise ValueError
    except (ValueError, OverflowError):
        raise RowFault(WRONG_TYPE, column, value, "a finite number") from None
    return result


def conversation(value: object, column: str = "") -> Conversation:
    """A list of `{role, content}` or `{from, value}` objects, or one such object, as messages.

    Raises:
        RowFault: it is not such a list, it is empty, or a role is unknown.
    """
    if value is None or (isinstance(value, list) and not value):
        raise RowFault(MISSING, column)
    entries = value if isinstance(value, list) else [value]
    return tuple(_message(entry, value, column) for entry in entries)


def _message(entry: object, value: object, column: str) -> Message:
    if not isinstance(entry, dict):
        raise RowFault(WRONG_TYPE, column, value, _MESSAGES)
    role, content = entry.get("role"), entry.get("content")
    if role is None and isinstance(entry.get("from"), str):
        role, content = SPEAKERS.get(entry["from"], entry["from"]), entry.get("value")
    if not isinstance(role, str):
        raise RowFault(WRONG_TYPE, column, entry, "a message with `role` and `content`, or `from` and `value`")
    if not isinstance(content, str):
        raise RowFault(WRONG_TYPE, f"{column}, in a message of the {role[:_SHOWN]}, whose content", content, "text")
    if role not in ROLES:
        raise RowFault("unknown role", column, role, f"a role of {', '.join(sorted(ROLES))}")
    return Message(role, content)


def prompt_of(value: object, column: str = "prompt") -> Conversation:
    """A prompt given as text (one user message, or a transcript) or as messages."""
    value = as_messages(value, column)
    if not isinstance(value, str):
        return conversation(value, column)
    said = turns(value)
    if begins_as_transcript(value) or (said and len(said) > 1):
        if said and said[-1] == ("assistant", ""):
            said = said[:-1]
        if not said or said[-1][0] != "user":
            raise RowFault(MALFORMED, column, value, "turns of Human and Assistant that end with Human's")
        return tuple(Message(role, text) for role, text in said)
    return (Message("user", value),)


def completion_of(value: object, column: str = "completion") -> Conversation:
    """A completion given as text (one assistant message, or a transcript) or as messages ending with the assistant."""
    value = as_messages(value, column)
    if isinstance(value, str):
        return transcript(value, column) if begins_as_transcript(value) else (Message("assistant", value),)
    messages = conversation(value, column)
    if messages[-1].role != "assistant":
        raise RowFault(UNANSWERED, column)
    return messages


def transcript(value: object, column: str) -> Conversation:
    """A whole transcript of `\\n\\nHuman:` and `\\n\\nAssistant:` turns that ends with the assistant."""
    if value is None:
        raise RowFault(MISSING, column)
    wanted = "a transcript of Human and Assistant turns that ends with Assistant's"
    if not isinstance(value, str):
        raise RowFault(WRONG_TYPE, column, value, wanted)
    said = turns(value)
    if not said or said[-1][0] != "assistant":
        raise RowFault(MALFORMED, column, value, wanted)
    return tuple(Message(role, text) for role, text in said)


def as_messages(value: object, column: str) -> object:
    """Messages where a text holds them as JSON or as Python prints them; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = messages_in(value)
    except ValueError as error:
        raise RowFault("unreadable messages", column, value, f"messages, and {error}") from None
    return value if found is None else found


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
