"""A Recipe → text: the resolved YAML, the settings with their origins, the JSON schema."""

from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from rmtrain.recipe.load import LoadedRecipe
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml12 import dump_values


class Setting(NamedTuple):
    """One line of `--print-config`."""

    key: str  # dotted
    value: Any  # plain: what json.dumps takes
    origin: str  # "file.yaml:12", "command line" or "default"


def dump_recipe(recipe: Recipe) -> str:
    """Every value of the recipe as YAML; loading it gives an equal Recipe."""
    return dump_values(recipe.model_dump(mode="json"))


def describe(loaded: LoadedRecipe) -> list[Setting]:
    """Every value of a recipe and where it came from, in the schema's order."""
    values: Any = loaded.recipe.model_dump(mode="json")
    return [Setting(key, reduce(getitem, key.split("."), values), origin) for key, origin in loaded.origins.items()]


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
