"""What a recipe leaves to the machine and the run (`auto`), decided once: a resumed run keeps what it began with."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import gather_object

from rmtrain.errors import RecipeError
from rmtrain.json_values import JsonObject
from rmtrain.model.compute_type import ComputeType, fastest_type
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import ModelSection, Recipe

_OPEN = ("dtype",)  # keys of the model section that may be auto


class Settled(NamedTuple):
    """A recipe without `auto` for what the machine decides, and why, by key of its model section."""

    recipe: Recipe
    reasons: dict[str, str]

    @property
    def notes(self) -> list[str]:
        """A line for each choice."""
        values = {key: getattr(self.recipe.model, key) for key in self.reasons}
        return [f"model.{key}: auto is {values[key]} ({reason})" for key, reason in self.reasons.items()]

    def record(self) -> JsonObject:
        """The choices as the manifest holds them."""
        return {
            f"model.{key}": {"value": getattr(self.recipe.model, key), "reason": reason}
            for key, reason in self.reasons.items()
        }


def settle(recipe: Recipe, resume: Path | None) -> Settled:
    """Decide what the recipe leaves open, on all processes alike.

    Args:
        recipe: of the run.
        resume: the folder of the run that is resumed, whose own recipe holds what was decided then.
    """
    began = _recorded(resume) if resume is not None else None
    chosen: JsonObject = {}
    reasons: dict[str, str] = {}
    if recipe.model.dtype == "auto":
        if began is not None and began.dtype != "auto":
            chosen["dtype"], reasons["dtype"] = began.dtype, "the run began with it"
        else:
            chosen["dtype"], reasons["dtype"] = _of_all_processes(fastest_type())
    model = recipe.model.model_copy(update=chosen)
    return Settled(recipe.model_copy(update={"model": model}), reasons)


def as_begun(recipe: Recipe, recorded: Recipe) -> Recipe:
    """The recipe with what a run has decided in place of `auto`; the run is of this recipe if its own one is equal."""
    decided = {key: getattr(recorded.model, key) for key in _OPEN if getattr(recipe.model, key) == "auto"}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=decided)})


def _recorded(run: Path) -> ModelSection | None:
    with suppress(RecipeError):  # a damaged recipe is of no use here; the checkpoint's fingerprint is checked later
        return load_recipe(run / "recipe.yaml").recipe.model
    return None


def _of_all_processes(own: ComputeType) -> ComputeType:
    """bfloat16 only where every process has it, so that all train the same model."""
    types: list[ComputeType] = gather_object([own])
    return next((found for found in types if found.name == "float32"), own)
