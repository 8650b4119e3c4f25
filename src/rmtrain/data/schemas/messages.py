"""Cells of a row → messages: from plain texts, `Human:` transcripts, lists of messages, and token ids."""

import ast
import io
import json
import re
import tokenize
import warnings
from typing import Any

from rmtrain.data.schemas.rows import MALFORMED, MISSING, UNANSWERED, WRONG_TYPE, RowFault
from rmtrain.data.types import Conversation, Message, Row, as_json, without_nulls

# a chat template may know only some of these
ROLES = frozenset({"system", "user", "assistant", "tool", "developer", "function", "ipython"})
SPEAKERS = {  # the value of `from` → role
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant"}
_OBJECTS = re.compile(r"\s*\[\s*\{\s*['\"]")
_LIKE_MESSAGES = re.compile(r"\s*\[\s*\{\s*(['\"])(?:role|content|from|value)\1\s*:")
_LIKE_A_MESSAGE = re.compile(r"\s*\{\s*(['\"])(?:role|content|from|value)\1\s*:")
_LONGEST_REPR = 1_000_000  # maximum characters for Python's parser
_MESSAGES = "text, or a list of messages with `role` and `content`"
_SHOWN = 40  # characters of a role or type in a message


# --- rows' cells → conversations


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


def conversation(value: object, column: str = "") -> Conversation:
    """A list of `{role, content}` or `{from, value}` objects, or one such object, as messages with all their fields.

    Raises:
        RowFault: it is not such a list, it is empty, a role is unknown, or a content is not text.
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
    fields = without_nulls(fields) if fields else fields
    if content is None and Message(role, "", as_json(fields)).calls:
        content, fields = "", {"content": None, **fields}
    text = _text(content, f"{column}, in a message of the {role[:_SHOWN]}, whose content")
    if role not in ROLES:
        raise RowFault("unknown role", column, role, f"a role of {', '.join(sorted(ROLES))}")
    return Message(role, text, as_json(fields))


def _text(content: object, place: str) -> str:
    """Content as text; several parts of text are joined, as chat templates print them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowFault(WRONG_TYPE, place, content, "text")
    texts = []
    for part in content:
        fields = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {"text": part}
        text = fields.get("text")
        kind = fields.get("type", "text" if "text" in fields else next(iter(fields), "nothing"))
        if kind != "text":
            raise RowFault(f"content of type {str(kind)[:_SHOWN]}", place, part, "parts of text alone")
        if not isinstance(text, str):
            raise RowFault(WRONG_TYPE, place, part, "parts of text")
        texts.append(text)
    return "".join(texts)


def token_ids(value: object, column: str) -> list[int]:
    """A list of token ids, or its JSON.

    Raises:
        RowFault: it is not a list, is empty, or has an entry that can't be a token id.
    """
    ids = list_in(value)
    wanted = "a list of token ids, which are whole numbers from 0"
    if value is None or value == "" or ids == []:
        raise RowFault(MISSING, column)
    if ids is None:
        raise RowFault(WRONG_TYPE, column, value, wanted)
    for place, entry in enumerate(ids):
        if type(entry) is not int or entry < 0:
            raise RowFault(WRONG_TYPE, f"{column}[{place}]", entry, wanted)
    return ids


# --- lists inside texts


def as_messages(value: object, column: str) -> object:
    """The list of messages that a text holds as JSON or as Python prints it; any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        messages = messages_in(value)
    except ValueError as error:
        raise RowFault("unreadable messages", column, value, f"messages, and {error}") from None
    return value if messages is None else messages


def messages_in(text: str) -> list[Row] | None:
    """The messages that a text holds as JSON, or as Python or numpy print them; None for any other text.

    Only a list of objects that all have `role` and `content`, or `from` and `value`, is messages, and one such object
    of the assistant: an answer may well be JSON itself.

    Raises:
        ValueError: it begins as such a list and can't be read.
    """
    if not (_OBJECTS.match(text) or _LIKE_A_MESSAGE.match(text)):
        return None
    try:
        value = _parse(text.strip())
    except ValueError:
        if _LIKE_MESSAGES.match(text):
            raise
        return None
    if isinstance(value, dict):
        return [value] if _speaker_of(value) == "assistant" else None
    entries = value if isinstance(value, list) else []
    return entries if entries and all(map(_speaker_of, entries)) else None


def list_in(value: object) -> list[Any] | None:
    """A list, or the one that a text holds as JSON or as Python prints it; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = _parse(value.strip())
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def listed(value: object, column: str) -> list[Any]:
    """The list from `list_in`.

    Raises:
        RowFault: there is none, or it is empty.
    """
    entries = list_in(value)
    if entries is None and value not in (None, ""):
        raise RowFault(WRONG_TYPE, column, value, "a list")
    if not entries:
        raise RowFault(MISSING, column)
    return entries


def _speaker_of(entry: object) -> str | None:
    """The role of a message's speaker; None for anything that is no message of a known speaker."""
    for who, what in (("role", "content"), ("from", "value")):
        if isinstance(entry, dict) and what in entry and isinstance(speaker := entry.get(who), str):
            return SPEAKERS.get(speaker)
    return None


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _parse_python(text)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise ValueError("it holds a value that is neither text nor a number, or half of a surrogate pair") from None
    return value


def _parse_python(text: str) -> Any:
    if len(text) > _LONGEST_REPR:
        raise ValueError("it is not JSON, and too long for a Python literal")
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            # numpy puts no comma between entries; a printed text has no line break of its own
            return ast.literal_eval(_with_commas(re.sub(r"\}\s*\n\s*\{", "}, {", text)))
    except (tokenize.TokenError, ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise ValueError("it is neither JSON nor a Python literal") from None


def _with_commas(text: str) -> str:
    """A printed list with commas between texts that follow each other, which Python would read as one text."""
    if not re.search(r"['\"]\s+['\"]", text):
        return text
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string.strip()]
    texts = [token.type == tokenize.STRING for token in tokens] + [False]
    return " ".join(f"{token.string}," if all(texts[i : i + 2]) else token.string for i, token in enumerate(tokens))


# --- transcripts


def turns(text: str) -> list[tuple[str, str]] | None:
    """The (role, text) turns of a transcript of `\\n\\nHuman:` and `\\n\\nAssistant:`; None for any other text.

    The speakers alternate and the human begins. An empty last turn of the assistant is kept.
    """
    before, *parts = _TURN.split(f"\n\n{text.strip()}")
    speakers, said = parts[::2], parts[1::2]
    alternating = [("Human", "Assistant")[turn % 2] for turn in range(len(speakers))]
    if before.strip() or not speakers or speakers != alternating:
        return None
    return [(_TURN_ROLES[who], what.strip()) for who, what in zip(speakers, said, strict=True)]


def begins_as_transcript(text: str) -> bool:
    """Whether a text begins with the marker of a transcript, blank line included."""
    return text.lstrip(" \r\t").startswith("\n\nHuman:")
