"""A recipe's plain values → a Recipe, or all that the schema has against them, in the recipe's own terms."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rmtrain.recipe import wording
from rmtrain.recipe.agreement import DISAGREEMENT, Disagreement
from rmtrain.recipe.document import Document
from rmtrain.recipe.faults import Fault, KeyPath, Source, Span
from rmtrain.recipe.schema import Recipe


def check(document: Document, source: Source) -> tuple[Recipe | None, list[Fault]]:
    """Validate a complete document.

    Args:
        document: the values and their places. A value that one of its own faults names is not reported again.
        source: the file, for faults that have no place in it.
    """
    try:
        return Recipe.model_validate(document.value), []
    except ValidationError as error:
        found = [item for item in error.errors() if item["type"] != DISAGREEMENT]
    wrong: dict[KeyPath, list[ErrorDetails]] = {}
    for item in found:
        wrong.setdefault(_path(item, document.value), []).append(item)  # a union reports once for each alternative
    reported = {fault.path for fault in document.faults}
    faults = [
        _fault(path, errors, document, source)
        for path, errors in wrong.items()
        # what is wrong with an item says more than what is wrong with its list
        if path not in reported and not any(len(path) < len(other) and _overlap(path, other) for other in wrong)
    ]
    unsound = [path for path in (*wrong, *reported) if path]
    for disagreement in _disagreements(document.value, unsound):
        paths: list[KeyPath] = [tuple(key.split(".")) for key in disagreement.keys]
        if not any(_overlap(path, other) for path in paths for other in unsound):
            at = next((path for path in paths if path in document.places), paths[0])
            where = _where(at, document, source)
            faults.append(Fault(paths[0], disagreement.message, where, disagreement.hint))
    return None, faults


def _path(error: ErrorDetails, value: Any) -> KeyPath:
    """The key that pydantic means; its names for a union's alternatives are stepped over."""
    path: KeyPath = ()
    for part in error["loc"]:
        inside = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if inside or (isinstance(value, dict) and part in value):
            value = value[part]
            path = (*path, part)
    return (*path, error["loc"][-1]) if error["type"] == "missing" and isinstance(value, dict) else path


def _fault(path: KeyPath, errors: list[ErrorDetails], document: Document, source: Source) -> Fault:
    """What pydantic has against one key."""
    if path not in document.places:
        hint = f"add `{path[-1]}:`. {wording.description(path)}"
        return Fault(path, "missing", _where(path, document, source), hint)
    key, where = document.places[path]
    if errors[0]["type"] == "extra_forbidden" or errors[0]["loc"][-1] == "[key]":
        return Fault(path, "unknown key", key, wording.unknown_key_hint(path))
    value = errors[0]["input"]
    hint = wording.value_hint(path, value, {error["type"] for error in errors})
    return Fault(path, f"expected {wording.expected(errors)}, found {wording.found(value)}", where, hint)


def _where(path: KeyPath, document: Document, source: Source) -> Span | Source:
    """The key at a path, or the nearest section around it that has a place."""
    while path and path not in document.places:
        path = path[:-1]
    return document.places[path].key if path else source


def _disagreements(values: dict[str, Any], unsound: list[KeyPath]) -> list[Disagreement]:
    """What the sections contradict each other in, once the keys that are wrong by themselves are left out."""
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
        return [each for item in error.errors() if item["type"] == DISAGREEMENT for each in item["ctx"]["found"]]
    return []


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    """Whether one path is the other, or lies beneath it."""
    return all(a == b for a, b in zip(one, other, strict=False))


def with_changes(recipe: Recipe, changes: dict[str, Any]) -> Recipe | None:
    """The recipe with other values at dotted keys; None if it would not be valid."""
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
