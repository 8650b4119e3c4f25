"""Rules across the sections of a recipe: values that are valid alone but contradict each other."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rmtrain.recipe.data_schema import READING, TRAINING_ONLY

if TYPE_CHECKING:
    from rmtrain.recipe.data_schema import DataSection
    from rmtrain.recipe.schema import LossSection, Recipe

CONFLICT = "conflict"  # type of the pydantic error with the conflicts in its context


class Conflict(NamedTuple):
    """Keys whose values contradict each other."""

    keys: tuple[str, ...]  # dotted; the error names the first
    message: str
    hint: str


def conflicts(recipe: "Recipe") -> list[Conflict]:
    """All broken rules of a recipe."""
    return [
        *_data_conflicts(recipe.data),
        *_loss_conflicts(recipe.loss),
        *_training_conflicts(recipe),
        *_distribution_conflicts(recipe),
    ]


def _data_conflicts(data: "DataSection") -> Iterator[Conflict]:
    if "train" not in data.splits:
        yield Conflict(("data.splits",), "names no training split", "add `train:` with the source's training split")
    if isinstance(data.source, dict) and "train" not in data.source:
        yield Conflict(("data.source",), "names no source for the training split", "add `train:` with a source")
    if data.near_duplicates is not None and data.duplicates == "keep":
        message = "drops rows that are near duplicates, and with them those that are duplicates"
        yield Conflict(("data.near_duplicates", "data.duplicates"), message, "leave out one of the two keys")
    yield from _reading_conflicts(data)
    for split in data.source if isinstance(data.source, dict) else ():
        yield from _mixture_conflicts(data, split)
    if data.repeat and not any(entry.weight for entry in data.entries("train")):
        hint = "give every entry of data.source.train a weight, or leave data.repeat out"
        yield Conflict(("data.repeat", "data.source"), "only a weighted mixture repeats groups", hint)


def _mixture_conflicts(data: "DataSection", split: str) -> Iterator[Conflict]:
    """Rules for the entries of one split."""
    entries, section = data.entries(split), f"data.source.{split}"
    names = [entry.title for entry in entries]
    for place, entry in enumerate(entries):
        key_of_entry = f"{section}.{place}"
        if entry.title in names[:place]:
            message = f"the name {entry.title} is that of another entry"
            yield Conflict((f"{key_of_entry}.name", key_of_entry), message, "give one of the two another `name:`")
        if entry.weight is not None and split != "train":
            message = "a weight is a share of the training groups"
            yield Conflict((f"{key_of_entry}.weight",), message, "leave it out; limit takes a number of groups")
        for key in TRAINING_ONLY if split != "train" else ():
            if getattr(entry, key) is not None:
                message = "applies to training rows only: evaluation counts every preference as its row states it"
                yield Conflict((f"{key_of_entry}.{key}",), message, "leave it out, or leave such rows out of the file")
        merged = data.of_entry(entry)
        if any(getattr(merged, key) != getattr(data, key) for key in READING):
            for broken in _reading_conflicts(merged):
                keys = tuple(key.replace("data", key_of_entry, 1) for key in broken.keys)
                yield Conflict((*keys, key_of_entry), broken.message, broken.hint.replace("data.", ""))
    without = [entry.title for entry in entries if entry.weight is None]
    if split == "train" and 0 < len(without) < len(entries):
        message = f"some entries have a weight, and {', '.join(without)} has none"
        yield Conflict((section,), message, "give every entry of the split a weight, or none")


def _reading_conflicts(data: "DataSection") -> Iterator[Conflict]:
    """Rules for the keys on reading rows."""
    count = len(data.answers)
    if data.answers and not data.label and not data.scores and not data.votes:
        hint = "give data.label or data.scores; if the first is always better: data.columns: {chosen: …, rejected: …}"
        yield Conflict(("data.answers", "data.label", "data.scores"), "no key says which answer is better", hint)
    if data.scores and not data.answers:
        yield Conflict(("data.scores", "data.answers"), "scores need answers", "give data.answers too")
    if (data.better or data.ties) and not data.label:
        keys = ("data.better" if data.better else "data.ties", "data.label")
        yield Conflict(keys, "needs the column of the label", "give data.label")
    if data.answers and data.row_schema != "auto":
        message = f"{data.row_schema} already says which columns hold the answers"
        yield Conflict(("data.row_schema", "data.answers"), message, "leave out one of the two")
    if count > 1 and any(answer >= count for answer in data.better.values()):
        message = f"names an answer beyond the {count} of data.answers"
        yield Conflict(("data.better", "data.answers"), message, "the first answer is 0")
    if data.scores and data.answers and len(data.scores) != count:
        hint = "give a column of scores for each column of answers, or one list for one list"
        yield Conflict(("data.scores", "data.answers"), f"{len(data.scores)} for {count} answers", hint)
    if len({"negative", "positive"} & data.better.keys()) == 1:
        hint = "give both: the better answer for numbers below 0, and for numbers above"
        yield Conflict(("data.better",), "has only one of negative and positive", hint)


_OBJECTIVES = {  # the objectives that use each setting of the loss section
    "margin": ("bradley_terry", "hinge"),
    "centering": ("bradley_terry", "scaled", "hinge", "norm_bt", "plackett_luce", "ordinal"),
    "label_smoothing": ("bradley_terry", "scaled"),
    "gap_unit": ("scaled",),
    "weight_range": ("scaled",),
    "grades": ("ordinal",),
    "sum_to_zero": ("bradley_terry", "scaled", "hinge", "plackett_luce", "ordinal"),
    "length_decorrelation": ("bradley_terry", "scaled", "hinge", "plackett_luce", "ordinal", "regression"),
}


def _loss_conflicts(loss: "LossSection") -> Iterator[Conflict]:
    for name, objectives in _OBJECTIVES.items():
        if loss.objective not in objectives and getattr(loss, name) != type(loss).model_fields[name].default:
            message = f"is not supported with the objective {loss.objective}"
            hint = f"leave it out, or set loss.objective to {' or '.join(objectives)}"
            yield Conflict((f"loss.{name}", "loss.objective"), message, hint)
    if loss.objective == "ordinal" and not loss.grades:
        hint = "give the score gaps at which a preference gets the next grade, such as [1.5, 2.5] for gaps of 1 to 3"
        yield Conflict(("loss.objective", "loss.grades"), "ordinal needs loss.grades", hint)
    if loss.grades != sorted({*loss.grades}):
        yield Conflict(("loss.grades",), "the gaps are not in ascending order", "write each once, the smallest first")
    if loss.weight_range[0] > loss.weight_range[1]:
        yield Conflict(("loss.weight_range",), "the smallest weight is above the largest", "give [smallest, largest]")


def _training_conflicts(recipe: "Recipe") -> Iterator[Conflict]:
    optim, evaluation = recipe.optim, recipe.evaluation
    if recipe.data.augment.other_prompts and recipe.loss.objective in ("scaled", "ordinal", "regression"):
        message = f"{recipe.loss.objective} reads scores, and an answer to another prompt has none"
        hint = "leave it out, or set loss.objective to bradley_terry"
        yield Conflict(("data.augment.other_prompts", "loss.objective"), message, hint)
    if fault := _regex_fault(recipe.lora.targets if recipe.lora else []):
        hint = "write all-linear, a list of layer names, or a Python regular expression for whole names"
        yield Conflict(("lora.targets",), f"not a regular expression: {fault}", hint)
    if optim.tokens_per_microbatch is None and optim.microbatch_size is None:
        message = "nothing limits a micro-batch: tokens_per_microbatch and microbatch_size are both null"
        yield Conflict(("optim.tokens_per_microbatch", "optim.microbatch_size"), message, "give one of the two")
    if evaluation.stop_after is not None and (evaluation.select == "last" or evaluation.every == 0):
        keys = ("evaluation.stop_after", "evaluation.select", "evaluation.every")
        hint = "set evaluation.select to accuracy or loss and evaluation.every above 0, or leave stop_after out"
        yield Conflict(keys, "early stopping needs validations and a metric to compare them by", hint)
    for key, every in (("evaluation.every", evaluation.every), ("run.save_every", recipe.run.save_every)):
        if every > 1 and not every.is_integer():
            message = f"a value of 1 or more is a number of steps and must be whole, found {every}"
            yield Conflict((key,), message, "give a whole number, or a share of the run below 1")


def _distribution_conflicts(recipe: "Recipe") -> Iterator[Conflict]:
    """Rules for what a strategy, DeepSpeed or quantisation does not support."""
    strategy, offload, config = (getattr(recipe.distributed, n) for n in ("strategy", "offload", "deepspeed_config"))
    quantization = recipe.model.quantization
    if quantization != "none" and recipe.lora is None:
        message = f"{quantization} needs a lora section: the weights of a quantised base can't be trained"
        hint = "add `lora: {}` for the default adapters, or set model.quantization to none"
        yield Conflict(("model.quantization", "lora"), message, hint)
    if quantization != "none" and strategy in ("zero3", "fsdp"):
        message = f"{quantization} is not supported with {strategy}, which can't shard quantised weights"
        hint = "set distributed.strategy to ddp or zero2, or model.quantization to none"
        yield Conflict(("model.quantization", "distributed.strategy"), message, hint)
    if recipe.model.dtype == "float16" and (strategy in ("zero2", "zero3") or config):
        message = "float16 is not supported with DeepSpeed, which would hold the score head in float16 too"
        hint = "set model.dtype to bfloat16, or distributed.strategy to ddp"
        yield Conflict(("model.dtype", "distributed.strategy"), message, hint)
    if offload != "none" and (strategy == "ddp" or (strategy == "auto" and not config)):
        message = f"{offload} is not supported with {strategy}, which keeps everything on the device"
        hint = "set distributed.strategy to zero2, zero3 or fsdp, or distributed.offload to none"
        yield Conflict(("distributed.offload", "distributed.strategy"), message, hint)
    if offload == "optimizer" and strategy == "fsdp":
        message = "optimizer is not supported with fsdp, which offloads everything or nothing"
        hint = "set distributed.offload to all or none, or distributed.strategy to zero2 or zero3"
        yield Conflict(("distributed.offload", "distributed.strategy"), message, hint)
    if config is not None and strategy in ("ddp", "fsdp"):
        message = f"a DeepSpeed file has no effect with strategy {strategy}"
        hint = "set distributed.strategy to zero2 or zero3, or leave deepspeed_config out"
        yield Conflict(("distributed.deepspeed_config", "distributed.strategy"), message, hint)
    if recipe.optim.gradient_checkpointing == "selective" and strategy == "zero3":
        message = "selective checkpointing does not work with ZeRO-3 and LoRA, which need reentrant checkpoints"
        hint = "set optim.gradient_checkpointing to full or none"
        yield Conflict(("optim.gradient_checkpointing", "distributed.strategy"), message, hint)
    if recipe.optim.activation_offloading and strategy in ("zero3", "fsdp"):
        message = f"not supported with {strategy}, which would offload the gathered weights too"
        hint = "set optim.activation_offloading to false, or distributed.strategy to ddp or zero2"
        yield Conflict(("optim.activation_offloading", "distributed.strategy"), message, hint)


def _regex_fault(targets: str | list[str]) -> str:
    """Why a text is not a regular expression; empty if it is one, or a list of names."""
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except re.error as error:
        return str(error)
    return ""
