"""What the README and docs/code.md say of the commands and of the files is so."""

import re
from pathlib import Path

import typer
from conftest import TEMPLATE  # noqa: F401  (sets the environment before anything heavy is imported)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = (ROOT / "docs/code.md").read_text(encoding="utf-8")


def test_the_tree_names_every_source_file() -> None:
    for path in (ROOT / "src/rmtrain").rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py") and path.parent.name != "demo":
            assert re.search(rf"^ +{re.escape(path.name)} ", TREE, re.MULTILINE), path


def test_the_tree_names_no_file_that_is_gone() -> None:
    for name in re.findall(r"^ +(\S+\.py) ", TREE, re.MULTILINE):
        assert list((ROOT / "src/rmtrain").rglob(name)), name


def test_every_command_and_recipe_is_in_the_readme() -> None:
    from rmtrain.cli.app import app
    from rmtrain.recipe.bundled import bundled_recipes

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name in commands:
        assert re.search(rf"`{name}\b", README) or re.search(rf"rmtrain {name}\b", README), name
    for recipe in bundled_recipes():
        assert f"`{recipe.name}`" in README, recipe.name


def test_nothing_was_left_to_be_filled_in() -> None:
    assert "@@" not in README
