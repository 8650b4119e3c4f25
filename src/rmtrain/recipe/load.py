"""A recipe file and `KEY=VALUE` → a validated Recipe, or one error with all faults; and back to text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from rmtrain.errors import RecipeError
from rmtrain.files import read_text
from rmtrain.json_values import JsonObject
from rmtrain.recipe import bundled, hints
from rmtrain.recipe.check import check, shown
from rmtrain.recipe.faults import Fault, KeyPath, Source, Span, dotted, printable, recipe_error
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml12 import Document, Place, dump_values, parse_document

_MAX_BYTES = 1 << 20  # parse_document limits the characters
_KEY = re.compile(r"[^\s.=]+(\.[^\s.=]+)*")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, and the origin of each value."""

    recipe: Recipe
    origins: dict[str, str]  # dotted key → "file.yaml:12", "command line" or "default", in the schema's order
    path: Path
    name: str  # run.name, or else the file's name without its suffix, as a valid folder name


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file; `KEY=VALUE` overrides its values, the key dotted and the value YAML, and later ones win.

    Raises:
        RecipeError: the file can't be read, or it or an override has faults; the message lists all of them.
    """
    path = Path(path)
    try:
        text = read_text(path, _MAX_BYTES, RecipeError)
    except RecipeError as error:
        name = printable(str(path))
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            raise RecipeError(f"{name}: no such recipe file", bundled.missing_hint(path.stem)) from None
        what = printable(error.message.removeprefix(str(path)))
        raise RecipeError(f"{name}{what}", error.hint or "name a recipe's YAML file") from None
    return parse_recipe_text(text, str(path), overrides)


def parse_recipe_text(text: str, filename: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """As `load_recipe`, but from the file's text; faults and origins show `filename`."""
    source = Source(filename, text)
    document = parse_document(source)
    if document.complete and not isinstance(document.value, dict):
        message = f"a recipe is a mapping of sections, found {shown(document.value)}"
        document.faults.append(Fault((), message, document.places[()].value, "begin with `model:`"))
        document = document._replace(complete=False)
    for number, argument in enumerate(overrides):
        document = _override(document, Source("command line", argument, number))
    recipe, faults = check(document, source) if document.complete else (None, [])
    if recipe is None or document.faults:
        raise recipe_error([*document.faults, *faults])
    # without adapters, the value is that of lora itself
    keys = dict.fromkeys("lora" if recipe.lora is None and key.startswith("lora.") else key for key in hints.KEYS)
    origins = {key: _origin(tuple(key.split(".")), document.places) for key in keys}
    path = Path(filename)
    return LoadedRecipe(recipe, origins, path, recipe.run.name or _folder_name(path.stem))


def list_settings(loaded: LoadedRecipe) -> list[tuple[str, Any, str]]:
    """Every value of a recipe, in the schema's order: its dotted key, the plain value, and its origin."""
    values: Any = loaded.recipe.model_dump(mode="json")
    return [(key, reduce(getitem, key.split("."), values), origin) for key, origin in loaded.origins.items()]


def dump_recipe(recipe: Recipe) -> str:
    """Every value of the recipe as YAML; loading it gives an equal Recipe."""
    return dump_values(recipe.model_dump(mode="json"))


def json_schema() -> JsonObject:
    """JSON schema of a recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _override(document: Document, source: Source) -> Document:
    """The document with one `KEY=VALUE` applied, including its place and faults.

    The value replaces everything at its key; missing sections on its path are created.
    """
    key, equals, _ = source.text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        fault = Fault((), "expected KEY=VALUE", Span(source, 0, 0, len(key)), "such as optim.learning_rate=2e-5")
        return document._replace(faults=[*document.faults, fault])
    path: KeyPath = tuple(key.split("."))
    parsed = parse_document(source, len(key) + 1, path)
    faults = document.faults + parsed.faults
    if not (document.complete and parsed.complete):
        return document._replace(faults=faults, complete=False)

    places = {at: place for at, place in document.places.items() if at[: len(path)] != path}
    section, start = document.value, 0
    for depth, part in enumerate(path[:-1], 1):
        span = Span(source, 0, start, start + len(str(part)))
        start = span.end + 1
        if section.get(part) is None:
            section[part] = {}
            places[path[:depth]] = Place(span, span)
        section = section[part]
        if not isinstance(section, dict):
            outer = dotted(path[:depth])
            message = f"{outer} is {shown(section)} and has no keys"
            fault = Fault(path, message, span, f"override {outer} as a whole: {outer}={{...}}")
            return document._replace(faults=[*faults, fault])
    section[path[-1]] = parsed.value
    places |= parsed.places
    places[path] = Place(Span(source, 0, start, len(key)), parsed.places[path].value)
    return Document(document.value, places, faults, complete=True)


def _origin(path: KeyPath, places: dict[KeyPath, Place]) -> str:
    """The origin of a value; a mapping with an entry from the command line counts as from the command line."""
    sources = [place.key.source for at, place in places.items() if at[: len(path)] == path]
    if any(source.is_override for source in sources):
        return "command line"
    if not sources:
        return "default"
    return places[path].key.place


def _folder_name(stem: str) -> str:
    """A file's name as the first part of a run folder's name; see FOLDER_NAME_PATTERN."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:100].lstrip("._-").rstrip(".") or "recipe"
