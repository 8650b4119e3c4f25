"""What the schema says, in words: what a key takes, and which key was meant."""

import difflib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rmtrain.recipe.document import NUMBER
from rmtrain.recipe.faults import KeyPath, dotted
from rmtrain.recipe.schema import Recipe, Section

# what pydantic expected, by the type of its error, with its own figures
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "missing": "another item",
    "model_type": "a section with keys",
    "string_pattern_mismatch": "a folder name (up to 100 letters, digits, dots, dashes and underscores)",
    "string_too_short": "a non-empty text",
    "string_type": "a text",
    "too_long": "at most {max_length} items",
    "too_short": "{min_length} or more items",
    "tuple_type": "a list",
}

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


def _section(field: FieldInfo) -> type[Section] | None:
    """The section that a field is, if it is one."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if inner := _section(field):
            yield from _fields(inner, f"{prefix}{name}.")


_FIELDS = dict(_fields(Recipe))
# dotted keys that have a value of their own, in the schema's order; a mapping such as data.splits is one value
KEYS = [key for key, field in _FIELDS.items() if not _section(field)]


def expected(errors: list[ErrorDetails]) -> str:
    """What a key takes, from the errors of its alternatives."""
    return " or ".join(dict.fromkeys(_EXPECTED[error["type"]].format(**error.get("ctx", {})) for error in errors))


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
    while path and dotted(path) not in _FIELDS:
        path = path[:-1]
    return " ".join(str(_FIELDS[dotted(path)].description).split()) if path else ""


def value_hint(path: KeyPath, value: object, kinds: set[str]) -> str:
    """How to mend a wrong value, told the types of pydantic's errors; else what the key is for."""
    choices = _choices(path)
    word = value.lower() if isinstance(value, str) else ""
    if word and word not in ("yes", "on", "true") and (near := _nearest(word, choices)):
        return f"did you mean {near}?"  # the words for true are like no choice, however they are spelt
    if value is False and (off := {"off", "none"}.intersection(choices)):
        return f"did you mean {off.pop()}?"
    plain = word.replace("_", "").replace(",", "").strip()
    if kinds & {"int_type", "float_type"} and NUMBER.fullmatch(plain):
        return f"write {plain}, without quotes" if plain == word else f"write {plain}"
    if "bool_type" in kinds and word in ("yes", "on", "true", "no", "off", "false"):
        return f"write {'true' if word in ('yes', 'on', 'true') else 'false'}"
    if "int_type" in kinds and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return description(path)


def unknown_key_hint(path: KeyPath) -> str:
    """Which key was meant by one that does not exist."""
    key, section = str(path[-1]), dotted(path[:-1])
    siblings = [known.rpartition(".")[2] for known in _FIELDS if known.rpartition(".")[0] == section]
    if siblings:
        name = key.rpartition(".")[2]
        if homes := [known.rpartition(".")[0] for known in KEYS if known.endswith(f".{name}")]:
            return f"{name} belongs to the {' or the '.join(homes)} section"
        elsewhere = {known.rpartition(".")[2]: known for known in reversed(KEYS)}
    else:  # a mapping with fixed keys
        siblings, elsewhere = _choices(path[:-1]), {}
    if key in OTHER_NAMES:
        return f"did you mean {OTHER_NAMES[key].removeprefix(f'{section}.')}?"
    if near := _nearest(key, siblings):
        return f"did you mean {near}?"
    if near := _nearest(key, list(elsewhere)):
        return f"did you mean {elsewhere[near]}?"
    return f"{'its keys' if section else 'the sections'} are {', '.join(siblings)}"


def _choices(path: KeyPath) -> list[str]:
    """The words that a key's value, or its items or keys, are chosen from."""

    def below(annotation: Any) -> list[str]:
        if get_origin(annotation) is Literal:
            return list(get_args(annotation))
        return [choice for part in get_args(annotation) for choice in below(part)]

    field = _FIELDS.get(".".join(part for part in path if isinstance(part, str)))
    return below(field.annotation) if field else []


def _nearest(word: str, words: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.65)), None)
