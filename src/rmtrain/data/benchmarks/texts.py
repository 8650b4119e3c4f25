"""The texts of benchmarks and sources in `data.decontaminate`, and the removal of overlapping training rows."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rmtrain.data.benchmarks import BENCHMARKS, benchmark_named
from rmtrain.data.benchmarks.load import core_groups, prior_groups
from rmtrain.data.curation import Curation
from rmtrain.data.decontaminate import BenchmarkTexts, Compared, Finder, Passage, passages_of
from rmtrain.data.schemas.detect import SchemaError, choose_schema
from rmtrain.data.schemas.rows import RowFault
from rmtrain.data.sources import SourceRows, open_source, parse_source, pin_source
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

PRIOR_SETS = "prior-sets"  # of RewardBench 1


def drop_overlaps(curations: Sequence[Curation], data: DataSection, notify: Callable[[str], None]) -> None:
    """Drop training rows that overlap with an entry of `data.decontaminate`, for the first such entry.

    Raises:
        DataError: as `read_benchmark_texts`, or the rows hold token ids.
    """
    if not data.decontaminate:
        return
    finder = Finder.of([read_benchmark_texts(name, notify) for name in data.decontaminate], data.overlap_words)
    for curation in curations:
        curation.checks = finder.check(curation.groups)
        for check in curation.checks:
            overlapping = {overlap.id for overlap in check.overlaps}
            if overlapping:
                curation.drop([group.id in overlapping for group in curation.groups], check.cause)


def read_benchmark_texts(name: str, notify: Callable[[str], None]) -> BenchmarkTexts:
    """The texts of one entry of `data.decontaminate`.

    An entry is a benchmark or `prior-sets`, read as `rmtrain rewardbench` reads them; `NAME=SOURCE`, its rows from
    another place or revision; or any SOURCE. Of a SOURCE with several splits, those for training are left out.

    Raises:
        DataError: the entry is none of these, or can't be read.
    """
    known, mark, source = name.partition("=")
    if known == PRIOR_SETS and (source or not mark):
        rewardbench = benchmark_named("rewardbench-1")
        assert rewardbench.prior is not None
        groups, origins = prior_groups(rewardbench, [source or rewardbench.prior.hub_id], notify)
        return _of_groups(known, groups, origins)
    if known in BENCHMARKS and (source or not mark):
        groups, origin = core_groups(benchmark_named(known), source or None, None, notify)
        return _of_groups(known, groups, [origin])
    try:
        parsed = parse_source(name)
    except DataError as error:
        known_names = ", ".join((*BENCHMARKS, PRIOR_SETS))
        raise DataError(f"data.decontaminate: {error.message}", f"benchmarks are {known_names}; {error.hint}") from None
    opened = open_source(pin_source(parsed))
    name = os.path.basename(os.path.abspath(name)) if parsed.kind == "file" else name  # because reports show it
    splits = [split for split in opened.splits if "train" not in split.lower()] or list(opened.splits)
    if len(splits) < len(opened.splits):
        notify(f"data.decontaminate: only the splits {', '.join(splits)} of {name} are compared")
    read = [opened.read(split) for split in splits]
    passages = [passage for each in read for passage in _passages(each)]
    rows = sum(len(each.rows) for each in read)
    return BenchmarkTexts(_compared(name, [each.origin for each in read], rows), passages)


def _of_groups(name: str, groups: Sequence[PreferenceGroup], origins: Sequence[dict[str, Any]]) -> BenchmarkTexts:
    passages = [each for group in groups for each in passages_of(group.id, group.prompt, group.completions)]
    return BenchmarkTexts(_compared(name, origins, len(groups)), passages)


def _compared(name: str, origins: Sequence[dict[str, Any]], rows: int) -> Compared:
    """The record of rows of one or several origins."""
    prints = [str(origin["fingerprint"]) for origin in origins]
    joined = prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()
    return Compared(name, str(origins[0]["source"]), origins[0]["revision"], joined, rows)


def _passages(source: SourceRows) -> Iterator[Passage]:
    """The texts of a source's rows; in rows that no schema reads, every text is compared as a prompt."""
    data = DataSection(source=source.description)
    try:
        choice = choose_schema(source, data)
    except SchemaError:
        choice = None
    for number, row in enumerate(source.rows, start=1):
        name, parsed = f"row {number}", None
        if choice is not None:
            with contextlib.suppress(RowFault):
                parsed = choice.read(row)
        if parsed is None:
            yield from (Passage(name, "prompt", text) for text in _texts(row))
        else:
            yield from passages_of(parsed.id or name, parsed.prompt, parsed.completions)


def _texts(value: object) -> Iterator[str]:
    """All texts in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)
