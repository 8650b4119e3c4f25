"""Hints for faults of a recipe: a key's purpose, and which key or value was probably meant."""

import difflib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rmtrain.recipe.data_schema import EntrySection
from rmtrain.recipe.faults import KeyPath, dotted
from rmtrain.recipe.schema import Recipe
from rmtrain.recipe.section import Section
from rmtrain.recipe.yaml12 import NUMBER

_OTHER_TRAINERS = {  # other trainers' names for our keys; a test checks the keys against the schema
    "data.max_length": "cutoff_len max_len max_seq_length",
    "data.source": "dataset dataset_name",
    "distributed.deepspeed_config": "deepspeed",
    "evaluation.every": "eval_steps",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.rank": "lora_r r",
    "lora.targets": "lora_target_modules target_modules",
    "loss.centering": "center_rewards_coefficient",
    "model.attention": "attn_implementation",
    "model.dtype": "bf16 fp16 torch_dtype",
    "model.name": "base_model model_name_or_path",
    "model.quantization": "load_in_4bit load_in_8bit",
    "optim.epochs": "num_train_epochs",
    "optim.global_batch_size": "batch_size gradient_accumulation_steps",
    "optim.learning_rate": "lr",
    "optim.microbatch_size": "per_device_train_batch_size",
    "optim.schedule": "lr_scheduler_type",
    "run.folder": "output_dir",
    "run.keep_checkpoints": "save_total_limit",
    "run.save_every": "save_steps",
    "tracking.log_every": "logging_steps",
    "tracking.wandb": "report_to",
}
OTHER_NAMES = {name: key for key, names in _OTHER_TRAINERS.items() for name in names.split()}


def _section(field: FieldInfo) -> type[Section] | None:
    """The section type of a field, if it has one."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if inner := _section(field):
            yield from _fields(inner, f"{prefix}{name}.")


_ENTRY = "entry"  # stands for data.source.SPLIT.NUMBER, an entry of a mixture
_FIELDS = dict(_fields(Recipe))
# dotted keys with values, in the schema's order; a mapping such as data.splits is one value
KEYS = [key for key, field in _FIELDS.items() if not _section(field)]
_FIELDS |= _fields(EntrySection, f"{_ENTRY}.")


def _named(path: KeyPath) -> KeyPath:
    """A path as `_FIELDS` names its key."""
    entry = len(path) > 4 and path[:2] == ("data", "source") and isinstance(path[3], int)
    return (_ENTRY, *path[4:]) if entry else path


def description(path: KeyPath) -> str:
    """The description of the key at a path; an item of a list has that of its key."""
    path = _named(path)
    while path and dotted(path) not in _FIELDS:
        path = path[:-1]
    return " ".join(str(_FIELDS[dotted(path)].description).split()) if path else ""


def value_hint(path: KeyPath, value: object, kinds: set[str]) -> str:
    """How to correct a wrong value, by the types of pydantic's errors about it, or else the key's description."""
    choices = _choices(path)
    word = value.lower() if isinstance(value, str) else ""
    if word and word not in ("yes", "on", "true") and (near := _nearest(word, choices)):
        return f"did you mean {near}?"  # words for true resemble some choices only by spelling
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
    """The key that was probably meant by an unknown one."""
    path = _named(path)
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
    """The words allowed as a key's value, items or keys."""

    def below(annotation: Any) -> list[str]:
        if get_origin(annotation) is Literal:
            return list(get_args(annotation))
        return [choice for part in get_args(annotation) for choice in below(part)]

    field = _FIELDS.get(".".join(part for part in _named(path) if isinstance(part, str)))
    return below(field.annotation) if field else []


def _nearest(word: str, words: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=0.65)), None)
