"""`rmtrain eval`: ranking accuracy of a checkpoint on splits or on other data."""

import hashlib
import json as jsonlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rmtrain.cli import options, processes
from rmtrain.cli.checkpoints import CheckpointRef, choose, data_section, load, recorded_recipe
from rmtrain.cli.display import TerminalDisplay
from rmtrain.errors import InputError
from rmtrain.scoring.scorer import Scorer, ScoringOptions

if TYPE_CHECKING:
    from rmtrain.data.load import SplitData
    from rmtrain.recipe.schema import DataSection


def evaluate(
    ckpt: options.Ckpt = None,
    prompt: options.Prompt = None,
    label: options.Label = None,
    reference: options.Reference = None,
    reference_free: options.ReferenceFree = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split of the checkpoint's recipe, or of --data; may be repeated.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Other data: hub dataset id, local file, or demo.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 1 if a split's accuracy is below this.")
    ] = None,
    columns: options.Columns = None,
    row_schema: options.RowSchema = None,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = None,
    tokens_per_batch: options.Tokens = None,
    num_processes: options.Processes = None,
    no_verify: options.NoVerify = False,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Rank the preferences of a split with a checkpoint: accuracy with its interval, beside what length alone gives.

    [dim]rmtrain eval --split test[/]
    [dim]rmtrain eval --ckpt runs/mistral_lora-20260101-120000-ab12 --data pairs.jsonl --min-accuracy 0.7[/]
    """
    with TerminalDisplay() as display:
        asked = ScoringOptions(prompt, label, reference, reference_free, max_length, dtype)
        ref = choose(ckpt, runs, display, asked, not no_verify)
        mapping = options.given_mapping(columns, row_schema)
        processes.spread(num_processes)
        scorer = load(ref, display)
        splits = _read(ref, split or [], data, mapping, display)
        results = _score(scorer, ref, splits, tokens_per_batch or scorer.info.tokens_per_batch, display)
    if not processes.is_main_process():
        return
    if json:
        print(jsonlib.dumps(results[0] if len(results) == 1 else results, indent=2))
    else:
        from rmtrain.reporting.table import to_terminal
        from rmtrain.reporting.tables import split_tables

        console = Console(highlight=False)
        console.print(to_terminal(*split_tables(results)))
        for result in results:
            console.print(f"rows: {result['rows']}", soft_wrap=True)
    missed = [result for result in results if (result["accuracy"] or 0.0) < (min_accuracy or 0.0)]
    for result in missed:
        display.note(f"{result['split']}: accuracy {result['accuracy']} is below --min-accuracy {min_accuracy}")
    if missed:
        raise typer.Exit(1)


def _read(
    ref: CheckpointRef,
    names: list[str],
    source: str | None,
    mapping: dict[str, Any] | None,
    display: TerminalDisplay,
) -> dict[str, "SplitData"]:
    """The splits asked for: of --data, or of the checkpoint's own recipe."""
    from rmtrain.data.load import load_data, read_source

    if source is not None:
        section, trained = of_other_source(data_section(ref, display.note), source, mapping)
        splits: list[str | None] = [*names] or [None]
        read = partial(read_source, source, data=section, evaluation=True, trained=trained, notify=display.note)
        return {data_name(source, name): read(name) for name in splits}
    recorded = recorded_recipe(ref, display.note)
    if recorded is None:
        raise InputError(f"{ref.where}: no recipe lies beside the weights", "name the data with --data SOURCE")
    found = load_data(recorded.data.model_copy(update=mapping), recorded.seed, names or recorded.splits).splits
    return {split_name(name): split for name, split in found.items()}


def split_name(split: str) -> str:
    """What the results of a recipe's split are called: its name, or one made of it, which is never a path."""
    return split if re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,99}", split, re.ASCII) else _named_apart(split, split)


def data_name(source: str, split: str | None) -> str:
    """What the results of a SOURCE are called: its name, and a digest that no split has and no other data."""
    path = os.path.realpath(os.path.expanduser(source))
    where = path if os.path.exists(path) else source
    return _named_apart(Path(source.partition("@")[0]).name.split(".")[0], f"{where} {split}")


def _named_apart(name: str, whole: str) -> str:
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]', '-', name)[:80] or 'data'}@{digest[:8]}"


def of_other_source(
    section: "DataSection | None",
    source: str,
    given: dict[str, Any] | None,
    trained: "Sequence[DataSection | None]" = (),
) -> "tuple[DataSection, list[dict[str, Any]]]":
    """How rows of another source are read, and before that the mappings to be tried on them: none if one is given.

    Args:
        section: that says the rest.
        source: SOURCE.
        given: the mapping of --columns and --row-schema.
        trained: sections whose mappings are to be tried; left out, `section`.
    """
    from rmtrain.data.load import mapping_of
    from rmtrain.recipe.schema import MAPPING, DataSection

    plain = DataSection(source=source)
    mapping = {name: getattr(plain, name) for name in MAPPING} | (given or {})
    found = (section or plain).model_copy(update={"source": source, **mapping})
    return found, [] if given else [mapping_of(each) for each in trained or [section] if each]


def _score(
    scorer: Scorer,
    ref: CheckpointRef,
    splits: Mapping[str, "SplitData"],
    tokens_per_batch: int,
    display: TerminalDisplay,
) -> list[dict[str, Any]]:
    """Evaluate splits and write their files under `eval/`."""
    from rmtrain.evaluation.splits import evaluate_split

    return [
        evaluate_split(scorer, name, split, tokens_per_batch, ref.results / "eval", display)
        for name, split in splits.items()
    ]


def score_splits(
    run: Path, splits: Mapping[str, "SplitData"], tokens_per_batch: int, display: TerminalDisplay
) -> list[dict[str, Any]]:
    """Evaluate a finished run on splits already read, with the model as it lies in `final/`."""
    ref = CheckpointRef(str(run / "final"), run, run.name)
    return _score(load(ref, display), ref, splits, tokens_per_batch, display) if splits else []
