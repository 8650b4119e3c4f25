"""What a layout makes of one source row, and the checks that all layouts share."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmtrain.data.transcripts import SPEAKERS, begins_as_transcript, list_in, messages_in, turns
from rmtrain.data.types import Conversation, Message, Preference, as_json

Row = Mapping[str, Any]

# which of them a model knows is up to its chat template
ROLES = frozenset({"system", "user", "assistant", "tool", "developer", "function", "ipython"})
ARGUMENTS = ("tools", "documents", "chat_template_kwargs")  # columns of what a chat template is given beside messages
# transformers' own arguments beside the variables of a template
_NOT_VARIABLES = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize", "padding"}
    | {"truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs", "continue_final_message"}
    | {"return_assistant_tokens_mask", "sanitize_control_tokens", "strftime_now"}
)

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
    arguments: str = ""  # as of PreferenceGroup


def row_id(row: Row) -> str | None:
    """The row's own id: `id`, else `prompt_id`."""
    for key in ("id", "prompt_id"):
        value = row.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def row_source(row: Row, *columns: str) -> str:
    """The first of `columns` that holds text, or a list of one: what figures are broken down by."""
    values = (value[0] if isinstance(value, list) and len(value) == 1 else value for value in map(row.get, columns))
    return next((value for value in values if isinstance(value, str) and value), "")


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
    """A list of `{role, content}` or `{from, value}` objects, or one such object, as messages with all their fields.

    Raises:
        RowFault: it is not such a list, it is empty, a role is unknown, or a content is no text.
    """
    if value is None or (isinstance(value, list) and not value):
        raise RowFault(MISSING, column)
    entries = value if isinstance(value, list) else [value]
    return tuple(_message(entry, value, column) for entry in entries)


def _message(entry: object, value: object, column: str) -> Message:
    if not isinstance(entry, dict):
        raise RowFault(WRONG_TYPE, column, value, _MESSAGES)
    role, content, names = entry.get("role"), entry.get("content"), ("role", "content")
    if role is None and isinstance(entry.get("from"), str):
        role, content, names = SPEAKERS.get(entry["from"], entry["from"]), entry.get("value"), ("from", "value")
    if not isinstance(role, str):
        raise RowFault(WRONG_TYPE, column, entry, "a message with `role` and `content`, or `from` and `value`")
    fields = {key: other for key, other in entry.items() if key not in names and other is not None}
    if content is None and Message(role, "", as_json(fields)).calls:
        content, fields = "", {"content": None, **fields}
    text = _text(content, f"{column}, in a message of the {role[:_SHOWN]}, whose content")
    if role not in ROLES:
        raise RowFault("unknown role", column, role, f"a role of {', '.join(sorted(ROLES))}")
    return Message(role, text, as_json(fields))


def _text(content: object, place: str) -> str:
    """Content as text; of several parts of text, one after the other, as chat templates print them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowFault(WRONG_TYPE, place, content, "text")
    texts = []
    for part in content:
        found = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {"text": part}
        text, kind = found.get("text"), found.get("type", "text" if "text" in found else next(iter(found), "nothing"))
        if kind != "text":
            raise RowFault(f"content of type {str(kind)[:_SHOWN]}", place, part, "parts of text alone")
        if not isinstance(text, str):
            raise RowFault(WRONG_TYPE, place, part, "parts of text")
        texts.append(text)
    return "".join(texts)


def token_ids(value: object, column: str) -> list[int]:
    """A list of token ids, or the JSON of one.

    Raises:
        RowFault: it is none, it is empty, or an entry is no number that a token could have.
    """
    found = list_in(value)
    wanted = "a list of token ids, which are whole numbers from 0"
    if value is None or value == "" or found == []:
        raise RowFault(MISSING, column)
    if found is None:
        raise RowFault(WRONG_TYPE, column, value, wanted)
    for place, entry in enumerate(found):
        if type(entry) is not int or entry < 0:
            raise RowFault(WRONG_TYPE, f"{column}[{place}]", entry, wanted)
    return found


def template_arguments(row: Row) -> str:
    """JSON of what a row gives the chat template beside messages: `tools`, `documents` and `chat_template_kwargs`.

    Raises:
        RowFault: one of them, which may be JSON text, is not what `apply_chat_template` takes.
    """
    found: dict[str, Any] = {}
    for name, kind in zip(ARGUMENTS, (list, list, dict), strict=True):
        value = given = row.get(name)
        if isinstance(given, str) and given.strip():
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(given)
        if not value:
            continue
        if not isinstance(value, kind) or (kind is list and not all(isinstance(entry, dict) for entry in value)):
            raise RowFault(
                WRONG_TYPE, name, given, f"{'an object' if kind is dict else 'a list of objects'}, or its JSON"
            )
        found[name] = value
    variables = {k: v for k, v in found.pop("chat_template_kwargs", {}).items() if v is not None}
    if reserved := sorted(_NOT_VARIABLES & variables.keys()):
        raise RowFault("no variable of a chat template", ARGUMENTS[2], reserved[0], "variables of the template")
    return as_json({**found, **variables})


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
        raise RowFault(UNANSWERED, f"{column}, whose last message is of the {messages[-1].role}")
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
    """Whether a completion's last message has no text and calls no tool."""
    return not completion[-1].content.strip() and not completion[-1].calls


def empty_cause(row: ParsedRow) -> str | None:
    """Whether a row is no use because its prompt, or all but one of its completions, have no text."""
    if not any(message.content.strip() or message.calls for message in row.prompt):
        return EMPTY_PROMPT
    empty = sum(map(is_empty, row.completions))
    return EMPTY_COMPLETION if empty and len(row.completions) - empty < 2 else None
