"""A Recipe → text: the resolved YAML, the settings with their origins, the JSON schema."""

import json
import re
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from rmtrain.recipe.load import LoadedRecipe
from rmtrain.recipe.schema import Recipe

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./@-]*")
_MEANT_OTHERWISE = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


class Setting(NamedTuple):
    """One line of `--print-config`."""

    key: str  # dotted
    value: Any  # plain: what json.dumps takes
    origin: str  # "file.yaml:12", "command line" or "default"


def dump_recipe(recipe: Recipe) -> str:
    """Every value of the recipe as YAML; loading it gives an equal Recipe."""
    return dump_values(recipe.model_dump(mode="json"))


def dump_values(values: dict[str, Any]) -> str:
    """Plain values as YAML, a line a key of each section."""
    lines = []
    for name, section in values.items():
        if isinstance(section, dict) and section:
            lines += [f"{_text(name)}:", *(f"  {_text(key)}: {inline(value)}" for key, value in section.items())]
        else:
            lines.append(f"{_text(name)}: {inline(section)}")
    return "\n".join(lines) + "\n"


def describe(loaded: LoadedRecipe) -> list[Setting]:
    """Every value of a recipe and where it came from, in the schema's order."""
    values: Any = loaded.recipe.model_dump(mode="json")
    return [Setting(key, reduce(getitem, key.split("."), values), origin) for key, origin in loaded.origins.items()]


def inline(value: Any) -> str:
    """A plain value as YAML on one line, which readers of YAML 1.1 (PyYAML's own) understand alike."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(key)}: {inline(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(inline(item) for item in value)}]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(value)


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _text(text: str) -> str:
    """Without quotes where every reader takes it for a text."""
    if _PLAIN.fullmatch(text) and text.lower() not in _MEANT_OTHERWISE:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
