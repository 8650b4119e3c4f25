"""KEY=A,B,C → the settings of a grid: every combination of the values as a validated recipe."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from rmtrain.errors import InputError
from rmtrain.recipe.load import LoadedRecipe, load_recipe
from rmtrain.recipe.schema import Recipe

MOST = 1000  # runs of a sweep
_OWN = {
    "run.seed": "--seeds N trains every setting with N seeds, from the recipe's own upwards",
    "run.name": "set one name for all runs",
    "run.folder": "set one folder for all runs",
}
_PAIRS = {"[": "]", "{": "}", '"': '"', "'": "'"}


@dataclass(frozen=True)
class Setting:
    """A point of a grid: a recipe whose runs differ only in the seed."""

    number: int  # from 1, in the order of the grid
    label: str  # its varied values, such as `optim.learning_rate=5e-4`
    overrides: tuple[str, ...]  # KEY=VALUE
    loaded: LoadedRecipe

    def with_seed(self, place: int) -> Recipe:
        """The recipe of the run with the seed of this number, from 0."""
        recipe = self.loaded.recipe
        return recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": recipe.run.seed + place})})


def grid(path: Path, arguments: Sequence[str]) -> list[Setting]:
    """All combinations of the values of `KEY=A,B,C` arguments, the last key varying fastest.

    A comma inside brackets or quotes is part of the value. A key with a single value overrides the recipe in all
    settings.

    Raises:
        RecipeError: the recipe, or the recipe of a setting, has faults.
        InputError: a value is empty, a key can't be varied, two settings are equal, or there are too many.
    """
    choices = [_choices(argument) for argument in arguments]
    varied = [len(choice) > 1 for choice in choices]
    if math.prod(map(len, choices)) > MOST:
        raise InputError(f"the grid has more than {MOST:,} settings", "leave values out")
    settings = list[Setting]()
    for number, overrides in enumerate(product(*choices), start=1):
        label = ", ".join(text for text, varies in zip(overrides, varied, strict=True) if varies)
        loaded = load_recipe(path, overrides)
        for other in settings:
            if other.loaded.recipe == loaded.recipe:
                raise InputError(f"{other.label} and {label} are the same setting", "leave one of them out")
        settings.append(Setting(number, label or "the recipe", overrides, loaded))
    return settings


def _choices(argument: str) -> list[str]:
    """`KEY=A,B` → `KEY=A` and `KEY=B`; an argument without `=` is unchanged, so that the recipe reports it."""
    key, equals, text = argument.partition("=")
    values = list(_values(text))
    if not equals or len(values) == 1:
        return [argument]
    if key in _OWN:
        raise InputError(f"{argument}: {key} is not for a grid", _OWN[key])
    if not all(value.strip() for value in values):
        raise InputError(f"{argument}: a value is empty", f"such as {key}=A,B")
    return [f"{key}={value.strip()}" for value in values]


def _values(text: str) -> Iterator[str]:
    """The parts between commas that are outside brackets and quotes."""
    start, closing = 0, list[str]()
    for place, character in enumerate(text):
        if closing and character == closing[-1]:
            closing.pop()
        elif character in _PAIRS and not (closing and closing[-1] in "\"'"):
            closing.append(_PAIRS[character])
        elif character == "," and not closing:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def shortened(setting: Setting, share: float) -> Setting:
    """The setting with a share of its training: of its maximum steps if set, otherwise of its epochs."""
    optim = setting.loaded.recipe.optim
    short = (
        f"optim.epochs={optim.epochs * share:g}"
        if optim.max_steps is None
        else f"optim.max_steps={max(1, round(optim.max_steps * share))}"
    )
    overrides = (*setting.overrides, short)
    return replace(setting, overrides=overrides, loaded=load_recipe(setting.loaded.path, overrides))
