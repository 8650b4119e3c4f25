"""What a chat template leaves out: texts, tool calls and tools of a conversation that its rendering lacks."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from rmtrain.data.types import Conversation, Message, Row, from_json

_ANYWHERE = ("system", "developer")  # some templates put these before the last question
_REASONING = ("reasoning_content", "reasoning", "thinking")
_FEW = 20  # fewer characters, without white space, may match by chance
_SHOWN = 60
NO_ROLES = ("tool calls", "tools", "documents", "reasoning")  # kinds of omission other than a role's text


class Omission(NamedTuple):
    """A part of a conversation that is missing in its rendering."""

    what: str  # the role whose text is missing, or one of NO_ROLES
    words: str  # its beginning


def find_omissions(text: str, conversation: Conversation, arguments: str = "") -> list[Omission]:
    """The parts of a conversation that are missing in its rendering.

    The text of every message must occur, in order, apart from white space and the escapes of JSON; of a tool or a tool
    call, its name.
    """
    plain = not arguments and not any(message.fields for message in conversation)
    if plain and _holds_all(text, conversation):
        return []
    whole, place, omissions = _squeezed(text), 0, list[Omission]()
    for message in conversation:
        anywhere = message.role in _ANYWHERE
        after = _after(whole, message.content, 0 if anywhere else place)
        if after is None:
            omissions.append(Omission(message.role, _words(whole, message.content)))
        place = place if after is None or anywhere else after
        omissions += [each for each in _of_fields(message) if _after(whole, each.words, 0) is None]
    omissions += [each for each in _of_arguments(arguments) if _after(whole, each.words, 0) is None]
    return [each._replace(words=each.words.strip()[:_SHOWN]) for each in omissions]


def _holds_all(text: str, conversation: Conversation) -> bool:
    place = 0
    for message in conversation:
        wanted = message.content.strip()
        place = text.find(wanted, place)
        if place < 0:
            return False
        place += len(wanted)
    return True


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _after(whole: str, content: str, start: int) -> int | None:
    """Where a text, plain or as JSON, ends in the rendering, searched from `start`; None if it is missing."""
    for wanted in (content, json.dumps(content, ensure_ascii=False)[1:-1]):
        wanted = _squeezed(wanted)
        place = whole.find(wanted, start)
        if place >= 0:
            return place + len(wanted)
    return None


def _words(whole: str, content: str) -> str:
    """The rest of a missing text, from where it no longer matches."""
    wanted = _squeezed(content)
    kept, least_lost = 0, len(wanted)
    while least_lost - kept > 1:
        middle = (kept + least_lost) // 2
        kept, least_lost = (middle, least_lost) if wanted[:middle] in whole else (kept, middle)
    if kept < _FEW:
        return content
    seen = 0
    for place, character in enumerate(content):
        if seen == kept:
            return content[place:]
        seen += not character.isspace()
    return content


def _of_fields(message: Message) -> Iterator[Omission]:
    """What the rendering should contain because of the other fields of a message."""
    fields = from_json(message.fields)
    for call in _objects(fields.get("tool_calls")) + _objects([fields.get("function_call")]):
        yield from _named("tool calls", call)
    for key in _REASONING:
        if isinstance(fields.get(key), str):
            yield Omission("reasoning", fields[key])


def _of_arguments(arguments: str) -> Iterator[Omission]:
    variables = from_json(arguments)
    for tool in _objects(variables.get("tools")):
        yield from _named("tools", tool)
    for document in _objects(variables.get("documents")):
        if texts := [value for value in document.values() if isinstance(value, str)]:
            yield Omission("documents", max(texts, key=len))


def _named(what: str, entry: Row) -> Iterator[Omission]:
    function = entry.get("function")
    name = (function if isinstance(function, dict) else entry).get("name")
    if isinstance(name, str):
        yield Omission(what, name)


def _objects(value: object) -> list[Row]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
