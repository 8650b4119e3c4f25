"""What a recipe leaves to the machine and the run (`auto`), decided once: a resumed run keeps what it began with."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rmtrain.errors import InputError, RecipeError
from rmtrain.json_values import JsonObject
from rmtrain.model.compiling import compiler_obstacle
from rmtrain.model.compute_type import fastest_of_all_processes
from rmtrain.model.memory import count_parameters
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import ModelSection, Recipe
from rmtrain.training.build import RunPlan

_OPEN = ("dtype", "compile")  # keys of the model section that may be auto
_BEGAN = "the run began with it"
# Parameters times tokens through the backbone of a process, above which a CPU wins back the time of compiling: twice
# the break-even of SmolLM2-135M. scripts/bench_compile.py --groups 2 found 37 s of compiling, 20 of them C++ (n = 1),
# and 6.9 ms a token (n = 2); 1.2 is the gain that it found before (medians of 5 and of 10 micro-batches).
PAYS = 2 * 1.39e8 * 32_000


@dataclass(frozen=True)
class Settled:
    """A recipe without `auto` for what the machine decides.

    Attributes:
        recipe: the run's.
        reasons: why each choice was made, by key of the model section.
        began: the model section of the run that is resumed.
    """

    recipe: Recipe
    reasons: dict[str, str]
    began: ModelSection | None = None

    @property
    def notes(self) -> list[str]:
        """A line for each choice."""
        values = {key: _shown(getattr(self.recipe.model, key)) for key in self.reasons}
        return [f"model.{key}: {values[key]} ({reason})" for key, reason in self.reasons.items()]

    def record(self) -> JsonObject:
        """The choices as the manifest holds them."""
        values = {key: getattr(self.recipe.model, key) for key in self.reasons}
        return {f"model.{key}": {"value": values[key], "reason": reason} for key, reason in self.reasons.items()}

    def chosen(self, key: str, value: object, reason: str) -> "Settled":
        """The recipe with one more choice."""
        model = self.recipe.model.model_copy(update={key: value})
        recipe = self.recipe.model_copy(update={"model": model})
        return replace(self, recipe=recipe, reasons={**self.reasons, key: reason})


def settle(recipe: Recipe, resume: Path | None) -> Settled:
    """Decide what must be known before a run is planned: its compute type, on all processes alike.

    In the folder `resume`, the run's own recipe holds what was decided when it began.
    """
    began = _recorded(resume) if resume is not None else None
    settled = Settled(recipe, {}, began)
    if recipe.model.dtype != "auto":
        return settled
    if began is not None and began.dtype != "auto":
        return settled.chosen("dtype", began.dtype, _BEGAN)
    return settled.chosen("dtype", *fastest_of_all_processes())


def settle_compiling(settled: Settled, plan: RunPlan) -> Settled:
    """Decide whether a planned run's layers are compiled.

    Raises:
        InputError: the recipe asks for it, and the run's strategy, recomputation or quantisation does not allow it.
    """
    wanted, unsupported = settled.recipe.model.compile, _unsupported(settled.recipe, plan.sharding.strategy)
    if wanted is True and unsupported:
        raise InputError(f"model.compile: true is {unsupported}", "set it to auto or false")
    if wanted == "auto":  # runs from before this key were not compiled
        began = settled.began and (settled.began.compile is True, _BEGAN)
        settled = settled.chosen("compile", *(began or _pays(plan, unsupported)))
    if settled.recipe.model.compile and (missing := compiler_obstacle()):  # still the same recipe, to resume or to find
        reason = settled.reasons.get("compile", "the recipe asks for it")
        return settled.chosen("compile", True, f"{reason}, but {missing}: the layers run uncompiled")
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
    """Whether a run is compiled where the recipe leaves it open, and why."""
    if torch.cuda.is_available():
        return False, "not measured on GPUs yet"
    if unsupported is not None:
        return False, unsupported
    if plan.memory.recipe.model.quantization != "none":
        return False, f"not measured with {plan.memory.recipe.model.quantization}"
    parameters = count_parameters(plan.memory.config, plan.memory.recipe.lora)["parameters"]
    tokens = f"{plan.memory.load.run:,} tokens of a model of {parameters / 1e6:,.0f} million parameters"
    if plan.memory.load.run * parameters < PAYS:
        return False, f"{tokens} are too few to win back the time of compiling"
    obstacle = compiler_obstacle()
    return obstacle is None, obstacle or f"{tokens} win back the time of compiling"


def as_begun(recipe: Recipe, recorded: Recipe) -> Recipe:
    """The recipe with each `auto` replaced by what a run decided; a run of this recipe has an equal one."""
    decided = {key: getattr(recorded.model, key) for key in _OPEN if getattr(recipe.model, key) == "auto"}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=decided)})


def _shown(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _recorded(run: Path) -> ModelSection | None:
    with suppress(RecipeError):  # a damaged recipe is of no use here; the checkpoint's fingerprint is checked later
        return load_recipe(run / "recipe.yaml").recipe.model
    return None
