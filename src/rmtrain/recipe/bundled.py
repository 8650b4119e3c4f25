"""The recipes that come with rmtrain."""

import os
from pathlib import Path
from typing import NamedTuple

from rmtrain.errors import RecipeError
from rmtrain.files import write_atomic

_SCHEMA_LINE = "# yaml-language-server: $schema=schema.json\n"  # for completion and checks in editors


class BundledRecipe(NamedTuple):
    """A recipe under configs/."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def text(self) -> str:
        """The content of the file."""
        return self.path.read_text(encoding="utf-8")

    @property
    def purpose(self) -> str:
        """The first sentence of its header."""
        return self.text.removeprefix(_SCHEMA_LINE).partition("\n")[0].removeprefix("#").strip()


def configs_folder() -> Path:
    """`configs/` of the installed package, or of the repository in an editable install.

    Raises:
        RecipeError: neither exists: the installation is damaged.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "schema.json").is_file():
            return folder
    raise RecipeError(f"no bundled recipes in {package / 'configs'}", "reinstall rmtrain")


def bundled_recipes() -> list[BundledRecipe]:
    """All bundled recipes, by name."""
    return [BundledRecipe(path) for path in sorted(configs_folder().glob("*.yaml"))]


def find(name: str) -> BundledRecipe:
    """The bundled recipe with a name; the name may end in `.yaml`.

    Raises:
        RecipeError: there is none of this name.
    """
    recipes = {recipe.name: recipe for recipe in bundled_recipes()}
    if recipe := recipes.get(name.removesuffix(".yaml")):
        return recipe
    raise RecipeError(f"{name}: no bundled recipe has this name", f"the bundled recipes are {', '.join(recipes)}")


def copy(name: str, destination: Path | str | None = None) -> Path:
    """Copy a bundled recipe for editing to a file, or as NAME.yaml into a folder, by default the working folder.

    Missing parents are made; returns the path of the copy.

    Raises:
        RecipeError: no such recipe, the file exists, or it can't be written. An existing file is never overwritten.
    """
    recipe = find(name)
    target = Path(destination or "")
    if target.is_dir():
        target = target / recipe.path.name
    try:
        if os.path.lexists(target):
            raise RecipeError(f"{target} exists and was not changed", "name another file to copy to")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, recipe.text.removeprefix(_SCHEMA_LINE))  # the copy has no schema.json beside it
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{target}: can't be written: {reason}", "name another file to copy to") from None
    return target


def missing_hint(stem: str) -> str:
    """The hint for a recipe file that does not exist."""
    names = [recipe.name for recipe in bundled_recipes()]
    if stem in names:
        return f"{stem} is a bundled recipe: `rmtrain recipes copy {stem}` writes it to {stem}.yaml, to edit and train"
    return f"the bundled recipes are {', '.join(names)}; `rmtrain recipes copy NAME` copies one to edit"
