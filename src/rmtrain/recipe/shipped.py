"""The recipes that come with rmtrain."""

import os
from pathlib import Path
from typing import NamedTuple

from rmtrain.errors import RecipeError
from rmtrain.files import write_atomic

_SCHEMA_LINE = "# yaml-language-server: $schema=schema.json\n"  # editors complete and check by it


class ShippedRecipe(NamedTuple):
    """A recipe under configs/."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def text(self) -> str:
        """The file as shipped."""
        return self.path.read_text(encoding="utf-8")

    @property
    def purpose(self) -> str:
        """What its header says first."""
        return self.text.removeprefix(_SCHEMA_LINE).partition("\n")[0].removeprefix("#").strip()


def configs_folder() -> Path:
    """`configs/` of the installed package, or of the repository in an editable install.

    Raises:
        RecipeError: neither is there; the installation is damaged.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "schema.json").is_file():
            return folder
    raise RecipeError(f"no shipped recipes in {package / 'configs'}", "install rmtrain anew")


def shipped_recipes() -> list[ShippedRecipe]:
    """All shipped recipes, by name."""
    return [ShippedRecipe(path) for path in sorted(configs_folder().glob("*.yaml"))]


def find(name: str) -> ShippedRecipe:
    """The shipped recipe of a name, with or without `.yaml`.

    Raises:
        RecipeError: there is none.
    """
    recipes = shipped_recipes()
    for recipe in recipes:
        if recipe.name == name.removesuffix(".yaml"):
            return recipe
    raise RecipeError(f"{name}: no shipped recipe has this name", f"they are {', '.join(r.name for r in recipes)}")


def copy(name: str, destination: Path | str | None = None) -> Path:
    """Copy a shipped recipe for editing, and say where it went.

    Args:
        name: the shipped recipe.
        destination: a file, or a folder to put NAME.yaml in; by default the working folder. Missing parents are made.

    Raises:
        RecipeError: no such recipe, the file exists, or it can't be written. Nothing is ever overwritten.
    """
    recipe = find(name)
    target = Path(destination) if destination is not None else Path()
    if target.is_dir():
        target = target / recipe.path.name
    text = recipe.text.removeprefix(_SCHEMA_LINE)  # an editor would complain of the missing schema
    try:
        if os.path.lexists(target):
            raise RecipeError(f"{target} exists and was left as it is", "name another file to copy to")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{target}: can't be written: {reason}", "name another file to copy to") from None
    return target


def missing_hint(stem: str) -> str:
    """How to get a recipe, for one who named a file that is not there."""
    names = [recipe.name for recipe in shipped_recipes()]
    if stem in names:
        return f"{stem} is a shipped recipe: `rmtrain recipes copy {stem}` writes it to {stem}.yaml, to edit and train"
    return f"the shipped recipes are {', '.join(names)}; `rmtrain recipes copy NAME` copies one to edit"
