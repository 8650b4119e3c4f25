"""YAML 1.2 text → plain values, with the place of every key and value.

PyYAML reads the syntax; what a plain scalar means is decided here, for PyYAML follows YAML 1.1, where `1e-5` is a
text, `off` is false, `010` is eight and `12:30:00` is 45,000. Anchors, aliases and tags have no place in a recipe and
are refused: a few lines of aliases can stand for gigabytes.
"""

import math
import re
from typing import Any, NamedTuple

import yaml

from rmtrain.recipe.faults import Fault, KeyPath, Source, Span

NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 32  # mappings and lists within one another
_MAX_VALUES = 1000  # keys and items; the schema has fewer than a hundred keys
_MAX_DIGITS = 100  # of one number
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"null": None, "Null": None, "NULL": None, "~": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Place(NamedTuple):
    """Where a value stands."""

    key: Span  # of its key; the value's own for a list's item
    value: Span


class Document(NamedTuple):
    """What a YAML text holds."""

    value: Any  # dict, list, str, int, float, bool or None; None too in place of a value that is a fault
    places: dict[KeyPath, Place]
    faults: list[Fault]
    complete: bool  # False where the syntax broke off, so that value says nothing


def parse_document(source: Source, start: int = 0, root: KeyPath = ()) -> Document:
    """Read the YAML from character `start` of a source on; no text makes it raise.

    Args:
        source: the text, and what faults call it.
        start: where the YAML begins.
        root: path of the value within the recipe, put before every path of the result.
    """
    reader = _Reader(source, start)
    try:
        value = reader.read(root)
    except _BrokenOffError as error:
        fault = error.fault
    except yaml.reader.ReaderError as error:
        # the other errors have marks; this one is found before a single token is read
        before = source.text[: start + error.position]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        where = Span(source, line, column, column + 1)
        fault = Fault((), "a character that YAML does not allow", where, "remove it")
    except yaml.MarkedYAMLError as error:
        fault = _syntax_fault(error, reader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # PyYAML lets through what int() and chr() raise on absurd escapes and version numbers
        whole = Span(source, 0, 0, len(source.text)) if source.is_override else source
        fault = Fault(root, f"not valid YAML: {error}", whole)
    else:
        return Document(value, reader.places, reader.faults, complete=True)
    return Document(None, reader.places, [*reader.faults, fault], complete=False)


class _BrokenOffError(Exception):
    """Nothing after this fault can be read."""

    def __init__(self, path: KeyPath, message: str, where: Span | Source, hint: str) -> None:
        super().__init__(message)
        self.fault = Fault(path, message, where, hint)


class _Reader:
    """Builds plain values from PyYAML's events."""

    def __init__(self, source: Source, start: int) -> None:
        self.source = source
        self.start = start
        self.events: Any = None  # PyYAML's parser, which has no types
        self.faults: list[Fault] = []
        self.places: dict[KeyPath, Place] = {}

    def read(self, root: KeyPath) -> Any:
        text = self.source.text[self.start :]
        if len(text) > _MAX_CHARACTERS:
            message = f"longer than {_MAX_CHARACTERS:,} characters"
            raise _BrokenOffError((), message, self.source, "a recipe holds no data")
        self.events = yaml.SafeLoader(text)
        self.events.get_event()  # the stream's start
        if self.events.check_event(yaml.StreamEndEvent):
            if root:
                where = Span(self.source, 0, 0, self.start)
                raise _BrokenOffError(root, "has no value", where, "write null for none")
            hint = "it needs at least model.name and data.source"
            raise _BrokenOffError((), "the recipe is empty", self.source, hint)
        self.events.get_event()  # the document's start
        value = self.node(root, None)
        self.events.get_event()  # the document's end
        if not self.events.check_event(yaml.StreamEndEvent):
            where = self.span(self.events.peek_event())
            raise _BrokenOffError((), "a second document begins here; a recipe is one", where, "remove the line `---`")
        return value

    def span(self, first: yaml.Event, last: yaml.Event | None = None) -> Span:
        """From the beginning of one event to the end of another, or as much of it as is on the first line."""
        return self.between(first.start_mark, (last or first).end_mark)

    def between(self, begin: Any, end: Any) -> Span:
        """The characters between two of PyYAML's marks."""
        offset = self.start if begin.line == 0 else 0
        stop = offset + end.column if begin.line == end.line else len(self.source.lines[begin.line])
        return Span(self.source, begin.line, offset + begin.column, stop)

    def fault(self, path: KeyPath, message: str, where: Span, hint: str = "") -> None:
        self.faults.append(Fault(path, message, where, hint))

    def node(self, path: KeyPath, key: Span | None) -> Any:
        """The value that begins with the next event; None in place of one that is refused."""
        event = self.events.get_event()
        where = self.span(event)
        self.places[path] = Place(key or where, where)
        if len(self.places) > _MAX_VALUES:
            raise _BrokenOffError((), f"more than {_MAX_VALUES:,} values", where, "a recipe holds no data")
        self.refuse_properties(event, path)
        if isinstance(event, yaml.AliasEvent):
            return None
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, path, key or where)
        if len(path) >= _MAX_DEPTH:
            message = f"more than {_MAX_DEPTH} levels deep"
            raise _BrokenOffError((), message, where, "no key of a recipe lies deeper than three")
        value = self.sequence(path) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(path)
        end = self.events.get_event()
        if event.flow_style:
            self.places[path] = Place(key or where, self.span(event, end))
        return value

    def refuse_properties(self, event: Any, path: KeyPath) -> None:
        if event.anchor is not None or getattr(event, "tag", None) is not None:
            message = "anchors (&name), aliases (*name) and tags (!name) are not allowed"
            self.fault(path, message, self.span(event), "write the value out, or quote a text")

    def sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not self.events.check_event(yaml.SequenceEndEvent):
            items.append(self.node((*path, len(items)), None))
        return items

    def mapping(self, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not self.events.check_event(yaml.MappingEndEvent):
            event = self.events.get_event()
            where = self.span(event)
            if not isinstance(event, yaml.ScalarEvent) or event.value == "":
                hint = "give it one, or quote a text that begins with { or ["
                raise _BrokenOffError(path, "a key must be a name", where, hint)
            key = event.value  # as written: a key `on` or `1` is that text
            self.refuse_properties(event, (*path, key))
            self.refuse_control((*path, key), key, where)
            earlier = items.get(key)
            if key in items:
                first = (
                    "" if self.source.is_override else f": line {self.places[(*path, key)].key.line + 1} has it already"
                )
                self.fault((*path, key), f"duplicate key{first}", where, "keep one of the two")
            value = self.node((*path, key), where)
            # a section that is given twice is checked with the keys of both
            items[key] = {**earlier, **value} if isinstance(earlier, dict) and isinstance(value, dict) else value
        return items

    def refuse_control(self, path: KeyPath, text: str, where: Span) -> bool:
        if bad := _CONTROL.search(text):
            self.fault(path, f"control character {bad[0]!a} in a text", where, "remove it")
        return bad is not None

    def scalar(self, event: yaml.ScalarEvent, path: KeyPath, key: Span) -> Any:
        text, where = event.value, self.span(event)
        if event.implicit[0]:  # neither quoted nor tagged
            if text == "":
                # YAML reads null here: a lora section whose keys are all commented out would turn full fine-tuning on
                self.fault(path, "has no value", key, "write null, {} for a section's defaults, or leave the key out")
                return None
            if text in _WORDS:
                return _WORDS[text]
            if _NOT_FINITE.fullmatch(text):
                self.fault(path, f"{text} is not a finite number", where)
                return None
            if _INTEGER.fullmatch(text) or NUMBER.fullmatch(text):
                number = _number(text)
                if number is None:
                    self.fault(path, "a number too large or too long", where)
                return number
        return None if self.refuse_control(path, text, where) else text


def _number(text: str) -> int | float | None:
    """The number that a plain scalar means; None if it is beyond what a float or a 64-bit integer holds."""
    if len(text) > _MAX_DIGITS:
        return None
    if _INTEGER.fullmatch(text):
        integer = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        return integer if abs(integer) < 2**63 else None
    number = float(text)
    return number if math.isfinite(number) else None


def _syntax_fault(error: yaml.MarkedYAMLError, reader: _Reader) -> Fault:
    problem = error.problem or error.context or "unreadable"
    context = f" {error.context}" if error.context and error.problem else ""
    if "'\\t'" in problem:
        hint = "indent with spaces, not tabs"
    elif "mapping values are not allowed" in problem:
        hint = "line the keys of a section up, and quote a text that holds `: `"
    else:
        hint = "quote a text that begins with one of { [ * & ! % @ ` | >"
    mark = error.problem_mark or error.context_mark
    where = reader.source if mark is None else reader.between(mark, mark)
    return Fault((), f"not valid YAML: {problem}{context}", where, hint)
