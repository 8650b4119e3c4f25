"""Plain values → a validated Recipe, or all faults found by the schema."""

import json
import re
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rmtrain.json_values import JsonObject
from rmtrain.recipe import hints
from rmtrain.recipe.faults import Fault, KeyPath, Source, Span
from rmtrain.recipe.rules import CONFLICT, Conflict
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml12 import Document

_OWN_WORDS = {  # replaces pydantic's messages that name a Python class or a pattern, or omit the values
    "bool_type": "true or false",
    "dict_type": "keys with values, as {KEY: VALUE}",
    "missing": "one more item",
    "model_type": "a section with keys",
    "string_pattern_mismatch": "a folder name (up to 100 letters, digits, dots, dashes and underscores)",
}


def check(document: Document, source: Source) -> tuple[Recipe | None, list[Fault]]:
    """Validate a document, but skip values already reported as faults; faults without a place name the source."""
    try:
        return Recipe.model_validate(document.value), []
    except ValidationError as error:
        errors = [each for each in error.errors() if each["type"] != CONFLICT]
    wrong: dict[KeyPath, list[ErrorDetails]] = {}
    for each in errors:
        wrong.setdefault(_path(each, document.value), []).append(each)  # a union reports every alternative
    reported = {fault.path for fault in document.faults}
    faults = [
        _fault(path, errors, document, source)
        for path, errors in wrong.items()
        if path not in reported and not _said_below(path, errors, wrong)
    ]
    unsound = [path for path in (*wrong, *reported) if path]
    for conflict in _conflicts(document.value, unsound):
        paths: list[KeyPath] = [tuple(int(p) if p.isdigit() else p for p in key.split(".")) for key in conflict.keys]
        if not any(_overlap(path, other) for path in paths for other in unsound):
            placed = next((path for path in paths if path in document.places), paths[0])
            faults.append(Fault(paths[0], conflict.message, _where(placed, document, source), conflict.hint))
    return None, faults


def shown(value: object) -> str:
    """A wrong value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_changes(recipe: Recipe, changes: JsonObject) -> Recipe | None:
    """The recipe with changed values at dotted keys; None if the result is invalid."""
    values = recipe.model_dump()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    try:
        return Recipe.model_validate(values)
    except ValidationError:
        return None


def _path(error: ErrorDetails, value: Any) -> KeyPath:
    """The key of an error, without pydantic's names for the alternatives of a union."""
    path: KeyPath = ()
    for part in error["loc"]:
        inside = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if inside or (isinstance(value, dict) and part in value):
            value = value[part]
            path = (*path, part)
    return (*path, error["loc"][-1]) if error["type"] == "missing" and isinstance(value, dict) else path


def _fault(path: KeyPath, errors: list[ErrorDetails], document: Document, source: Source) -> Fault:
    if path not in document.places:
        hint = f"add `{path[-1]}:`. {hints.description(path)}"
        return Fault(path, "missing", _where(path, document, source), hint)
    key, where = document.places[path]
    if errors[0]["type"] == "extra_forbidden" or errors[0]["loc"][-1] == "[key]":
        return Fault(path, "unknown key", key, hints.unknown_key_hint(path))
    expected = " or ".join(dict.fromkeys(map(_expected, errors)))
    value = errors[0]["input"]
    hint = hints.value_hint(path, value, {error["type"] for error in errors})
    return Fault(path, f"expected {expected}, found {shown(value)}", where, hint)


def _expected(error: ErrorDetails) -> str:
    """The expected value in pydantic's message, such as `a valid number` or `a list with at least 1 item`."""
    message = _OWN_WORDS.get(error["type"]) or error["msg"].removeprefix("Input should be ")
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return re.sub(r"(\w+) should have (.*) after validation.*", lambda m: f"a {m[1].lower()} with {m[2]}", message)


def _where(path: KeyPath, document: Document, source: Source) -> Span | Source:
    """The key at a path, or the nearest section around it that has a place."""
    while path and path not in document.places:
        path = path[:-1]
    return document.places[path].key if path else source


def _conflicts(values: dict[str, Any], unsound: list[KeyPath]) -> list[Conflict]:
    """The rules that the values break, without the keys that are already wrong."""
    sound = {name: dict(section) if isinstance(section, dict) else section for name, section in values.items()}
    for name, *keys in unsound:
        if keys and isinstance(sound.get(str(name)), dict):
            sound[str(name)].pop(keys[0], None)
        else:
            sound.pop(str(name), None)
    for name, required in (("model", "name"), ("data", "source")):
        sound.setdefault(name, {}).setdefault(required, "?")
    try:
        Recipe.model_validate(sound)
    except ValidationError as error:
        return [conflict for each in error.errors() if each["type"] == CONFLICT for conflict in each["ctx"]["broken"]]
    return []


def _said_below(path: KeyPath, errors: list[ErrorDetails], wrong: Collection[KeyPath]) -> bool:
    """Whether a fault below this one is more specific: that of an item, or of the matching kind of entry."""
    entry = isinstance(errors[0]["input"], dict) and isinstance(path[-1], int)
    return any(len(path) < len(other) and _overlap(path[:-1] if entry else path, other) for other in wrong)


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    """Whether a path equals the other or is below it."""
    return all(a == b for a, b in zip(one, other, strict=False))
