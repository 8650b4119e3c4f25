"""A recipe's plain values → a Recipe, or all that the schema has against them, in the recipe's own terms."""

from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from rmtrain.recipe import wording
from rmtrain.recipe.agreement import Disagreement, DisagreementError
from rmtrain.recipe.document import Document
from rmtrain.recipe.faults import Fault, KeyPath, Source, Span, dotted
from rmtrain.recipe.schema import Recipe


def check(document: Document, source: Source) -> tuple[Recipe | None, list[Fault]]:
    """Validate a complete document.

    Args:
        document: the values and their places.
        source: the file, for faults that have no place in it.
    """
    try:
        return Recipe.model_validate(document.value), []
    except ValidationError as error:
        faults = [
            _schema_fault(item["type"], item["loc"], document, source)
            for item in error.errors()
            if item["type"] != "value_error"
        ]
    wrong: dict[KeyPath, Fault] = {}
    for path, fault in faults:
        wrong.setdefault(path, fault)  # a union reports once for each alternative
    shown = {
        path: fault
        for path, fault in wrong.items()
        # what is wrong with an item says more than what is wrong with its list
        if not any(len(other) > len(path) and _overlap(path, other) for other in wrong)
        and not any(path[: len(hidden)] == hidden for hidden in document.hidden)
    }
    unsound = [*wrong, *document.hidden]
    for disagreement in _disagreements(document.value, unsound):
        paths: list[KeyPath] = [tuple(key.split(".")) for key in disagreement.keys]
        if not any(_overlap(path, other) for path in paths for other in unsound):
            at = next((path for path in paths if path in document.places), paths[0])
            where = _where(at, document, source)
            shown[at] = Fault(disagreement.keys[0], disagreement.message, where, disagreement.hint)
    return None, list(shown.values())


def _schema_fault(kind: str, loc: KeyPath, document: Document, source: Source) -> tuple[KeyPath, Fault]:
    """One of pydantic's errors, and the path it belongs to."""
    path, value = _walk(loc, document.value)
    if kind == "missing" and isinstance(value, dict):
        path = (*path, loc[-1])
        hint = f"add `{loc[-1]}:`. {wording.description(path)}"
        return path, Fault(dotted(path), "missing", _where(path, document, source), hint)
    node = wording.node_at(path)
    if node is None:
        hint = wording.unknown_key_hint(path[:-1], str(path[-1]))
        return path, Fault(dotted(path), "unknown key", document.places[path].key, hint)
    message = f"expected {wording.expected(node)}, found {wording.found(value)}"
    return path, Fault(dotted(path), message, document.places[path].value, wording.value_hint(path, value))


def _walk(loc: KeyPath, value: Any) -> tuple[KeyPath, Any]:
    """The path and the value that pydantic means; its names for a union's alternatives are stepped over."""
    path: KeyPath = ()
    for part in loc:
        inside = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if inside or (isinstance(value, dict) and part in value):
            value = value[part]
            path = (*path, part)
    return path, value


def _where(path: KeyPath, document: Document, source: Source) -> Span | Source:
    """The key at a path, or the nearest section around it that has a place."""
    while path and path not in document.places:
        path = path[:-1]
    return document.places[path].key if path else source


def _disagreements(tree: Any, unsound: list[KeyPath]) -> tuple[Disagreement, ...]:
    """What the sections contradict each other in, once the values that are wrong by themselves are left out."""
    sound = deepcopy(tree)
    for path in unsound:
        section = sound
        for part in path[:-1]:
            inner = section.get(part)
            if not isinstance(inner, dict):
                break
            section = inner
        else:
            part = path[-1]
        section.pop(part, None)
    for section_name, required in (("model", "name"), ("data", "source")):
        sound.setdefault(section_name, {}).setdefault(required, "?")
    try:
        Recipe.model_validate(sound)
    except ValidationError as error:
        raised = [item.get("ctx", {}).get("error") for item in error.errors()]
        return next((found.disagreements for found in raised if isinstance(found, DisagreementError)), ())
    return ()


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    """Whether one path is the other, or lies beneath it."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


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
