"""What the sections of a recipe must agree on: values that are right by themselves and contradict each other."""

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rmtrain.recipe.schema import Recipe


DISAGREEMENT = "disagreement"  # type of pydantic's error that holds them, as `found` of its context


class Disagreement(NamedTuple):
    """Keys whose values are right by themselves and contradict each other."""

    keys: tuple[str, ...]  # dotted; the first is the one to name
    message: str
    hint: str


def disagreements(recipe: "Recipe") -> list[Disagreement]:
    """What each value's own type can't say."""
    strategy, offload = recipe.distributed.strategy, recipe.distributed.offload
    data = recipe.data
    deepspeed_config = recipe.distributed.deepspeed_config
    rules = [
        (
            recipe.model.quantization != "none" and recipe.lora is None,
            ("model.quantization", "lora"),
            f"{recipe.model.quantization} without a lora section: a quantised base can't be trained itself",
            "add `lora: {}` for the default adapters, or set model.quantization to none",
        ),
        (
            "train" not in recipe.data.splits,
            ("data.splits",),
            "names no training split",
            "add `train:` with the name of the source's training split",
        ),
        (
            isinstance(data.source, dict) and "train" not in data.source,
            ("data.source",),
            "names no source of the training split",
            "add `train:` with a source",
        ),
        (
            bool(data.answers) and not data.label and not data.scores,
            ("data.answers", "data.label", "data.scores"),
            "nothing says which answer is better",
            "give data.label or data.scores; where the first answer always is: data.columns: {chosen: …, rejected: …}",
        ),
        (
            bool(data.scores) and not data.answers,
            ("data.scores", "data.answers"),
            "the scores are of no answers",
            "give data.answers too",
        ),
        (
            bool(data.better or data.ties) and not data.label,
            ("data.better" if data.better else "data.ties", "data.label"),
            "no label has these values",
            "give data.label, the column that they are in",
        ),
        (
            bool(data.answers) and data.row_schema != "auto",
            ("data.row_schema", "data.answers"),
            f"{data.row_schema} says already where the answers are",
            "leave out one of the two",
        ),
        (
            len(data.answers) > 1 and any(answer >= len(data.answers) for answer in data.better.values()),
            ("data.better", "data.answers"),
            f"names an answer beyond the {len(data.answers)} that there are",
            "the first answer is 0",
        ),
        (
            bool(data.scores and data.answers) and len(data.scores) != len(data.answers),
            ("data.scores", "data.answers"),
            f"{len(data.scores)} for {len(data.answers)} answers",
            "give a column of scores for each column of answers, or one list for one list",
        ),
        (
            len({"negative", "positive"} & data.better.keys()) == 1,
            ("data.better",),
            "has only one of negative and positive",
            "give both: the answer that is better where the number is below 0, and where it is above",
        ),
        (
            recipe.optim.tokens_per_microbatch is None and recipe.optim.microbatch_size is None,
            ("optim.tokens_per_microbatch", "optim.microbatch_size"),
            "nothing limits a micro-batch: tokens_per_microbatch and microbatch_size are both null",
            "give one of the two",
        ),
        (
            offload != "none" and (strategy == "ddp" or (strategy == "auto" and not deepspeed_config)),
            ("distributed.offload", "distributed.strategy"),
            f"{offload} can't be had with {strategy}, which keeps everything on the device",
            "set distributed.strategy to zero2, zero3 or fsdp, or distributed.offload to none",
        ),
        (
            offload == "optimizer" and strategy == "fsdp",
            ("distributed.offload", "distributed.strategy"),
            "optimizer can't be had with fsdp, which moves all or nothing",
            "set distributed.offload to all or none, or distributed.strategy to zero2 or zero3",
        ),
        (
            recipe.evaluation.stop_after is not None
            and (recipe.evaluation.select == "last" or recipe.evaluation.every == 0),
            ("evaluation.stop_after", "evaluation.select", "evaluation.every"),
            "early stopping needs validations and a figure to compare them by",
            "set evaluation.select to accuracy or loss and evaluation.every above 0, or leave stop_after out",
        ),
        (
            recipe.model.dtype == "float16" and (strategy in ("zero2", "zero3") or bool(deepspeed_config)),
            ("model.dtype", "distributed.strategy"),
            "float16 can't be had with DeepSpeed, which would hold the score head in float16 too",
            "set model.dtype to bfloat16, or distributed.strategy to ddp",
        ),
        (
            recipe.model.quantization != "none" and strategy in ("zero3", "fsdp"),
            ("model.quantization", "distributed.strategy"),
            f"{recipe.model.quantization} can't be had with {strategy}, which would cut quantised weights apart",
            "set distributed.strategy to ddp or zero2, or model.quantization to none",
        ),
        (
            recipe.optim.gradient_checkpointing == "selective" and strategy == "zero3",
            ("optim.gradient_checkpointing", "distributed.strategy"),
            "selective can't be had with zero3, whose adapters need checkpoints of another kind",
            "set optim.gradient_checkpointing to full or none",
        ),
        (
            recipe.optim.activation_offloading and strategy in ("zero3", "fsdp"),
            ("optim.activation_offloading", "distributed.strategy"),
            f"it can't be had with {strategy}, whose gathered weights would travel too",
            "set optim.activation_offloading to false, or distributed.strategy to ddp or zero2",
        ),
        (
            deepspeed_config is not None and strategy in ("ddp", "fsdp"),
            ("distributed.deepspeed_config", "distributed.strategy"),
            f"a DeepSpeed file has no effect with strategy {strategy}",
            "set distributed.strategy to zero2 or zero3, or leave deepspeed_config out",
        ),
    ]
    if fault := _no_expression(recipe.lora.targets if recipe.lora else []):
        hint = "write all-linear, a list of layers' names, or a regular expression of Python for whole names"
        rules.append((True, ("lora.targets",), f"it is no regular expression: {fault}", hint))
    rules += [
        (
            every > 1 and not every.is_integer(),
            (key,),
            f"1 or more is a number of steps and must be whole, found {every}",
            "give a whole number, or a share of the run below 1",
        )
        for key, every in (("evaluation.every", recipe.evaluation.every), ("run.save_every", recipe.run.save_every))
    ]
    return [Disagreement(keys, message, hint) for broken, keys, message, hint in rules if broken]


def _no_expression(targets: str | list[str]) -> str:
    """Why a regular expression is none; empty if it is one, or a list of names."""
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except re.error as error:
        return str(error)
    return ""
