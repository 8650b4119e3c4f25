"""Values of a recipe that are `auto`, decided once by the machine; a resumed run keeps its first decisions."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rmtrain.data.prepare import ReadySplit
from rmtrain.errors import InputError, RmtrainError
from rmtrain.json_values import JsonObject
from rmtrain.model.compiling import compiler_obstacle
from rmtrain.model.compute_type import fastest_of_all_processes
from rmtrain.model.memory import count_parameters
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe
from rmtrain.training.build import RunPlan, plan_run
from rmtrain.training.memory import Sharding
from rmtrain.training.recomputation import fastest_fit

_RECOMPUTED = "optim.gradient_checkpointing"
# keys that may be auto, and the numbers that are made smaller with them
_OPEN: dict[str, tuple[str, ...]] = {
    "model.dtype": (),
    "model.compile": (),
    _RECOMPUTED: ("optim.tokens_per_microbatch", "evaluation.tokens_per_batch"),
}
_BEGAN = "the run began with it"
# Parameters times tokens through the backbone of a process, above which compiling wins back its time: twice the
# break-even. On a CPU that of SmolLM2-135M in bfloat16: bench_compile.py --groups 2 --batches 10 --max-length 1024
# found 26 s of compiling and a gain of 1.08, paid back after 150,000 tokens (medians of 3 runs; 125,000 to 151,000).
# On a GPU that of a Mistral-7B on an H200: 82 s of compiling, and 17 us saved a token (docs/gpu.md).
PAYS = {"cpu": 2 * 1.39e8 * 150_000, "cuda": 2 * 7.18e9 * 4_800_000}


@dataclass(frozen=True)
class Settled:
    """A recipe whose `auto` values are decided.

    Attributes:
        recipe: the run's.
        reasons: why each choice was made, by dotted key.
        began: the recipe of the run that is resumed.
    """

    recipe: Recipe
    reasons: dict[str, str]
    began: Recipe | None = None

    @property
    def notes(self) -> list[str]:
        """A line for each choice."""
        return [f"{key}: {_shown(_value(self.recipe, key))} ({reason})" for key, reason in self.reasons.items()]

    def record(self) -> JsonObject:
        """The choices as the manifest holds them."""
        return {key: {"value": _value(self.recipe, key), "reason": reason} for key, reason in self.reasons.items()}

    def chosen(self, key: str, value: object, reason: str) -> "Settled":
        """The recipe with one more choice."""
        return self.changed(_set(self.recipe, {key: value}), key, reason)

    def changed(self, recipe: Recipe, key: str, reason: str) -> "Settled":
        """A changed recipe, and the reason of the change; a change without a reason gets no line."""
        return replace(self, recipe=recipe, reasons={**self.reasons, **({key: reason} if reason else {})})


def settle(recipe: Recipe, resume: Path | None) -> Settled:
    """Decide what must be known before a run is planned: its compute type, on all processes alike.

    In the folder `resume`, the run's own recipe holds what was decided when it began.
    """
    began = recorded_recipe(resume) if resume is not None else None
    settled = Settled(recipe, {}, began)
    if recipe.model.dtype != "auto":
        return settled
    if began is not None and began.model.dtype != "auto":
        return settled.chosen("model.dtype", began.model.dtype, _BEGAN)
    return settled.chosen("model.dtype", *fastest_of_all_processes())


def settle_plan(settled: Settled, splits: Mapping[str, ReadySplit], processes: int) -> tuple[Settled, RunPlan]:
    """Plan a run, and decide with its memory what it recomputes, and whether its layers are compiled.

    Compiled layers keep less for the backward pass. So the run is first taken as compiled where only its strategy could
    forbid that, which is chosen by memory too.

    Raises:
        InputError: as `plan_run`; or the recipe asks for compiled layers, which its other settings do not allow.
    """
    left_open, gpu = settled.recipe.optim.gradient_checkpointing == "auto", torch.cuda.is_available()
    began = settled.began
    if began is not None and began.optim.gradient_checkpointing == "auto":  # edited by hand: runs record no auto
        began = None
    if left_open and began is not None:
        begun = as_begun(settled.recipe, began, [_RECOMPUTED])
        settled = settled.changed(begun, _RECOMPUTED, _BEGAN if gpu else "")
    elif left_open:
        settled = settled.chosen(_RECOMPUTED, "none", "")
    plan = _likely_compiled(settled, plan_run(settled.recipe, splits, processes))
    if left_open and began is None and gpu:
        changes, reason = fastest_fit(plan.memory)
        settled = settled.changed(_set(settled.recipe, changes), _RECOMPUTED, reason)
        plan = _likely_compiled(settled, plan_run(settled.recipe, splits, processes)) if changes else plan
    if settled.recipe.model.compile:
        settled = settle_compiling(settled, plan)
        plan = plan.under(settled.recipe)
    plan.notes.extend([*settled.notes, *_slow_type(settled.recipe)])
    return settled, plan


def _likely_compiled(settled: Settled, plan: RunPlan) -> RunPlan:
    """The plan with the memory of compiled layers, unless something other than its strategy forbids compiling."""
    if not settled.recipe.model.compile:
        return plan
    return plan.under(settle_compiling(settled, plan._replace(sharding=Sharding("none"))).recipe)


def _slow_type(recipe: Recipe) -> list[str]:
    """A line on float16 without a GPU: torch has no fast matrix products of that type for most CPUs."""
    if recipe.model.dtype != "float16" or torch.cuda.is_available():
        return []
    return ["model.dtype: float16 is very slow on a CPU; with auto the run takes the fastest type of this machine"]


def settle_compiling(settled: Settled, plan: RunPlan) -> Settled:
    """Decide whether a planned run's layers are compiled.

    Raises:
        InputError: the recipe asks for it, and the run's strategy, recomputation or quantisation does not allow it.
    """
    wanted, unsupported = settled.recipe.model.compile, _unsupported(settled.recipe, plan.sharding.strategy)
    if wanted is True and unsupported:
        raise InputError(f"model.compile: true is {unsupported}", "set it to auto or false")
    if wanted == "auto":  # runs from before this key were not compiled
        began = settled.began and (settled.began.model.compile is True, _BEGAN)
        settled = settled.chosen("model.compile", *(began or _pays(plan, unsupported)))
    if settled.recipe.model.compile and (missing := compiler_obstacle()):  # still the same recipe, to resume or to find
        reason = settled.reasons.get("model.compile", "the recipe asks for it")
        return settled.chosen("model.compile", True, f"{reason}, but {missing}: the layers run uncompiled")
    return settled


def _unsupported(recipe: Recipe, strategy: str) -> str | None:
    """Why a run's layers can't be compiled, whatever the machine; None if they can."""
    if strategy == "zero3":
        return "not useful with zero3, whose hooks divide the layers into many small graphs"
    if recipe.optim.gradient_checkpointing == "selective":
        return "not possible with optim.gradient_checkpointing: selective"
    if recipe.model.quantization == "int8":
        return "not tested with int8"
    return None


def _pays(plan: RunPlan, unsupported: str | None) -> tuple[bool, str]:
    """Whether `model.compile: auto` compiles a run, and why."""
    if unsupported is not None:
        return False, unsupported
    if plan.memory.recipe.model.quantization != "none":
        return False, f"not measured with {plan.memory.recipe.model.quantization}"
    parameters = count_parameters(plan.memory.config, plan.memory.recipe.lora)["parameters"]
    tokens = f"{plan.memory.load.run:,} tokens of a model of {parameters / 1e6:,.0f} million parameters"
    if plan.memory.load.run * parameters < PAYS["cuda" if torch.cuda.is_available() else "cpu"]:
        return False, f"{tokens} are too few to win back the time of compiling"
    obstacle = compiler_obstacle()
    return obstacle is None, obstacle or f"{tokens} win back the time of compiling"


def as_begun(recipe: Recipe, recorded: Recipe, keys: Iterable[str] = tuple(_OPEN)) -> Recipe:
    """The recipe with each `auto` replaced by what a run decided; a run of this recipe has an equal one."""
    decided: dict[str, object] = {}
    for key in keys:
        if _value(recipe, key) == "auto":
            decided[key] = _value(recorded, key)
            limits = {name: (_value(recipe, name), _value(recorded, name)) for name in _OPEN[key]}
            decided |= {name: min(both) if None not in both else both[0] for name, both in limits.items()}
    return _set(recipe, decided)


def _value(recipe: Recipe, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name)


def _set(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    for key, value in changes.items():
        section, _, name = key.partition(".")
        changed = getattr(recipe, section).model_copy(update={name: value})
        recipe = recipe.model_copy(update={section: changed})
    return recipe


def _shown(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def recorded_recipe(run: Path) -> Recipe | None:
    """The recipe of a run folder; None if it can't be read: what a run resumes from is checked by its fingerprint."""
    with suppress(RmtrainError):
        return load_recipe(run / "recipe.yaml").recipe
    return None
