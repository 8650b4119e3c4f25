"""Hints name what the command at hand has."""

import ast
import re
from pathlib import Path

import pytest

import rmtrain
from rmtrain.cli.app import _options
from rmtrain.cli.app import run as command_line
from rmtrain.cli.hints import _OPTIONS, for_command
from rmtrain.recipe.hints import KEYS

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def hints() -> list[str]:
    """Every second argument of an error, its values left out."""
    found = []
    for path in Path(rmtrain.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                found.extend(map(text_of, node.args[1:2]))
    return found


def text_of(node: ast.AST) -> str:
    """The strings below a node in their order; a printed command as it will be read."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command_line":
        return " ".join(["rmtrain", *(text_of(word) or "X" for word in node.args)])
    return "".join(map(text_of, ast.iter_child_nodes(node)))


@pytest.mark.parametrize("command", _options())
def test_every_hint_names_what_the_command_has(command: str) -> None:
    options = _options()
    seen = 0
    for hint in hints():
        told = for_command(command, hint, options)
        for match in OPTION.finditer(told):
            other = re.findall(r"rmtrain ([a-z]+) (?=[^;`]*$)", told[: match.start()])
            assert match[0] in options[other[-1] if other else command], (hint, told)
            seen += 1
        for key, option in _OPTIONS.items():
            assert key not in told or option not in options[command], (hint, told)
    assert seen or command in ("doctor", "recipes", "runs")


def test_every_key_that_stands_for_an_option_is_a_recipe_s() -> None:
    assert set(_OPTIONS) <= {*KEYS}
    assert set(_OPTIONS.values()) <= set.union(*_options().values())


def test_a_hint_is_in_the_words_of_the_command() -> None:
    options = {"eval": {"--label", "--columns"}, "compare": {"--label-a", "--label-b"}, "train": {"--resume"}}
    hint = "data.columns renames them; name it with --label, or see rmtrain train --resume RUN"
    assert for_command("eval", hint, options) == hint.replace("data.columns", "--columns")
    assert for_command("compare", hint, options) == hint.replace("--label", "--label-a (or -b)")
    assert for_command("train", hint, options) == hint.replace("--label", "rmtrain eval --label")
    assert (
        for_command("eval", "x/data.columns.jsonl, data.columns-2", options) == "x/data.columns.jsonl, data.columns-2"
    )


def test_errors_reach_the_user_so(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "w1", "b": "w2"}\n')
    (tmp_path / "r.yaml").write_text(f"model: {{name: {base}}}\ndata: {{source: {tmp_path / 'rows.jsonl'}}}\n")
    rows = str(tmp_path / "rows.jsonl")
    for arguments, told in (
        (
            ["data", str(tmp_path / "r.yaml")],
            "hint: data.columns renames columns, as in {chosen: good}; data.answers",
        ),
        (
            ["score", rows, "--ckpt", str(base), "--output", str(tmp_path / "o")],
            "hint: --columns renames columns, as in chosen=good; known: completions (prompt, completions), pair (",
        ),
    ):
        assert command_line(arguments) == 2
        assert told in capsys.readouterr().err
