"""The commands and recipe keys that the README and the guides show are real ones."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import TEMPLATE  # noqa: F401  (sets the environment before anything heavy is imported)

from rmtrain.recipe.schema import Recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SECTIONS = Recipe.model_fields
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The rmtrain command lines of a page: in its blocks, and alone in backticks."""
    lines = [line.strip() for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?rmtrain [a-z]", line)]
    return found + re.findall(r"`(rmtrain [a-z][^`]*)`", BLOCK.sub("", text))


@pytest.fixture(scope="module")
def command_line() -> Any:
    from rmtrain.cli.app import app

    return typer.main.get_command(app)


def fault(command: Any, line: str) -> str | None:
    """Why the program does not take a command line; None where it does."""
    arguments = shlex.split(line, comments=True)[1:]
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if hasattr(command, "commands"):
        return f"{line}: no such command" if arguments and not arguments[0].startswith("-") else None
    try:
        command.make_context(line, arguments).close()
    except Exception as error:
        return f"{line}: {error}"
    return None


def test_every_command_line_is_one_that_the_program_takes(command_line: Any) -> None:
    assert fault(command_line, "rmtrain eval --no-such-option") is not None
    assert fault(command_line, "rmtrain nothing") is not None
    shown = [(page, line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]
    whole = [(page, line) for page, line in shown if not re.search(r"…| \| |\[", line)]  # others are forms of commands
    assert len(whole) > 30
    assert not [(page.name, wrong) for page, line in whole if (wrong := fault(command_line, line))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_fence_stands_alone_in_its_line(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    fences = [line for line in lines if "```" in line]
    assert not [line for line in fences if not re.fullmatch(r"```\w*", line)]
    assert set(fences[1::2]) <= {"```"}, "a block that is not closed"
    assert len(fences) % 2 == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_recipe_key_is_in_the_schema(page: Path) -> None:
    text = re.sub(r"^```python\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for section, key in re.findall(r"\b([a-z]+)\.([a-z_]+)(?=[`:= ,.)])", text):
        if section not in SECTIONS or key in ("py", "yaml", "json", "md"):
            continue
        model: Any = SECTIONS[section].annotation
        model = next((part for part in getattr(model, "__args__", ()) if hasattr(part, "model_fields")), model)
        assert key in model.model_fields, f"{page.name}: {section}.{key}"


def test_every_guide_opens_with_a_command_and_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme, page.name
    assert "@@" not in "".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
