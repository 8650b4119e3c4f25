"""The rows of a benchmark and of its prior sets, from the hub or from files → preference groups."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rmtrain.data.benchmarks.definition import Benchmark, PriorSets
from rmtrain.data.digests import unique_ids
from rmtrain.data.files import stem_of, suffix_of
from rmtrain.data.sources import MissingSplitError, SourceRows, parse_source, pin_source, read_rows
from rmtrain.data.types import PreferenceGroup, Row
from rmtrain.errors import DataError, InputError
from rmtrain.json_values import JsonObject

_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")

Notify = Callable[[str], None]
Origin = JsonObject  # of rows, as results record it: `SourceRows.origin`


class BenchmarkRows(NamedTuple):
    """The rows of a benchmark and of its prior sets, with their origins as results record them."""

    groups: list[PreferenceGroup]
    origin: Origin
    prior: list[PreferenceGroup]  # empty unless asked for
    prior_origins: list[Origin]


def read_benchmark(
    benchmark: Benchmark, data: str | None, split: str | None, prior_data: Sequence[str], notify: Notify
) -> BenchmarkRows:
    """Read a benchmark as `core_groups` does, and prior sets as `prior_groups` does if there is any `prior_data`."""
    prior = prior_groups(benchmark, prior_data, notify) if prior_data else ([], [])
    return BenchmarkRows(*core_groups(benchmark, data, split, notify), *prior)


def benchmark_groups(
    benchmark: Benchmark,
    rows: Sequence[Row],
    subset: str | None = None,
    where: Callable[[int], str] = lambda index: f"row {index + 1}",
) -> list[PreferenceGroup]:
    """All rows of a benchmark as preference groups, in order. Published ids may repeat.

    A given `subset` replaces the rows' own, for splits of the prior sets. `where` is the place of a row, for messages.

    Raises:
        DataError: a row lacks a field or has one of the wrong type.
    """
    groups: list[PreferenceGroup] = []
    for index, row in enumerate(rows):
        try:
            groups.append(benchmark.read(row if subset is None else {**row, "subset": subset}))
        except ValueError as error:
            raise DataError(
                f"{where(index)}: {error}", f"{benchmark.name} rows have the columns of {benchmark.hub_id}"
            ) from error
    return groups


def core_groups(
    benchmark: Benchmark, data: str | None, split: str | None, notify: Notify
) -> tuple[list[PreferenceGroup], Origin]:
    """The benchmark's rows from the named split, else the scored split, else the source's only split.

    `data` is a SOURCE; None is the benchmark's dataset on the hub.

    Raises:
        DataError: the rows can't be read, or are not the benchmark's.
    """
    source = pin_source(parse_source(data or benchmark.hub_id))
    try:
        rows = read_rows(source, split or benchmark.split, any_split=True)
    except MissingSplitError:
        if split is not None:
            raise
        rows = read_rows(source, None)
    return with_unique_ids(benchmark_groups(benchmark, rows.rows, where=rows.where), notify), rows.origin


def with_unique_ids(groups: Sequence[PreferenceGroup], notify: Notify) -> list[PreferenceGroup]:
    """The groups with unique ids: the second group with an id gets `#2`, the third `#3`, and so on."""
    ids = unique_ids([group.id for group in groups])
    renamed = [name for group, name in zip(groups, ids, strict=True) if group.id != name]
    if renamed:
        notify(f"{len(renamed)} rows have the id of an earlier row; a number is added to it, as in {renamed[0]}")
    return [group._replace(id=name) for group, name in zip(groups, ids, strict=True)]


class _Part(NamedTuple):
    """Rows of prior sets."""

    name: str | None  # of the set; None: each row's `subset` names it
    rows: SourceRows


def prior_groups(
    benchmark: Benchmark, sources: Sequence[str], notify: Notify
) -> tuple[list[PreferenceGroup], list[Origin]]:
    """The rows of prior sets, whose `source` is the set, and the origin of each part.

    A source is one of:
    - a dataset on the hub with a split for each set;
    - a folder of files named after the sets, whole (`shp.jsonl`) or in shards (`shp-00000-of-00001.parquet`);
    - `NAME=FILE`, the file of one set;
    - a file whose rows name the set in `subset`. The other three forms ignore the rows' own subset.

    Raises:
        InputError: the benchmark has no prior sets.
        DataError: rows can't be read, or belong to no prior set.
    """
    if benchmark.prior is None:
        raise InputError(f"{benchmark.name} has no prior sets", "leave out --prior-data")
    known, left_out = _splits(benchmark.prior), Counter[str]()
    parts = [part for text in sources for part in _parts(text, benchmark.prior)]
    groups: list[PreferenceGroup] = []
    for name, rows in parts:
        for index, group in enumerate(benchmark_groups(benchmark, rows.rows, name, rows.where)):
            if group.source not in known:
                raise DataError(
                    f"{rows.where(index)}: its subset {group.source!r} is not a prior set",
                    "name the file's set with --prior-data NAME=FILE, where NAME is one of "
                    f"{', '.join(benchmark.prior.counts)}",
                )
            if group.source in benchmark.prior.left_out:
                left_out[group.source] += 1
            else:
                groups.append(group)
    for name, n in left_out.items():
        notify(f"{name}: {n} rows are left out, as on the leaderboard")
    if not groups:
        raise DataError(
            f"{', '.join(sources)}: none of its rows belongs to a prior set that is scored", "leave out --prior-data"
        )
    return with_unique_ids(groups, notify), [rows.origin for _, rows in parts]


def _splits(prior: PriorSets) -> tuple[str, ...]:
    return (*prior.counts, *prior.left_out)


def _parts(text: str, prior: PriorSets) -> list[_Part]:
    name, mark, file = text.partition("=")
    path = Path(text)
    if mark and not path.exists():
        if name not in _splits(prior):
            near = difflib.get_close_matches(name, _splits(prior), 1)
            hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(_splits(prior))}"
            raise DataError(f"--prior-data {text}: {name!r} is not a prior set", hint)
        return [_Part(name, read_rows(parse_source(file), None))]
    if path.is_dir():
        return _folder_parts(path, prior)
    source = pin_source(parse_source(text))
    if source.kind == "hub":
        return [_Part(name, read_rows(source, name)) for name in prior.counts]
    return [_Part(_set_of(path, prior), read_rows(source, None))]


def _folder_parts(folder: Path, prior: PriorSets) -> list[_Part]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and suffix_of(path.name)]
    if not files and (folder / "data").is_dir():  # the layout of a dataset repository on the hub
        return _folder_parts(folder / "data", prior)
    sets = {path: _set_of(path, prior) for path in files}
    if foreign := [path.name for path, name in sets.items() if name is None]:
        raise DataError(
            f"{folder}: {', '.join(foreign[:5])} is not named after a prior set",
            f"name files {', '.join(_splits(prior))}, with .jsonl or another data suffix; or give them as NAME=FILE",
        )
    if not files:
        raise DataError(f"{folder}: holds no data files", "name a folder with files such as shp.jsonl")
    return [_Part(name, read_rows(parse_source(str(path)), None)) for path, name in sets.items()]


def _set_of(path: Path, prior: PriorSets) -> str | None:
    """The prior set that a file is named after."""
    stem = _SHARD.sub("", stem_of(path.name))
    return stem if stem in _splits(prior) else None
