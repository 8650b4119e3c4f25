"""SOURCE → rows: a hub dataset, local files, or the built-in demo data."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rmtrain.data import demo
from rmtrain.data.files import SUFFIXES, stem_of, suffix_of
from rmtrain.data.folder_files import is_glob
from rmtrain.data.hub import load_hub, resolve_commit, rows_of
from rmtrain.data.local_files import Shard, SplitRows, find_files, fingerprint_files, open_local
from rmtrain.data.rows import Sample
from rmtrain.data.types import Row
from rmtrain.errors import DataError, InputError
from rmtrain.files import sha256_file
from rmtrain.json_values import JsonObject
from rmtrain.recipe.data_schema import DataSection

_HUB = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(?P<marks>([:@][^:@\s]+){0,2})")
_FORMS = (
    f"a hub id such as org/name:config@revision, a file ending in {', '.join(SUFFIXES)}, a folder or a pattern "
    "(shards/*.parquet) of such files, or demo"
)


class Source(NamedTuple):
    """Where rows come from."""

    kind: Literal["hub", "file", "demo"]
    name: str  # hub id, path, or several paths separated by commas
    config: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()  # a file, folder or pattern; or several files

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{self.name}{config}@{self.revision}" if self.revision else f"{self.name}{config}"


class RowPlaces(NamedTuple):
    """The places of a split's rows, for messages."""

    description: str  # of their source
    shards: Sequence[Shard] = ()

    def of(self, index: int) -> str:
        """The file and line of a row, or its number in the source; `index` counts from 0."""
        name = self.description
        for shard in self.shards:
            if index < shard.rows:
                if shard.lines:
                    return f"{shard.name}:{shard.lines[index]}"
                name = shard.name if len(self.shards) > 1 else name
                index += shard.first
                break
            index -= shard.rows
        return f"{name} row {index + 1}"


class SourceRows(NamedTuple):
    """The unparsed rows of one split."""

    rows: Sequence[Row]
    fingerprint: str  # SHA-256 of the content: a local file's bytes, else the split's rows as JSON
    shards: Sequence[Shard]  # files of local rows, in order
    paths: Sequence[Path]  # of local rows: the files
    split: str  # the source's name of the split, or the file's name
    revision: str | None  # commit of a hub dataset
    description: str
    location: str | Sequence[str]  # SOURCE for reading them again: a hub dataset at its commit, or files
    named_split: str | None  # the split to read again; None if the source names no splits

    @property
    def origin(self) -> JsonObject:
        """The record of the rows in results: a description, and everything needed to read them again."""
        return {
            "source": self.description,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "location": self.location,
            "split": self.named_split,
        }

    @property
    def places(self) -> RowPlaces:
        """The places of the rows."""
        return RowPlaces(self.description, self.shards)

    @property
    def sample(self) -> "SourceRows":
        """A few of the rows, which suffice to find the schema of all."""
        sizes = [shard.rows for shard in self.shards] or [len(self.rows)]
        sample, rows = Sample(len(sizes)), iter(self.rows)
        for number, size in enumerate(sizes):
            for row in islice(rows, size):
                sample.add(number, row)
        shards = [shard._replace(rows=len(own)) for shard, own in zip(self.shards, sample.rows, strict=False)]
        return self._replace(rows=[*chain.from_iterable(sample.rows)], shards=shards)

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        return self.places.of(index)


class MissingSplitError(DataError):
    """The source has no split of the requested name."""


def parse_source(text: str | Sequence[str]) -> Source:
    """Parse a SOURCE; several texts are the files of one source.

    A folder takes precedence over a hub dataset of the same name, as in other libraries; `org/name@main` always means
    the hub.

    Raises:
        DataError: the text has none of the forms.
    """
    if not isinstance(text, str):
        names = tuple(each.strip() for each in text)
        if other := next((each for each in names if not suffix_of(each)), None):
            raise DataError(f"{other!r} in a list of files is not a file", f"files end in {', '.join(SUFFIXES)}")
        return Source("file", ", ".join(names), files=names)
    text = text.strip()
    if text == "demo":
        return Source("demo", "demo")
    if suffix_of(text) or (text and (is_glob(text) or os.path.isdir(os.path.expanduser(text)))):
        return Source("file", text, files=(text,))
    if os.path.isfile(os.path.expanduser(text)):
        raise DataError(
            f"{text}: unknown kind of file", f"convert or unpack it: data files end in {', '.join(SUFFIXES)}"
        )
    match = _HUB.fullmatch(text)
    if match is None:
        here = f" (no such file or folder in {os.getcwd()})" if "/" in text else ""
        raise DataError(f"{text!r} is not a source{here}", f"a source is {_FORMS}")
    marks = re.findall(r"([:@])([^:@]+)", match["marks"])
    by_sign = dict(marks)
    if len(by_sign) != len(marks):
        raise DataError(f"{text!r} names its configuration or revision twice", f"a source is {_FORMS}")
    return Source("hub", match["name"], by_sign.get(":"), by_sign.get("@"))


def pin_source(source: Source) -> Source:
    """The source with its hub revision replaced by the present commit, so that all splits are from one commit."""
    if source.kind != "hub":
        return source
    return source._replace(revision=resolve_commit(source.name, source.revision))


@dataclass(frozen=True)
class OpenSource:
    """A source in one state; its splits are read on demand."""

    source: Source
    splits: Mapping[str, Callable[[], SplitRows]]
    named: bool = True  # whether the source names its splits; otherwise it has only `train`
    revision: str | None = None  # commit of a hub dataset

    def read(self, split: str | None = None, *, any_split: bool = False) -> SourceRows:
        """Read a split; None stands for the only one. `any_split` takes files without split names as the split.

        Raises:
            MissingSplitError: names the splits of the source.
            DataError: the rows can't be read; names file and line if the rows have lines.
        """
        chosen = self._choose(None if any_split and not self.named else split)
        location, files = str(self.source._replace(revision=self.revision)), self.source.files
        name = chosen if self.named or split else stem_of(os.path.basename(os.path.abspath(files[0])))
        return SourceRows(
            *self.splits[chosen](),
            split=name,
            revision=self.revision,
            description=f"{location} ({chosen})" if self.named else location,
            location=list(files) if len(files) > 1 else location,
            named_split=chosen if self.named else None,
        )

    def _choose(self, split: str | None) -> str:
        names = ", ".join(self.splits)
        if split is None and len(self.splits) > 1:
            raise MissingSplitError(
                f"{self.source.name}: it has several splits, so one must be named", f"name one of: {names}"
            )
        if split is not None and split not in self.splits:
            raise MissingSplitError(f"{self.source.name}: no split {split!r}", f"it has: {names}")
        return split or next(iter(self.splits))


def open_source(source: Source, demo_groups: Mapping[str, int] | None = None) -> OpenSource:
    """Open a source in its newest state, or at its revision.

    `demo_groups` are the rows of the demo source to use, by split; missing splits take the recipe's defaults.

    Raises:
        DataError: the source can't be read.
    """
    if source.kind == "hub":
        commit, tables = load_hub(source.name, source.config, pin_source(source).revision)
        splits = {name: partial(_hub_rows, table, source, name, commit) for name, table in tables.items()}
        return OpenSource(source, splits, revision=commit)
    if source.kind == "file":
        return OpenSource(source, *open_local(source.files))
    counts: dict[Any, int] = {**DataSection(source="demo").demo_groups, **(demo_groups or {})}
    return OpenSource(source, {name: partial(_demo_rows, name, counts[name]) for name in demo.ROWS})


def read_rows(source: Source | str | Sequence[str], split: str | None = None, *, any_split: bool = False) -> SourceRows:
    """Open a source and read one split, as `OpenSource.read` does."""
    return open_source(source if isinstance(source, Source) else parse_source(source)).read(split, any_split=any_split)


def _hub_rows(table: Any, source: Source, split: str, commit: str) -> SplitRows:
    rows, digest = rows_of(table, source.name, commit), hashlib.sha256()
    if not rows:
        raise DataError(f"{source}: split {split} holds no rows")
    for row in rows:  # not the commit alone, since a damaged cache can load silently
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return SplitRows(rows, digest.hexdigest())


def _demo_rows(split: str, count: int) -> SplitRows:
    rows = demo.demo_rows(split, count)
    return SplitRows(rows, hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest())


def state_of(source: Source) -> str:
    """The state of a source: the commit of a hub dataset, or the digest of its files.

    Raises:
        InputError: it can't be read.
    """
    if source.kind == "hub":
        return pin_source(source).revision or load_hub(source.name, source.config, None)[0]
    if source.kind == "demo":
        return ""
    files = [file for of_split in find_files(source.files).values() for file in of_split]
    if not files:  # a folder that `save_to_disk` wrote
        files = sorted(path for path in Path(os.path.expanduser(source.files[0])).rglob("*") if path.is_file())
    return " ".join(f"{file} {sha256_file(file)}" for file in files)


def has_changed(rows: SourceRows) -> bool:
    """Whether the files of the rows have changed or are missing; False for other sources."""
    try:
        return bool(rows.paths) and fingerprint_files(rows.paths) != rows.fingerprint
    except (OSError, InputError):
        return True
