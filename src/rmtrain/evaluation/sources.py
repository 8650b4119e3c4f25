"""The rows to evaluate a checkpoint on: splits of its recipe, or other data read in the way of the recipe."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtrain.data.cache_entry import cache_folder
from rmtrain.data.curated_store import known_splits
from rmtrain.data.reader import mappings_of, read_source
from rmtrain.data.sources import SourceRows
from rmtrain.data.split_data import ReadAs, SplitData
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.weights import SIDECAR, local_folder, read_object
from rmtrain.recipe.data_schema import MAPPING, DataSection
from rmtrain.recipe.recorded import Recorded, read_recorded

Notify = Callable[[str], None]


def sidecar_of(where: str) -> dict[str, Any]:
    """The content of a checkpoint's rmtrain.json; empty if it has none.

    Raises:
        CheckpointError: the checkpoint can't be found, or the file can't be read.
    """
    path = local_folder(where) / SIDECAR
    return read_object(path) if path.exists() else {}


def recorded_recipe(where: str, notify: Notify) -> Recorded | None:
    """The recipe in a checkpoint's rmtrain.json as far as evaluation needs it; None if it has none.

    Raises:
        CheckpointError: its data section can't be read.
    """
    values = sidecar_of(where).get("recipe")
    if not values:
        return None
    recorded = read_recorded(values, f"{where}/{SIDECAR}")
    if recorded.unknown:
        notify(f"the checkpoint's recipe has keys unknown to this version, ignored: {', '.join(recorded.unknown)}")
    return recorded


def data_section(where: str, notify: Notify) -> DataSection | None:
    """How a checkpoint's recipe reads data; None, with a note, if the recipe can't be read.

    Raises:
        CheckpointError: the checkpoint itself can't be found.
    """
    local_folder(where)
    try:
        recorded = recorded_recipe(where, notify)
    except CheckpointError as error:
        notify(f"the checkpoint's recipe is ignored: {error.message}")
        return None
    return recorded.data if recorded else None


def splits_of_recipe(
    where: str, names: Sequence[str], mapping: Mapping[str, Any] | None, notify: Notify
) -> dict[str, SplitData]:
    """Splits of a checkpoint's recipe, by the names of their results; by default those scored after training.

    Raises:
        InputError: the checkpoint has no recipe, or the mapping is for a mixture.
        DataError: a split can't be read.
    """
    recorded = recorded_recipe(where, notify)
    if recorded is None:
        raise InputError(f"{where} has no recipe beside its weights", "name the data with --data SOURCE")
    if mapping and (mixed := [name for name in names or recorded.splits if recorded.data.entries(name)]):
        raise InputError(
            f"the split {mixed[0]} is a mixture, whose entries define how their rows are read",
            "leave out --columns and --row-schema, or name other rows with --data",
        )
    section = recorded.data.model_copy(update=mapping)
    splits = known_splits(section, recorded.seed, names or recorded.splits, cache_folder() / "curated")
    return {split_name(name): split for name, split in splits.items()}


def splits_of_source(
    source: str, names: Sequence[str], where: str, mapping: Mapping[str, Any] | None, notify: Notify
) -> dict[str, SplitData]:
    """Splits of a SOURCE, by the names of their results; by default its only split.

    Rows are read by the recipe of the checkpoint `where`, or by `mapping`, from --columns and --row-schema.
    """
    section, trained = section_for(source, data_section(where, notify), mapping)
    splits: list[str | None] = [*names] or [None]
    return {data_name(source, name): read_to_rank(source, name, section, trained, notify) for name in splits}


def read_to_rank(
    source: str | SourceRows, split: str | None, section: DataSection, trained: Sequence[ReadAs], notify: Notify
) -> SplitData:
    """One split of a SOURCE to rank, with a note on its dropped rows; the arguments are those of `read_source`."""
    data = read_source(source, split, section, evaluation=True, trained=trained, notify=notify)
    rows, first = data.report.rows, data.report.examples
    if rows.dropped:
        causes = ", ".join(f"{n} {cause} (first: {first[cause]})" for cause, n in rows.dropped.items())
        notify(f"{data.source}: {rows.total - rows.kept} of {rows.total} rows dropped: {causes}")
    return data


def one_split(
    where: str, data: str | None, split: str | None, mapping: Mapping[str, Any] | None, notify: Notify
) -> tuple[str, SplitData]:
    """A single split and its results' name: from the SOURCE `data`, or from the recipe, by default its validation
    split."""
    if data is None:
        splits = splits_of_recipe(where, [split or "validation"], mapping, notify)
    else:
        splits = splits_of_source(data, [split] if split else [], where, mapping, notify)
    return next(iter(splits.items()))


def section_for(
    source: str,
    section: DataSection | None,
    mapping: Mapping[str, Any] | None,
    trained: Sequence[DataSection | None] | None = None,
) -> tuple[DataSection, list[ReadAs]]:
    """The data section for reading another source, and the mappings to try first, unless one is given.

    Args:
        section: the recipe's, for all but source and mapping.
        trained: sections whose mappings are tried; None is `section`.
    """
    plain = DataSection(source=source)
    update = {"source": source, **{name: getattr(plain, name) for name in MAPPING}, **(mapping or {})}
    tried = [] if mapping else [section] if trained is None else trained
    return (section or plain).model_copy(update=update), [
        mapping for each in tried if each for mapping in mappings_of(each)
    ]


def split_name(split: str) -> str:
    """The name of a recipe split's results: the split's name, or its digest if the name could be a path."""
    return split if re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,99}", split, re.ASCII) else _with_digest(split, split)


def data_name(source: str, split: str | None) -> str:
    """The unique name of a SOURCE's results."""
    path = os.path.realpath(os.path.expanduser(source))
    where = path if os.path.exists(path) else source
    return _with_digest(Path(source.partition("@")[0]).name.split(".")[0], f"{where} {split}")


def _with_digest(name: str, whole: str) -> str:
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{re.sub('[^A-Za-z0-9_-]', '-', name)[:80] or 'data'}@{digest[:8]}"
