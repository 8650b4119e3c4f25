"""`rmtrain compare`: two models on the same rows."""

import hashlib
import json as jsonlib
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import DEFAULTS, CheckpointRef, choose, data_section, load, weights_of
from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.evaluate import data_name, of_other_source
from rmtrain.data.benchmarks import benchmark_named
from rmtrain.errors import CheckpointError, DataError, InputError
from rmtrain.scoring.scorer import ScoringOptions

if TYPE_CHECKING:
    from rmtrain.data.types import PreferenceGroup
    from rmtrain.recipe.schema import DataSection


class _Side(NamedTuple):
    """A or B."""

    rows: Path | None  # named by the user
    chosen: CheckpointRef | None  # else the checkpoint; None of a folder of results alone
    scored: dict[str, Path]  # rows that lie with it, by split or benchmark


class _Wanted(NamedTuple):
    """What both are compared on."""

    name: str
    groups: "list[PreferenceGroup]"
    source: dict[str, Any]  # with its fingerprint
    benchmark: str | None


def _of_side(option: str, side: str, text: str) -> Any:
    return typer.Option(f"--{option}-{side.lower()}", help=f"Of {side}: {text}")


_PROMPT, _LABEL = "the prompt's name, or a .jinja chat template.", "name or number of the reward's label."
_REFERENCE, _FREE = "it is a policy; its reference model.", "it is a policy, read by its log-probabilities alone."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A rows file, a result .json, RUN[:split], or any checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same of the other model.")],
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Rows to compare on; default: those that both were scored on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data or --benchmark, or of both runs.")] = None,
    benchmark: Annotated[
        options.BenchmarkName | None,
        typer.Option(help="Compare on this benchmark; --data names its rows where they are not the hub's."),
    ] = None,
    prompt_a: Annotated[str | None, _of_side("prompt", "A", _PROMPT)] = None,
    prompt_b: Annotated[str | None, _of_side("prompt", "B", _PROMPT)] = None,
    label_a: Annotated[str | None, _of_side("label", "A", _LABEL)] = None,
    label_b: Annotated[str | None, _of_side("label", "B", _LABEL)] = None,
    reference_a: Annotated[str | None, _of_side("reference", "A", _REFERENCE)] = None,
    reference_b: Annotated[str | None, _of_side("reference", "B", _REFERENCE)] = None,
    reference_free_a: Annotated[options.PolicyReading | None, _of_side("reference-free", "A", _FREE)] = None,
    reference_free_b: Annotated[options.PolicyReading | None, _of_side("reference-free", "B", _FREE)] = None,
    columns: options.Columns = None,
    row_schema: options.RowSchema = None,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    tokens_per_batch: options.Tokens = None,
    num_processes: options.Processes = None,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Compare two models on the same rows: difference, paired interval, exact test, and smallest detectable difference.

    A checkpoint that was not yet scored on these rows, or has other weights since, is scored first.

    [dim]rmtrain compare runs/a-20260101-120000-ab12 runs/b-20260102-120000-cd34[/]
    [dim]rmtrain compare runs/a-20260101-120000-ab12 openbmb/UltraRM-13b --benchmark rewardbench-1[/]
    [dim]rmtrain compare openbmb/UltraRM-13b openbmb/UltraRM-13b --prompt-b ultrarm-fastchat --data pairs.jsonl[/]
    """
    with TerminalDisplay() as display:
        sides = [
            _side("a", a, ScoringOptions(prompt_a, label_a, reference_a, reference_free_a, max_length, dtype), display),
            _side("b", b, ScoringOptions(prompt_b, label_b, reference_b, reference_free_b, max_length, dtype), display),
        ]
        if (max_length is not None or dtype is not None) and not any(side.chosen for side in sides):
            raise InputError("A and B both name rows: --max-length and --dtype are for checkpoints", "leave them out")
        given = options.given_mapping(columns, row_schema)
        if given and (data is None or benchmark is not None):
            raise InputError("--columns and --row-schema say how rows of --data are read", "name the rows with --data")
        name = _name(sides, data, split, benchmark)
        lying = [side.rows or _lying(side, name, display) for side in sides]
        wanted = None
        if None in lying or data is not None or (benchmark is not None and split is not None):
            wanted = _wanted(sides, name, data, split, benchmark, given, display)
        paths = [_rows_path(side, rows, name, wanted) for side, rows in zip(sides, lying, strict=True)]
        missing = [(side.chosen, path) for side, path in zip(sides, paths, strict=True) if not path.exists()]
        if missing:
            processes.spread(num_processes)
        for chosen, path in missing:
            assert chosen is not None
            assert wanted is not None
            _score(chosen._replace(verify=not no_verify), wanted, path, tokens_per_batch, display)
    if not processes.is_main_process():
        return
    from rmtrain.evaluation.compare import result_beside
    from rmtrain.evaluation.differences import compare_rows
    from rmtrain.evaluation.results import read_rows

    found = {found for path in paths if (found := result_beside(path).get("benchmark"))}
    if len(found) > 1:
        raise DataError(
            f"A and B were scored on different benchmarks: {' and '.join(sorted(found))}", "name one of them"
        )
    a_rows, b_rows = map(read_rows, paths)
    compared = compare_rows(a_rows, b_rows, benchmark_named(found.pop()) if found else None)
    result = {**compared.to_json(), "rows": [str(path) for path in paths]}
    if json:
        print(jsonlib.dumps(result, indent=2))
    else:
        from rmtrain.reporting.table import key_values, spaced, to_terminal
        from rmtrain.reporting.tables import comparison_tables

        names = key_values(dict(zip("AB", result["rows"], strict=True)))
        Console(highlight=False).print(spaced([names, to_terminal(*comparison_tables(result))]))


def _side(letter: str, text: str, asked: ScoringOptions, display: TerminalDisplay) -> _Side:
    """What A or B names."""
    from rmtrain.evaluation.compare import rows_of_result, scored_rows

    own = replace(asked, max_length=None, dtype=None)  # of this side alone
    path = Path(text)
    folder, mark, split = text.rpartition(":")
    of_run = mark and Path(folder).is_dir() and not path.exists()
    # results that were moved, or of weights that are gone
    rows_alone = bool(scored_rows(path)) and not any(path.glob("*config.json")) and not (path / "final").is_dir()
    if own != DEFAULTS and (path.is_file() or of_run or rows_alone):
        names = [name.replace("_", "-") for name, value in vars(own).items() if value is not None]
        given = ", ".join(f"--{name}-{letter}" for name in names)
        raise InputError(
            f"{text} names rows, which were read as they were read: {given}", "name the checkpoint instead"
        )
    if path.is_file():
        return _Side(path if path.name.endswith(".jsonl") else rows_of_result(path), None, {})
    if of_run:
        scored = scored_rows(Path(folder))
        if split not in scored:
            have = f"it has: {', '.join(scored)}" if scored else "score it with rmtrain eval"
            raise DataError(f"{folder}: no rows of the split {split!r}", have)
        return _Side(scored[split], None, {})
    if path.suffix in (".json", ".jsonl") and not path.exists():
        raise DataError(f"{text}: no such file", "name a .rows.jsonl file, a result .json file, RUN[:split] or a CKPT")
    if rows_alone:
        return _Side(None, None, scored_rows(path))
    chosen = choose(text, Path("runs"), display, asked)
    return _Side(None, chosen, scored_rows(chosen.results))


def _name(sides: list[_Side], data: str | None, split: str | None, benchmark: str | None) -> str:
    """The split or benchmark to compare on: the one asked for or named, else the first that both have, or that one has.

    Raises:
        DataError: there is none.
        InputError: one is asked for, but A and B are both rows.
    """
    from rmtrain.evaluation.compare import result_beside

    asked = benchmark or (data_name(data, split) if data is not None else split)
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


def _lying(side: _Side, name: str, display: TerminalDisplay) -> Path | None:
    """Rows that lie with a side, unless their result says that they are of other weights than it has now."""
    from rmtrain.evaluation.compare import result_beside

    rows = side.scored.get(name)
    weights = result_beside(rows).get("weights_fingerprint") if rows is not None else None
    if side.chosen is None or weights is None:
        return rows
    try:
        now = weights_of(side.chosen)
    except CheckpointError as error:
        display.note_once(f"{rows} is taken as it lies, the weights being out of reach: {error.message}")
        return rows
    if weights == now:
        return rows
    display.note_once(f"{side.chosen.where}: other weights than when {rows} was written")
    return None


def _wanted(
    sides: list[_Side],
    name: str,
    data: str | None,
    split: str | None,
    benchmark: str | None,
    given: dict[str, Any] | None,
    display: TerminalDisplay,
) -> _Wanted:
    """The rows of --data, else those that one of the two was scored on, else the benchmark's own.

    Raises:
        DataError: what one of the two was scored on is not recorded, or can't be read.
    """
    scored = next((rows for side in sides if (rows := side.rows or side.scored.get(name))), None)
    if data is None and scored is not None and not (benchmark is not None and split is not None):
        return _scored_on(scored, name, display)
    if data is None and benchmark is None:
        raise DataError(f"neither A nor B was scored on {name!r} yet", "name its rows with --data")
    ways = [data_section(side.chosen, display.note_once) for side in sides if side.chosen and benchmark is None]
    return _read(name, data, split, benchmark, of_other_source(None, str(data), given, ways), display)


def _scored_on(rows: Path, name: str, display: TerminalDisplay) -> _Wanted:
    """The data that rows were scored on; of a run, as its recipe reads it."""
    from rmtrain.data.load import load_data, recipe_splits
    from rmtrain.evaluation.compare import result_beside
    from rmtrain.recipe.recorded import read_recorded_file

    result, section = result_beside(rows), None
    if not result.get("data"):
        raise DataError(f"{rows}: nothing beside it says of which data it is", "name them: --data or --benchmark")
    where = re.fullmatch(r"(.+?)(?: \((\S+)\))?", result["data"]["source"])
    assert where is not None
    data, split = where.groups()
    if (path := rows.parent.parent / "recipe.yaml").exists():
        recorded = read_recorded_file(path)
        section = recorded.data
        if name in recipe_splits(recorded.data):
            own = load_data(recorded.data, recorded.seed, [name]).splits[name]
            if own.fingerprint == result["data"]["fingerprint"]:
                return _Wanted(name, own.groups, result["data"], None)
    how = of_other_source(section, data, result["data"].get("read_as"))
    return _read(name, data, split, result.get("benchmark"), how, display)


def _read(
    name: str,
    data: str | None,
    split: str | None,
    benchmark: str | None,
    how: "tuple[DataSection, list[dict[str, Any]]]",
    display: TerminalDisplay,
) -> _Wanted:
    from rmtrain.data.benchmarks.load import core_groups
    from rmtrain.data.load import read_source

    if benchmark is not None:
        groups, source = core_groups(benchmark_named(benchmark), data, split, display.note_once)
        return _Wanted(name, groups, source, benchmark)
    found = read_source(str(data), split, how[0], evaluation=True, trained=how[1], notify=display.note_once)
    return _Wanted(name, found.groups, found.origin, None)


def _rows_path(side: _Side, lying: Path | None, name: str, wanted: _Wanted | None) -> Path:
    """Rows that are there, if they are of the wanted data; else where they will be, named after it and the weights."""
    from rmtrain.evaluation.compare import result_beside

    if side.rows is not None:
        return side.rows
    of_data = result_beside(lying).get("data", {}) if lying is not None else {}
    same = wanted is None or all(of_data.get(key) == wanted.source.get(key) for key in ("fingerprint", "read_as"))
    if lying is not None and same:
        return lying
    if side.chosen is None:
        raise DataError(
            f"no rows of {name!r} on that data among {', '.join(map(str, side.scored.values()))}", "name a CKPT"
        )
    assert wanted is not None
    digest = hashlib.sha256(f"{weights_of(side.chosen)} {wanted.groups}".encode()).hexdigest()
    return side.chosen.results / "compare" / f"{name}-{digest[:12]}.rows.jsonl"


def _score(chosen: CheckpointRef, wanted: _Wanted, path: Path, budget: int | None, display: TerminalDisplay) -> None:
    """Write the rows, and beside them the result that says what they are."""
    from rmtrain.evaluation.splits import score_rows
    from rmtrain.files import write_json

    by_rewards = wanted.benchmark is not None and benchmark_named(wanted.benchmark).needs_rewards
    display.note(f"scoring {chosen.where} on {wanted.name}")
    scorer = load(chosen, display, str(wanted.benchmark) if by_rewards else "")
    score_rows(scorer, wanted.name, wanted.groups, budget or scorer.info.tokens_per_batch, path, display)
    what = {"benchmark": wanted.benchmark} if wanted.benchmark is not None else {"split": wanted.name}
    result = {"ckpt": scorer.info.where, **what, **scorer.info.record(), "data": wanted.source, "rows": str(path)}
    if processes.is_main_process():
        write_json(path.with_name(path.name.removesuffix(".rows.jsonl") + ".json"), result)
