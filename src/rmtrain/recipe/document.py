"""YAML 1.2 text → plain values, with the place of every key and value.

PyYAML reads the syntax; what a plain scalar means is decided here, for PyYAML follows YAML 1.1, where `1e-5` is a
text, `off` is false, `010` is eight and `12:30:00` is 45,000. Aliases and tags have no place in a recipe and are
refused: a few lines of aliases can stand for gigabytes.
"""

import math
import re
from typing import Any, NamedTuple

import yaml

from rmtrain.recipe.faults import Fault, KeyPath, Source, Span

NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_CHARACTERS = 100_000
_MAX_VALUES = 1000  # keys and items; the schema has fewer than a hundred keys
_MAX_DIGITS = 100  # of one number
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"null": None, "Null": None, "NULL": None, "~": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}  # of what has none
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
    except RecursionError:
        fault = Fault(root, "nested too deeply", source, "no key of a recipe lies deeper than three")
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets through what int() and chr() raise on absurd escapes and version numbers
        fault = Fault(root, f"not valid YAML: {error}", source)
    else:
        return Document(value, reader.places, reader.faults, complete=True)
    return Document(None, reader.places, [*reader.faults, fault], complete=False)


class _BrokenOffError(Exception):
    """Nothing after this fault can be read."""

    def __init__(self, path: KeyPath, message: str, where: Span | Source, hint: str) -> None:
        super().__init__(message)
        self.fault = Fault(path, message, where, hint)


class _Reader:
    """Builds plain values from PyYAML's nodes."""

    def __init__(self, source: Source, start: int) -> None:
        self.source = source
        self.start = start
        self.faults: list[Fault] = []
        self.places: dict[KeyPath, Place] = {}
        self.seen: set[yaml.Node] = set()

    def read(self, root: KeyPath) -> Any:
        text = self.source.text[self.start :]
        if len(text) > _MAX_CHARACTERS:
            message = f"longer than {_MAX_CHARACTERS:,} characters"
            raise _BrokenOffError((), message, self.source, "a recipe holds no data")
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        if node is not None:
            return self.node(node, root, None)
        if root:
            raise _BrokenOffError(root, "has no value", Span(self.source, 0, 0, self.start), "write null for none")
        hint = "it needs at least model.name and data.source"
        raise _BrokenOffError((), "the recipe is empty", self.source, hint)

    def span(self, begin: Any, end: Any) -> Span:
        """The characters between two of PyYAML's marks, or as many of them as are on the first line."""
        offset = self.start if begin.line == 0 else 0
        stop = offset + end.column if begin.line == end.line else len(self.source.lines[begin.line])
        return Span(self.source, begin.line, offset + begin.column, stop)

    def fault(self, path: KeyPath, message: str, where: Span, hint: str = "") -> None:
        self.faults.append(Fault(path, message, where, hint))

    def node(self, node: yaml.Node, path: KeyPath, key: Span | None) -> Any:
        """What a node means; None in place of what is refused."""
        where = self.span(node.start_mark, node.end_mark)
        self.places[path] = Place(key or where, where)
        if len(self.places) > _MAX_VALUES:
            raise _BrokenOffError((), f"more than {_MAX_VALUES:,} values", where, "a recipe holds no data")
        if node in self.seen:
            self.fault(path, "aliases (*name) are not allowed", key or where, "write the value out, or quote a text")
            return None
        self.seen.add(node)
        self.refuse_tag(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path, key or where)
        if isinstance(node, yaml.SequenceNode):
            return [self.node(item, (*path, index), None) for index, item in enumerate(node.value)]
        return self.mapping(node, path)

    def refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        if node.tag not in _TAGS:
            where = self.span(node.start_mark, node.end_mark)
            self.fault(path, "tags (!name) are not allowed", where, "remove it, or quote a text")

    def mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = self.span(key_node.start_mark, key_node.end_mark)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "":
                hint = "give it one, or quote a text that begins with { or ["
                raise _BrokenOffError(path, "a key must be a name", where, hint)
            key = key_node.value  # as written: a key `on` or `1` is that text
            self.refuse_tag(key_node, (*path, key))
            self.refuse_control((*path, key), key, where)
            earlier = items.get(key)
            if key in items:
                line = self.places[(*path, key)].key.line + 1
                first = "" if self.source.is_override else f": line {line} has it already"
                self.fault((*path, key), f"duplicate key{first}", where, "keep one of the two")
            value = self.node(value_node, (*path, key), where)
            # a section that is given twice is checked with the keys of both
            items[key] = {**earlier, **value} if isinstance(earlier, dict) and isinstance(value, dict) else value
        return items

    def refuse_control(self, path: KeyPath, text: str, where: Span) -> bool:
        if bad := _CONTROL.search(text):
            self.fault(path, f"control character {bad[0]!a} in a text", where, "remove it")
        return bad is not None

    def scalar(self, node: yaml.ScalarNode, path: KeyPath, key: Span) -> Any:
        text, where = node.value, self.places[path].value
        if node.style is None:  # not quoted
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
    problem = " ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in problem:
        hint = "indent with spaces, not tabs"
    elif "mapping values are not allowed" in problem:
        hint = "line the keys of a section up, and quote a text that holds `: `"
    elif "another document" in problem:
        hint = "remove the line `---`; a recipe is one document"
    else:
        hint = "quote a text that begins with one of { [ * & ! % @ ` | >"
    mark = error.problem_mark or error.context_mark
    where = reader.source if mark is None else reader.span(mark, mark)
    return Fault((), f"not valid YAML: {problem}", where, hint)
