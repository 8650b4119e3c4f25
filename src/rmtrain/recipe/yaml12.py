"""YAML 1.2: text → plain values with the place of every key and value, and plain values → text.

PyYAML parses the syntax, but follows YAML 1.1, where `1e-5` is a text, `off` is false, `010` is eight and `12:30:00` is
45,000. So its loader and dumper get the scalars of YAML 1.2. Aliases and tags are refused: a recipe needs neither, and
a few lines of aliases can expand to gigabytes.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

from rmtrain.recipe.faults import Fault, KeyPath, Source, Span

NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_CHARACTERS = 100_000
_MAX_VALUES = 1000  # keys and items; the schema has fewer than a hundred keys
_MAX_DIGITS = 100  # in one number
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SIMPLE = re.compile(r"[\w ./@:-]*")  # texts that never need escapes
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SCALARS: dict[
    str, tuple[re.Pattern[str], Callable[[str], int | float | None]]
] = {  # by PyYAML's names, in order of precedence
    "null": (re.compile(r"null|Null|NULL|~"), lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text[0] in "tT"),
    "int": (
        re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    "float": (NUMBER, float),
}


class Place(NamedTuple):
    """The place of a value."""

    key: Span  # where its key is; for an item of a list, where the item is
    value: Span


class Document(NamedTuple):
    """The content of a YAML text."""

    value: Any  # dict, list, str, int, float, bool or None; a refused value is None
    places: dict[KeyPath, Place]
    faults: list[Fault]
    complete: bool  # False if the text could not be read to its end, with `value` None


def parse_document(source: Source, start: int = 0, root: KeyPath = ()) -> Document:
    """Read the YAML from character `start` of a source on; never raises. Paths in the result begin with `root`."""
    reader = _Reader(source, start)
    try:
        return Document(reader.read(root), reader.places, reader.faults, complete=True)
    except _UnreadableError as error:
        (fault,) = error.args
    except yaml.reader.ReaderError as error:  # the only error of PyYAML with an offset instead of a line
        before = source.text[: start + error.position]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        fault = Fault((), "a character that YAML does not allow", Span(source, line, column, column + 1), "remove it")
    except yaml.MarkedYAMLError as error:
        fault = _syntax_fault(error, reader)
    except RecursionError:
        fault = Fault(root, "nested too deeply", source, "no key of a recipe is nested more than three levels")
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML does not catch some errors of int() and chr()
        fault = Fault(root, f"not valid YAML: {error}", source)
    return Document(None, reader.places, [*reader.faults, fault], complete=False)


class _UnreadableError(Exception):
    """Carries a fault after which reading stops."""


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
            raise _UnreadableError(Fault((), message, self.source, "a recipe holds no data"))
        if node := yaml.compose(text, Loader=yaml.BaseLoader):  # other than str, seq or map only by an explicit tag
            return self.node(node, root, None)
        if root:
            raise _UnreadableError(
                Fault(root, "has no value", Span(self.source, 0, 0, self.start), "write null for none")
            )
        hint = "it needs at least model.name and data.source"
        raise _UnreadableError(Fault((), "the recipe is empty", self.source, hint))

    def span(self, begin: Any, end: Any) -> Span:
        """The characters between two of PyYAML's marks, as far as they are on the first line."""
        offset = self.start if begin.line == 0 else 0
        stop = offset + end.column if begin.line == end.line else len(self.source.lines[begin.line])
        return Span(self.source, begin.line, offset + begin.column, stop)

    def fault(self, path: KeyPath, message: str, where: Span, hint: str = "") -> None:
        self.faults.append(Fault(path, message, where, hint))

    def node(self, node: yaml.Node, path: KeyPath, key: Span | None) -> Any:
        where = self.span(node.start_mark, node.end_mark)
        key = key or where
        self.places[path] = Place(key, where)
        if len(self.places) > _MAX_VALUES:
            raise _UnreadableError(Fault((), f"more than {_MAX_VALUES:,} values", where, "a recipe holds no data"))
        if node in self.seen:
            self.fault(path, "aliases (*name) are not allowed", key, "write the value out, or quote a text")
            return None
        self.seen.add(node)
        self.refuse_tag(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.node(item, (*path, index), None) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, path, key)

    def refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        if node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            where = self.span(node.start_mark, node.end_mark)
            self.fault(path, "tags (!name) are not allowed", where, "remove it, or quote a text")

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = self.span(key_node.start_mark, key_node.end_mark)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "":
                hint = "give it one, or quote a text that begins with { or ["
                raise _UnreadableError(Fault(path, "a key must be a name", where, hint))
            key = key_node.value  # as written: a key `on` or `1` is that text
            self.refuse_tag(key_node, (*path, key))
            self.refuse_control((*path, key), key, where)
            earlier = items.get(key)
            if key in items:
                line = self.places[(*path, key)].key.line + 1
                first = "" if self.source.is_override else f": line {line} has it already"
                self.fault((*path, key), f"duplicate key{first}", where, "keep one of the two")
            value = self.node(value_node, (*path, key), where)
            # a repeated section is checked with the keys of both
            items[key] = {**earlier, **value} if isinstance(earlier, dict) and isinstance(value, dict) else value
        return items

    def refuse_control(self, path: KeyPath, text: str, where: Span) -> bool:
        if bad := _CONTROL.search(text):
            self.fault(path, f"control character {bad[0]!a} in a text", where, "remove it")
        return bad is not None

    def scalar(self, node: yaml.ScalarNode, path: KeyPath, key: Span) -> Any:
        text, where = node.value, self.places[path].value
        quoted = node.style is not None
        if not quoted and text == "":
            # YAML reads null here: a lora section with all keys commented out would switch to full fine-tuning
            self.fault(path, "has no value", key, "write null, {} for a section's defaults, or leave the key out")
            return None
        if not quoted and _NOT_FINITE.fullmatch(text):
            self.fault(path, f"{text} is not a finite number", where)
            return None
        for pattern, make in () if quoted else _SCALARS.values():
            if pattern.fullmatch(text):
                value = make(text) if len(text) <= _MAX_DIGITS else math.inf
                if isinstance(value, (int, float)) and not abs(value) < (2**63 if isinstance(value, int) else math.inf):
                    self.fault(path, "a number too large or too long", where)
                    return None
                return value
        return None if self.refuse_control(path, text, where) else text


def _syntax_fault(error: yaml.MarkedYAMLError, reader: _Reader) -> Fault:
    problem = " ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in problem:
        hint = "indent with spaces, not tabs"
    elif "mapping values are not allowed" in problem:
        hint = "align the keys of a section, and quote a text that holds `: `"
    elif "another document" in problem:
        hint = "remove the line `---`; a recipe is one document"
    else:
        hint = "quote a text that begins with one of { [ * & ! % @ ` | >"
    mark = error.problem_mark or error.context_mark
    return Fault((), f"not valid YAML: {problem}", reader.source if mark is None else reader.span(mark, mark), hint)


class _Dumper(yaml.SafeDumper):
    """Quotes each text that YAML 1.1 or 1.2 could read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Section(dict[str, Any]):
    """A mapping with one key per line."""


for _tag, (_pattern, _) in _SCALARS.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), None)
_Dumper.add_representer(_Section, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, False))
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, None if _SIMPLE.fullmatch(text) else '"'
    ),
)


def dump_values(values: dict[str, Any]) -> str:
    """Plain values as YAML, with one line for each key of each section."""
    sections = {key: _Section(value) if isinstance(value, dict) and value else value for key, value in values.items()}
    return _dump(_Section(sections))


def inline(value: Any) -> str:
    """A plain value as YAML on one line."""
    return _dump([value]).strip()[1:-1]


def _dump(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
