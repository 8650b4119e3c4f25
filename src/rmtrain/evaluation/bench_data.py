"""The rows of a benchmark and of its prior sets, from the hub or from files."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmtrain.data.curate import unique_ids
from rmtrain.data.files import suffix_of
from rmtrain.data.sources import MissingSplitError, SourceRows, parse_source, pin_source, read_rows
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import DataError, InputError
from rmtrain.evaluation.benchmarks import Benchmark, benchmark_groups
from rmtrain.metrics.rewardbench import PRIOR_COUNTS, PRIOR_LEFT_OUT

_SPLITS = (*PRIOR_COUNTS, *PRIOR_LEFT_OUT)
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")

Notify = Callable[[str], None]


def core_groups(
    definition: Benchmark, data: str | None, split: str | None, notify: Notify
) -> tuple[list[PreferenceGroup], dict[str, Any]]:
    """The rows of the split named, else of the one that is scored, else of the only one there is; and their source.

    Args:
        definition: of the benchmark.
        data: SOURCE; None is its dataset on the hub.
        split: its name.
        notify: takes what a user should know of them.

    Raises:
        DataError: they can't be read, or are not the benchmark's.
    """
    parsed = pin_source(parse_source(data or definition.hub_id))
    try:
        found = read_rows(parsed, split or definition.split, any_split=True)
    except MissingSplitError:
        if split is not None:
            raise
        found = read_rows(parsed, None)
    groups = benchmark_groups(definition, found.rows, where=found.where)
    return told_apart(groups, notify), _source(found)


def _source(found: SourceRows) -> dict[str, Any]:
    return {"source": found.description, "revision": found.revision, "fingerprint": found.fingerprint}


def told_apart(groups: Sequence[PreferenceGroup], notify: Notify) -> list[PreferenceGroup]:
    """The groups with ids that are in one of them only: of those that share one, the later get `#2`, `#3`, …"""
    ids = unique_ids([group.id for group in groups])
    apart = [group._replace(id=name) for group, name in zip(groups, ids, strict=True)]
    if changed := [new.id for old, new in zip(groups, apart, strict=True) if old.id != new.id]:
        notify(f"rows with the id of an earlier one: {len(changed)}, told apart by a number, such as {changed[0]}")
    return apart


class _Part(NamedTuple):
    """Rows of prior sets."""

    name: str | None  # of the set; None: the rows' own subset says it
    found: SourceRows


def prior_groups(
    definition: Benchmark, given: Sequence[str], notify: Notify
) -> tuple[list[PreferenceGroup], list[dict[str, Any]]]:
    """The rows of prior sets, whose `source` is the set, and where each part of them is from.

    Given are a dataset on the hub with a split a set; a folder of files called after the sets, whole (`shp.jsonl`) or
    in shards (`shp-00000-of-00001.parquet`); `NAME=FILE`, the file of one set; or a file whose rows' `subset` is the
    set. The rows' own subset is of no account in the first three. As the leaderboard does, pku_better and pku_safer are
    left out.

    Args:
        definition: of the benchmark.
        given: the sources.
        notify: takes what is left out, and what a user should know of the rows.

    Raises:
        InputError: the benchmark has no prior sets.
        DataError: rows can't be read, or are of no prior set.
    """
    if not definition.prior_counts:
        raise InputError(f"{definition.name} has no prior sets", "leave out --prior-data")
    parts = [part for text in given for part in _parts(text, definition)]
    groups: list[PreferenceGroup] = []
    left_out: Counter[str] = Counter()
    for name, found in parts:
        for index, group in enumerate(benchmark_groups(definition, found.rows, subset=name, where=found.where)):
            if group.source not in _SPLITS:
                raise DataError(
                    f"{found.where(index)}: its subset {group.source!r} is no prior set",
                    f"say of which set the file is, as --prior-data NAME=FILE; they are {', '.join(PRIOR_COUNTS)}",
                )
            if group.source in PRIOR_LEFT_OUT:
                left_out[group.source] += 1
            else:
                groups.append(group)
    for name, n in left_out.items():
        notify(f"{name}: {n} rows are left out, as the leaderboard leaves them out")
    if not groups:
        raise DataError(f"{', '.join(given)}: no rows of prior sets that are scored", "leave out --prior-data")
    return told_apart(groups, notify), [_source(found) for _, found in parts]


def _parts(text: str, definition: Benchmark) -> list[_Part]:
    name, mark, file = text.partition("=")
    if mark and not Path(text).exists():
        if name not in _SPLITS:
            near = difflib.get_close_matches(name, _SPLITS, 1)
            known = f"did you mean {near[0]}?" if near else f"they are {', '.join(_SPLITS)}"
            raise DataError(f"--prior-data {text}: there is no prior set {name!r}", known)
        return [_Part(name, read_rows(parse_source(file), None))]
    if Path(text).is_dir():
        return _folder_parts(Path(text))
    parsed = pin_source(parse_source(text))
    if parsed.kind == "hub":
        return [_Part(name, read_rows(parsed, name)) for name in definition.prior_counts]
    return [_Part(_set_of(Path(text)), read_rows(parsed, None))]


def _folder_parts(folder: Path) -> list[_Part]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and suffix_of(path.name)]
    if not files and (folder / "data").is_dir():  # as a dataset of the hub lies
        return _folder_parts(folder / "data")
    sets = {path: _set_of(path) for path in files}
    if foreign := [path.name for path, name in sets.items() if name is None]:
        raise DataError(
            f"{folder}: {', '.join(foreign[:5])} is named after no prior set",
            f"files are called {', '.join(_SPLITS)}, with .jsonl or another suffix of data; or name them as NAME=FILE",
        )
    if not files:
        raise DataError(f"{folder}: no data files in it", "name a folder with shp.jsonl and the like")
    return [_Part(name, read_rows(parse_source(str(path)), None)) for path, name in sets.items()]


def _set_of(path: Path) -> str | None:
    """The prior set that a file is called after."""
    stem = _SHARD.sub("", path.name.removesuffix(suffix_of(path.name) or ""))
    return stem if stem in _SPLITS else None
