"""Imports between rooms point one way, and each heavy library has one door."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rmtrain
from rmtrain.data.benchmarks import BENCHMARKS

SOURCE = Path(rmtrain.__file__).parent
# a room may use rooms further down; training, evaluation and serving are neighbours and use none of each other
LEVELS = {
    "cli": 7,
    "reporting": 6,
    "training": 5,
    "evaluation": 5,
    "serving": 5,
    "scoring": 4,
    "model": 3,
    "data": 2,
    "recipe": 1,
}
LEAVES = {
    "documents",
    "errors",
    "files",
    "json_values",
    "places",
    "runs",
    "signals",
    "display",
    "metrics",
}  # usable by anyone
LEAF_USES = {
    "errors": set(),
    "files": {"errors"},
    "places": set(),
    "signals": set(),
    "display": set(),
    "metrics": set(),
    "json_values": {"errors", "files"},
    "documents": {"errors", "json_values"},
    "runs": {"documents", "errors", "files", "json_values"},
}
DOORS = {  # library → where it may be imported
    "trl": ("training/",),
    "deepspeed": ("training/",),
    "peft": ("model/",),
    "bitsandbytes": ("model/",),
    "wandb": ("training/tracking.py",),
    "fastapi": ("serving/",),
    "uvicorn": ("serving/",),
    "typer": ("cli/",),
    "rich": ("cli/", "reporting/"),
    "matplotlib": ("reporting/",),
}
HEAVY = ("torch", "trl", "transformers", "datasets", "wandb", "peft", "accelerate", "deepspeed", "matplotlib")

TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of all modules that a file imports, also within functions; relative imports are not used here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "rmtrain")


def room(module: str) -> str:
    """The room of `rmtrain.room.module`."""
    return module.split(".")[1]


def backward(where: str, imported: str) -> bool:
    """Whether an import from one room to another goes against the arrows."""
    if where == imported or where in ("__main__", "__init__"):  # a package's own names are imported when asked for
        return False
    if where in LEAVES:
        return imported not in LEAF_USES[where]
    return imported not in LEAVES and LEVELS[imported] >= LEVELS[where]


def test_no_arrow_turns_back() -> None:
    turned = []
    for path, tree in TREES.items():
        where = path.split("/")[0].removesuffix(".py")
        found = {room(name) for name in imports(tree) if name.startswith("rmtrain.")}
        turned += [f"{path} imports {other}" for other in sorted(found) if other[:2] != "__" and backward(where, other)]
    assert turned == []


def test_every_library_has_its_door() -> None:
    wrong = []
    for path, tree in TREES.items():
        roots = {name.split(".")[0] for name in imports(tree)}
        barred = {library for library, doors in DOORS.items() if not path.startswith(doors)}
        if path.startswith("recipe/"):
            barred |= {*HEAVY}
        if path.startswith("metrics/"):
            barred |= roots - {"numpy", "jaxtyping", "rmtrain", *sys.stdlib_module_names}
        wrong += [f"{path} imports {library}" for library in sorted(roots & barred)]
    assert wrong == []


def test_one_file_joins_the_process_group() -> None:
    """On a CPU, accelerate stands alone for good if anything else is the first to ask for the group."""
    barred = {"PartialState", "gather_object", "broadcast_object_list"}
    wrong = []
    for path, tree in TREES.items():
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        if path != "model/devices.py":
            wrong += [f"{path} imports {name}" for name in sorted(names & barred)]
    assert wrong == []


def test_only_the_command_line_prints_or_exits() -> None:
    barred = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    wrong = []
    for path, tree in TREES.items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if not path.startswith(("cli/", "__main__.py")):
            wrong += [f"{path} calls {name}" for name in sorted(calls & barred)]
    assert wrong == []


def test_the_rooms_are_those_of_the_plan() -> None:
    rooms = {
        path.name.removesuffix(".py")
        for path in SOURCE.iterdir()
        if not path.name.startswith(("_", "configs", "py.typed"))
    }
    assert rooms == {*LEVELS, *LEAVES}


def test_a_benchmark_is_known_to_its_own_module_and_the_registry_alone() -> None:
    """Its module lies in `data`, which may read its rows too; no other code tells benchmarks apart by their names."""
    assert all(module.startswith("rmtrain.data.benchmarks.") for module in BENCHMARKS.values())
    named = {
        path
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in BENCHMARKS and not path.startswith("data/benchmarks/")
    }
    assert named <= {"cli/rewardbench.py"}  # the command's default


def test_the_check_sees_arrows_that_turn_back() -> None:
    tree = ast.parse("def f():\n    from rmtrain.training.train import train\n    import rmtrain.cli.app\n")
    assert {room(name) for name in imports(tree)} == {"training", "cli"}
    assert [*imports(ast.parse("from rmtrain import cli"))] == ["rmtrain", "rmtrain.cli"]
    assert backward("model", "scoring")
    assert backward("training", "evaluation")
    assert backward("metrics", "data")
    assert backward("files", "runs")
    assert not backward("model", "files")
    assert not backward("cli", "recipe")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["rmtrain.cli.app", "rmtrain.recipe.load", "rmtrain"])
def test_the_command_line_opens_without_heavy_libraries(module: str) -> None:
    code = f"import sys\nimport {module}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_files_and_functions_are_short() -> None:
    """At most 300 lines a file and 60 a function, docstring included."""
    lines = {name: len((SOURCE / name).read_text().splitlines()) for name in TREES}
    assert [name for name, number in lines.items() if number > 300] == []
    functions = [
        (f"{name}: {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert [function for function, number in functions if number > 60] == []
