"""What the schema says, in words: what a key takes, and which key was meant.

Everything is read from the recipe's JSON schema, so that a new key needs no line here.
"""

import difflib
from functools import cache
from typing import Any

from rmtrain.recipe.faults import KeyPath
from rmtrain.recipe.schema import FOLDER_NAME_PATTERN, Recipe

Node = dict[str, Any]

# what other trainers call it; a test holds the right side to the schema
OTHER_NAMES = {
    "attn_implementation": "model.attention",
    "base_model": "model.name",
    "batch_size": "optim.global_batch_size",
    "bf16": "model.dtype",
    "center_rewards_coefficient": "loss.centering",
    "cutoff_len": "data.max_length",
    "dataset": "data.source",
    "dataset_name": "data.source",
    "deepspeed": "distributed.deepspeed_config",
    "eval_steps": "evaluation.every",
    "fp16": "model.dtype",
    "gradient_accumulation_steps": "optim.global_batch_size",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "logging_steps": "tracking.log_every",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_r": "lora.rank",
    "lora_target_modules": "lora.targets",
    "lr": "optim.learning_rate",
    "lr_scheduler_type": "optim.schedule",
    "max_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "model_name_or_path": "model.name",
    "num_train_epochs": "optim.epochs",
    "output_dir": "run.folder",
    "per_device_train_batch_size": "optim.microbatch_size",
    "r": "lora.rank",
    "report_to": "tracking.wandb",
    "save_steps": "run.save_every",
    "save_total_limit": "run.keep_checkpoints",
    "target_modules": "lora.targets",
    "torch_dtype": "model.dtype",
}


@cache
def schema() -> Node:
    """JSON schema of the recipe."""
    return Recipe.model_json_schema()


def node_at(path: KeyPath) -> Node | None:
    """Schema of the key, list item or mapping entry at a path; None if there is none."""
    node: Node | None = schema()
    for part in path:
        node = next((found for branch in _branches(node) if (found := _child(branch, part))), None)
        if node is None:
            return None
    return node


def keys_of(node: Node) -> list[str]:
    """The keys that a section, or a mapping with fixed keys, may have."""
    return [key for branch in _branches(node) for key in _fixed_keys(branch)]


def is_section(node: Node) -> bool:
    """Whether its keys are keys of the recipe; a mapping such as data.splits is one value."""
    return any("properties" in branch for branch in _branches(node))


@cache
def all_keys() -> tuple[str, ...]:
    """Every dotted key that has a value of its own, in the schema's order."""

    def below(path: tuple[str, ...]) -> list[str]:
        node = node_at(path)
        if node is None or not is_section(node):
            return [".".join(path)]
        return [key for name in keys_of(node) for key in below((*path, name))]

    return tuple(below(()))


def expected(node: Node) -> str:
    """What a key takes, such as `a number above 0` or `one of auto, ddp, zero2`."""
    branches = [_words(branch) for branch in _branches(node)]
    return " or ".join(dict.fromkeys(branches))


def found(value: object) -> str:
    """A wrong value, as a reader of the recipe knows it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value[:57] + '...' if len(value) > 60 else value!r}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping with {', '.join(list(value)[:3])}" if value else "an empty mapping"
    return repr(value)


def description(path: KeyPath) -> str:
    """What the key at a path is for; an item's is that of its key."""
    while path:
        node = node_at(path)
        for known in [node or {}, *_branches(node)]:  # a section's may stand with its definition alone
            if "description" in known:
                return " ".join(str(known["description"]).split())
        path = path[:-1]
    return ""


def value_hint(path: KeyPath, value: object) -> str:
    """How to mend a wrong value; else what the key is for."""
    branches = _branches(node_at(path))
    kinds = {branch.get("type") for branch in branches}
    choices = [str(choice) for branch in branches for choice in _choices(branch)]
    yes = isinstance(value, str) and value.lower() in ("yes", "on", "true")  # not like any choice, however it is spelt
    if isinstance(value, str) and choices and not yes and (near := _nearest(value.lower(), choices)):
        return f"did you mean {near}?"
    if value is False and (off := next((choice for choice in ("off", "none") if choice in choices), None)):
        return f"did you mean {off}?"
    if isinstance(value, str) and kinds & {"integer", "number"}:
        plain = value.strip().replace("_", "").replace(",", "")
        if plain.replace(".", "", 1).replace("e-", "", 1).replace("e", "", 1).isdecimal():
            return f"write {plain}, without quotes" if plain == value else f"write {plain}"
    if isinstance(value, str) and "boolean" in kinds and value.lower() in ("yes", "on", "no", "off", "true", "false"):
        return f"write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}"
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        return f"write {int(value)}"
    return description(path)


def unknown_key_hint(path: KeyPath, key: str) -> str:
    """Which key was meant by one that does not exist in the section at a path."""
    node = node_at(path) or {}
    siblings = keys_of(node)
    prefix = "".join(f"{part}." for part in path)
    if f"{prefix}{key}" in all_keys() or key in all_keys():
        section, _, name = key.rpartition(".")
        return f"write it in the {section} section, as `{name}:`"
    if is_section(node):
        elsewhere = [known for known in all_keys() if known.endswith(f".{key}")]
        sections = [known.rpartition(".")[0] for known in elsewhere]
        if sections:
            return f"{key} belongs to the {' or the '.join(sections)} section"
        if not path and (near := _nearest(key, siblings)):
            return f"did you mean {near}?"
        if key in OTHER_NAMES:
            return f"did you mean {OTHER_NAMES[key].removeprefix(prefix)}?"
    if near := _nearest(key, siblings):
        return f"did you mean {near}?"
    if is_section(node):
        last_parts = {known.rpartition(".")[2]: known for known in reversed(all_keys())}
        if near := _nearest(key, list(last_parts)):
            return f"did you mean {last_parts[near]}?"
    return f"{'its keys' if path else 'the sections'} are {', '.join(siblings)}"


def _nearest(word: str, words: list[str]) -> str | None:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.65)
    within = [known for known in words if len(known) > 3 and known in word]
    return next(iter(close or within), None)


def _branches(node: Node | None) -> list[Node]:
    """The alternatives of a schema node, with references followed."""
    if node is None:
        return []
    if "$ref" in node:
        name = str(node["$ref"]).rpartition("/")[2]
        return _branches(schema()["$defs"][name])
    if "anyOf" in node:
        return [branch for alternative in node["anyOf"] for branch in _branches(alternative)]
    return [node]


def _child(node: Node, part: str | int) -> Node | None:
    """Schema of one key, entry or item."""
    child: Any = None
    if isinstance(part, int):
        items = node.get("prefixItems", [])
        child = items[part] if part < len(items) else node.get("items")
    elif part in node.get("properties", {}):
        child = node["properties"][part]
    elif "propertyNames" not in node or part in _fixed_keys(node) or not _fixed_keys(node):
        child = node.get("additionalProperties")
    return child if isinstance(child, dict) else None


def _fixed_keys(node: Node) -> list[str]:
    return list(node.get("properties", node.get("propertyNames", {}).get("enum", ())))


def _choices(node: Node) -> list[object]:
    return [node["const"]] if "const" in node else list(node.get("enum", ()))


def _words(node: Node) -> str:
    if choices := _choices(node):
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    match node.get("type"):
        case "integer":
            return "a whole number" + _bounds(node)
        case "number":
            return "a number" + _bounds(node)
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "string":
            if node.get("pattern") == FOLDER_NAME_PATTERN:
                return "a folder name (up to 100 letters, digits, dots, dashes and underscores)"
            return "a non-empty text" if node.get("minLength") else "a text"
        case "array":
            if "prefixItems" in node:
                return f"a list of {len(node['prefixItems'])}, each {expected(node['prefixItems'][0])}"
            return f"{'a non-empty list' if node.get('minItems') else 'a list'}, each {expected(node['items'])}"
        case _:
            if "properties" in node:
                return "a section with keys"
            keys = ", ".join(_fixed_keys(node)) or "names"
            return f"a mapping from {keys} to {expected(node['additionalProperties'])}"


def _bounds(node: Node) -> str:
    bounds = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    words = [f"{word} {node[name]}" for name, word in bounds.items() if name in node]
    return f" {' and '.join(words)}" if words else ""
