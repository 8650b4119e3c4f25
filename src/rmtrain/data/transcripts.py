"""Texts that stand for whole conversations: messages as JSON or as Python prints them, and `Human:` transcripts."""

import ast
import json
import re
import warnings
from typing import Any

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_OBJECTS = re.compile(r"\s*\[\s*\{\s*['\"]")
_LIKE_MESSAGES = re.compile(r"\s*\[\s*\{\s*(['\"])(?:role|content|from|value)\1\s*:")
_LONGEST_REPR = 1_000_000  # characters that Python's parser is given
SPEAKERS = {  # what `from` calls the roles
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


def messages_in(text: str) -> list[dict[str, Any]] | None:
    """The messages that a text holds as JSON, or as Python or numpy print them; None where it is a text as any other.

    Only a list of objects that all have `role` and `content`, or `from` and `value`, is messages: an answer may well
    be JSON itself.

    Raises:
        ValueError: it begins as such a list and can't be read.
    """
    if not _OBJECTS.match(text):
        return None
    try:
        value = _parse(text.strip())
    except ValueError:
        if _LIKE_MESSAGES.match(text):
            raise
        return None
    entries = value if isinstance(value, list) else []
    return entries if entries and all(map(_is_message, entries)) else None


def list_in(value: object) -> list[Any] | None:
    """A list, or the one that a text holds as JSON or as Python prints it; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = _parse(value.strip())
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _is_message(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    return any(what in entry and entry.get(who) in SPEAKERS for who, what in (("role", "content"), ("from", "value")))


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _parse_python(text)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise ValueError("it holds what is neither text nor number, or half of a surrogate pair") from None
    return value


def _parse_python(text: str) -> Any:
    if len(text) > _LONGEST_REPR:
        raise ValueError("it is no JSON, and too long for a Python literal")
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            # numpy puts no comma between entries; a printed text has no line break of its own
            return ast.literal_eval(re.sub(r"\}\s*\n\s*\{", "}, {", text))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise ValueError("it is neither JSON nor a Python literal") from None


def turns(text: str) -> list[tuple[str, str]] | None:
    """The (role, text) turns of a transcript of `\\n\\nHuman:` and `\\n\\nAssistant:`; None where it is none.

    The speakers take turns and the human begins. An empty last turn of the assistant is kept.
    """
    before, *parts = _TURN.split(f"\n\n{text.strip()}")
    speakers, said = parts[::2], parts[1::2]
    if (
        before.strip()
        or not speakers
        or speakers != [("Human", "Assistant")[turn % 2] for turn in range(len(speakers))]
    ):
        return None
    return [(_ROLES[who], what.strip()) for who, what in zip(speakers, said, strict=True)]


def begins_as_transcript(text: str) -> bool:
    """Whether a text begins with the marker of a transcript, blank line included."""
    return text.lstrip(" \r\t").startswith("\n\nHuman:")


def shared_beginning(first: str, second: str) -> int:
    """How many characters two texts share as their prompt, by the rule of TRL's `extract_prompt`.

    The common prefix, without a space at its end; where one text goes on from the other, all but the last character.
    """
    shorter = min(len(first), len(second))
    for i in range(shorter):
        if first[i] != second[i]:
            return i - 1 if i and first[i - 1] == " " else i
    return max(0, shorter - 1)
