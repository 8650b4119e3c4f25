"""`rmtrain compare`: two models on the same rows."""

import hashlib
import json as jsonlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from rich.console import Console

from rmtrain.cli import processes
from rmtrain.cli.checkpoints import Chosen, choose, load, tokens_at_once
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.evaluate import stem
from rmtrain.cli.options import JsonOption, ProcessesOption, TokensOption
from rmtrain.cli.rewardbench import core_groups
from rmtrain.errors import DataError, InputError

if TYPE_CHECKING:
    from rmtrain.data.types import PreferenceGroup


class _Side(NamedTuple):
    """A or B."""

    rows: Path | None  # named by the user
    chosen: Chosen | None  # else the checkpoint
    scored: dict[str, Path]  # rows that lie with it, by split or benchmark


class _Wanted(NamedTuple):
    """What both are compared on."""

    name: str
    groups: "list[PreferenceGroup]"
    fingerprint: str | None  # of the data


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A rows file, a result .json, RUN[:split], or any checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same of the other model.")],
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Rows to compare on; default: those that both were scored on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data or --benchmark, or of both runs.")] = None,
    benchmark: Annotated[
        Literal["rewardbench-1", "rewardbench-2", "rm-bench", "judgebench"] | None,
        typer.Option(help="Compare on this benchmark; --data names its rows where they are not the hub's."),
    ] = None,
    tokens_per_batch: TokensOption = None,
    num_processes: ProcessesOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two models on the same rows: difference, paired interval, exact test, and what could have been found.

    A checkpoint that was not yet scored on these rows is scored first.

    [dim]rmtrain compare runs/a-20260101-120000-ab12 runs/b-20260102-120000-cd34[/]
    [dim]rmtrain compare runs/a-20260101-120000-ab12 openbmb/UltraRM-13b --benchmark rewardbench-1[/]
    """
    display = TerminalDisplay()
    sides = [_side(text, display) for text in (a, b)]
    try:
        name = _name(sides, data, split, benchmark)
        wanted = None
        lacking = any(side.rows is None and name not in side.scored for side in sides)
        if lacking or data is not None or (benchmark is not None and split is not None):
            wanted = _wanted(sides, name, data, split, benchmark)
        paths = [_rows_path(side, name, wanted) for side in sides]
        missing = [(side.chosen, path) for side, path in zip(sides, paths, strict=True) if not path.exists()]
        if missing:
            processes.spread(num_processes)
        for chosen, path in missing:
            assert chosen is not None
            assert wanted is not None
            _score(chosen, wanted, path, tokens_per_batch, display)
    finally:
        display.close()
    if not processes.is_main_process():
        return
    from rmtrain.evaluation.compare import compare as compare_rows
    from rmtrain.evaluation.results import read_rows

    result = {**compare_rows(*(read_rows(path) for path in paths)), "rows": [str(path) for path in paths]}
    if json:
        print(jsonlib.dumps(result, indent=2))
    else:
        from rmtrain.reporting.comparison import comparison

        Console(highlight=False).print(comparison(result))


def _side(text: str, display: TerminalDisplay) -> _Side:
    """What A or B names."""
    from rmtrain.evaluation.compare import result_beside, rows_of_result, scored_rows

    path = Path(text)
    if path.is_file():
        return _Side(path if path.name.endswith(".jsonl") else rows_of_result(path), None, {})
    folder, mark, split = text.rpartition(":")
    if mark and Path(folder).is_dir() and not path.exists():
        scored = scored_rows(Path(folder))
        if split not in scored:
            have = f"it has: {', '.join(scored)}" if scored else "score it with rmtrain eval"
            raise DataError(f"{folder}: no rows of the split {split!r}", have)
        return _Side(scored[split], None, {})
    if path.suffix in (".json", ".jsonl") and not path.exists():
        raise DataError(f"{text}: no such file", "name a .rows.jsonl file, a result .json file, RUN[:split] or a CKPT")
    chosen = choose(text, Path("runs"), display)
    scored = scored_rows(chosen.run or path)
    if chosen.run is None:  # other checkpoints of the same name have their results in the same folder
        found = scored_rows(chosen.results).items()
        scored |= {name: rows for name, rows in found if result_beside(rows).get("ckpt") == chosen.where}
    return _Side(None, chosen, scored)


def _name(sides: list[_Side], data: str | None, split: str | None, benchmark: str | None) -> str:
    """The split or benchmark to compare on: the one asked for or named, else the first that both have, or that one has.

    Raises:
        DataError: there is none.
        InputError: one is asked for, but A and B are both rows.
    """
    from rmtrain.evaluation.compare import result_beside

    asked = benchmark or (stem(data) if data is not None else split)
    if asked is not None and all(side.rows is not None for side in sides):
        raise InputError("A and B both name rows, and other data is asked for too", "name checkpoints, or leave it out")
    if asked is not None:
        return asked
    have = [name for side in sides for name in side.scored]
    for side in sides:
        if side.rows is not None:
            name = side.rows.name.removesuffix(".rows.jsonl")
            return name if name in have or not have or result_beside(side.rows).get("data") else have[0]
    if not have:
        raise DataError("neither A nor B was scored on anything yet", "name rows for both with --data or --benchmark")
    return next((name for name in sides[0].scored if name in sides[1].scored), have[0])


def _wanted(sides: list[_Side], name: str, data: str | None, split: str | None, benchmark: str | None) -> _Wanted:
    """The rows of --data, else those that one of the two was scored on, else the benchmark's own.

    Raises:
        DataError: what one of the two was scored on is not recorded, or can't be read.
    """
    from rmtrain.data.load import load_data, read_source, recipe_splits
    from rmtrain.evaluation.benchmarks import BENCHMARKS
    from rmtrain.evaluation.compare import result_beside
    from rmtrain.recipe.load import load_recipe

    section = None
    scored = next((rows for side in sides if (rows := side.rows or side.scored.get(name))), None)
    if data is None and scored is not None and not (benchmark is not None and split is not None):
        result = result_beside(scored)
        if not result.get("data"):
            raise DataError(f"{scored}: nothing beside it says of which data it is", "name them: --data or --benchmark")
        where = re.fullmatch(r"(.+?)(?: \((\S+)\))?", result["data"]["source"])
        assert where is not None
        (data, split), benchmark = where.groups(), result.get("benchmark")
        if (path := scored.parent.parent / "recipe.yaml").exists():  # the rows are of a run, read as its recipe says
            recipe = load_recipe(path).recipe
            section = recipe.data.model_copy(update={"source": data, "columns": {}, "row_schema": "auto"})
            if name in recipe_splits(recipe.data):
                own = load_data(recipe.data, recipe.run.seed, [name]).splits[name]
                if own.fingerprint == result["data"]["fingerprint"]:
                    return _Wanted(name, own.groups, own.fingerprint)
    if data is None and benchmark is None:
        raise DataError(f"neither A nor B was scored on {name!r} yet", "name its rows with --data")
    if benchmark is not None:
        groups, source = core_groups(BENCHMARKS[benchmark], data, split)
        return _Wanted(name, groups, source["fingerprint"])
    found = read_source(str(data), split, section, evaluation=True)
    return _Wanted(name, found.groups, found.fingerprint)


def _rows_path(side: _Side, name: str, wanted: _Wanted | None) -> Path:
    """Rows that are there, of the wanted data; else where they will be, named after weights and rows."""
    from rmtrain.evaluation.compare import result_beside

    if side.rows is not None:
        return side.rows
    lying = side.scored.get(name)
    if lying and (wanted is None or result_beside(lying).get("data", {}).get("fingerprint") == wanted.fingerprint):
        return lying
    from rmtrain.model.weights import download, fingerprint_of

    assert side.chosen is not None
    assert wanted is not None
    where, _, revision = side.chosen.where.partition("@")
    folder = Path(where) if Path(where).is_dir() else download(where, revision or None)
    digest = hashlib.sha256(f"{fingerprint_of(folder)} {wanted.groups}".encode()).hexdigest()
    return side.chosen.results / "compare" / f"{name}-{digest[:12]}.rows.jsonl"


def _score(chosen: Chosen, wanted: _Wanted, path: Path, budget: int | None, display: TerminalDisplay) -> None:
    from rmtrain.evaluation.splits import score_rows

    checkpoint = load(chosen, wanted.name if wanted.name == "rewardbench-2" else "")
    for note in (f"scoring {chosen.where} on {wanted.name}", *checkpoint.notes):
        display.note(note)
    score_rows(checkpoint, wanted.name, wanted.groups, budget or tokens_at_once(checkpoint), path, display)
