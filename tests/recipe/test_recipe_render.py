"""Resolved YAML, settings, fingerprint and JSON schema."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rmtrain.recipe.data_schema import MAPPING, TRAINING_ONLY
from rmtrain.recipe.load import dump_recipe, json_schema, list_settings, parse_recipe_text
from rmtrain.recipe.rules import CONFLICT
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.yaml12 import inline

SMALL = {"model": {"name": "m"}, "data": {"source": "d"}}
CONFIGS = Path(__file__).parents[2] / "configs"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())

_texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12) | st.sampled_from(
    [
        "2e-5",
        "off",
        "null",
        "~",
        "010",
        "0o7",
        ".nan",
        "a: b",
        "- x",
        "#",
        "{{ x }}",
        "line\nbreak\ttab",
        " x ",
        "'",
        '"',
    ]
)


def _values(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a node of the JSON schema allows."""
    if "$ref" in node:
        return _values(json_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    if "anyOf" in node:
        return st.one_of([_values(branch) for branch in node["anyOf"]])
    if "const" in node or "enum" in node:
        return st.sampled_from(node.get("enum") or [node["const"]])
    if "pattern" in node:
        return st.from_regex(node["pattern"], fullmatch=True)
    match node["type"]:
        case "integer":
            high = min(node.get("maximum", 2**53), node.get("exclusiveMaximum", 2**53) - 1)
            return st.integers(node.get("minimum", -(2**53)), high)
        case "number":
            low = node.get("minimum", node.get("exclusiveMinimum", 0))
            high = node.get("maximum", node.get("exclusiveMaximum", 1e6))
            inside = {"exclude_min": "exclusiveMinimum" in node, "exclude_max": "exclusiveMaximum" in node}
            whole = range(math.floor(low) + 1, min(100, math.ceil(high)))
            return st.floats(low, high, **inside) | (st.sampled_from(whole) if whole else st.nothing())
        case "array":
            items = node.get("prefixItems")
            return st.tuples(*map(_values, items)).map(list) if items else st.lists(_values(node["items"]), min_size=1)
        case "object" if "properties" in node:
            fields = {key: _values(field) for key, field in node["properties"].items()}
            needed = node.get("required", ())
            return st.fixed_dictionaries(
                {key: fields[key] for key in needed}, optional={k: v for k, v in fields.items() if k not in needed}
            )
        case "object":
            keys = st.sampled_from(node["propertyNames"]["enum"]) if "enum" in node.get("propertyNames", {}) else _texts
            return st.dictionaries(keys, _values(node["additionalProperties"]), min_size=1, max_size=3)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return _texts


_drawn = _values(json_schema())


@st.composite
def recipes(draw: Callable[..., Any]) -> Recipe:
    """Recipes with every kind of value; of sections that disagree, the keys named are left out until they agree."""
    values = draw(_drawn)
    if isinstance(source := values["data"]["source"], dict):
        source["train"] = "d"
        for split in source.values():
            for place, entry in enumerate(split):
                if isinstance(entry, dict):  # what the rules across entries and sections ask for
                    entry["name"] = f"e{place}"
                    for key in ("weight", *MAPPING, *TRAINING_ONLY):
                        entry.pop(key, None)
    while True:
        try:
            return Recipe.model_validate(values)
        except ValidationError as error:
            faults = [fault for item in error.errors() if item["type"] == CONFLICT for fault in item["ctx"]["broken"]]
            if not sum(_left_out(values, fault.keys) for fault in faults):
                raise


def _left_out(values: dict[str, Any], keys: Sequence[str]) -> bool:
    """Take the first of the keys that is there out of a recipe's values."""
    for section, _, key in (name.partition(".") for name in keys):
        if key in (values.get(section) or {}):
            del values[section][key]
            return True
    return False


@settings(max_examples=50, deadline=None)
@given(recipes())
def test_dumped_recipes_load_as_equal_ones(recipe: Recipe) -> None:
    loaded = parse_recipe_text(dump_recipe(recipe), "r.yaml")
    assert loaded.recipe == recipe
    assert set(loaded.origins.values()) & {"default", "command line"} == set()


@settings(max_examples=50, deadline=None)
@given(recipes())
def test_readers_of_yaml_1_1_and_the_json_schema_agree_with_the_dump(recipe: Recipe) -> None:
    plain = recipe.model_dump(mode="json")
    assert yaml.safe_load(dump_recipe(recipe)) == plain
    VALIDATOR.validate(plain)


def test_a_dump_says_every_value_in_the_schemas_order() -> None:
    text = dump_recipe(Recipe.model_validate({**SMALL, "optim": {"learning_rate": 2e-5}}))
    assert text.startswith("model:\n  name: m\n  revision: null\n")
    assert "\nlora: null\ndata:\n  source: d\n  splits: {train: train, validation: validation, test: test}\n" in text
    assert "\n  learning_rate: 2.0e-05\n" in text
    assert "\n  betas: [0.9, 0.999]\n" in text
    assert text.endswith("  keep_checkpoints: 2\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain/text-1.5", "plain/text-1.5"),
        ("off", "'off'"),
        ("2e-5", "'2e-5'"),
        ("a\nb", '"a\\nb"'),
        ("\u2028", '"\\L"'),
        (1e-05, "1.0e-05"),
        (0.1, "0.1"),
        (3, "3"),
        (None, "null"),
        (True, "true"),
        ([1, "on"], "[1, 'on']"),
        ({"a": {}}, "{a: {}}"),
    ],
)
def test_inline_quotes_what_might_be_misread(value: object, text: str) -> None:
    assert inline(value) == text


def test_describe_lists_every_value_with_its_origin() -> None:
    text = "model: {name: m}\ndata:\n  source: d\n"
    listed = list_settings(parse_recipe_text(text, "r.yaml", ["optim.learning_rate=2e-5", "lora.rank=8"]))
    by_key = {key: (value, origin) for key, value, origin in listed}
    assert by_key["data.source"] == ("d", "r.yaml:3")
    assert by_key["optim.learning_rate"] == (2e-5, "command line")
    assert by_key["optim.betas"] == ([0.9, 0.999], "default")
    assert by_key["lora.rank"] == (8, "command line")
    assert by_key["lora.alpha"] == (64.0, "default")
    assert ("lora", None, "default") in list_settings(parse_recipe_text(text, "r.yaml"))
    json.dumps(listed)


def test_the_committed_json_schema_is_the_codes() -> None:
    committed = (CONFIGS / "schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", (
        "run `rmtrain recipes schema > configs/schema.json`"
    )
    jsonschema.Draft202012Validator.check_schema(json_schema())
