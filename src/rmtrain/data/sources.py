"""SOURCE → rows: a hub dataset, local files, or the built-in demo data."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rmtrain.data import demo
from rmtrain.data.files import SUFFIXES, suffix_of
from rmtrain.data.hub import load_hub, resolve_commit, rows_of
from rmtrain.data.shards import Shard, fingerprint, is_glob, read_local
from rmtrain.errors import DataError, InputError
from rmtrain.recipe.schema import DataSection

_HUB = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(?P<marks>([:@][^:@\s]+){0,2})")
_FORMS = (
    f"a hub id such as org/name:config@revision, a file ending in {', '.join(SUFFIXES)}, a folder or a pattern "
    "(shards/*.parquet) of such files, or demo"
)


class Source(NamedTuple):
    """Where rows come from."""

    kind: Literal["hub", "file", "demo"]
    name: str  # hub id, path, or several paths with commas
    config: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()  # a file, folder or pattern; or several files

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{self.name}{config}@{self.revision}" if self.revision else f"{self.name}{config}"


class SourceRows(NamedTuple):
    """The rows of one split, as the source holds them."""

    rows: list[dict[str, Any]]
    split: str  # the source's own name of it; the file's name where it names none and none was asked for
    fingerprint: str  # SHA-256 of the content: a local file's bytes, else the split's rows as JSON
    revision: str | None  # commit of a hub dataset
    description: str
    splits: tuple[str, ...]  # all that the source has
    shards: Sequence[Shard] = ()  # of local rows, in their order
    paths: Sequence[Path] = ()  # the files

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        name = self.description
        for shard in self.shards:
            if index < shard.rows:
                if shard.lines:
                    return f"{shard.name}:{shard.lines[index]}"
                name = shard.name if len(self.shards) > 1 else name
                break
            index -= shard.rows
        return f"{name} row {index + 1}"


class MissingSplitError(DataError):
    """A source that has no split of the name asked for."""


def parse_source(text: str | Sequence[str]) -> Source:
    """Tell what kind of source `text` names, or several texts, which are files of one source.

    A folder comes before a hub dataset of the same name, as it does for other libraries; `org/name@main` is of the hub.

    Raises:
        DataError: it is none of the forms.
    """
    if not isinstance(text, str):
        names = tuple(each.strip() for each in text)
        if other := next((each for each in names if not suffix_of(each)), None):
            raise DataError(f"{other!r} in a list of files is no file", f"files end in {', '.join(SUFFIXES)}")
        return Source("file", ", ".join(names), files=names)
    text = text.strip()
    if text == "demo":
        return Source("demo", "demo")
    if suffix_of(text) or (text and (is_glob(text) or os.path.isdir(os.path.expanduser(text)))):
        return Source("file", text, files=(text,))
    match = _HUB.fullmatch(text)
    if match is None:
        here = f" (no such file or folder in {os.getcwd()})" if "/" in text else ""
        raise DataError(f"{text!r} is not a source{here}", f"a source is {_FORMS}")
    marks = re.findall(r"([:@])([^:@]+)", match["marks"])
    given = dict(marks)
    if len(given) != len(marks):
        raise DataError(f"{text!r} names its configuration or revision twice", f"a source is {_FORMS}")
    return Source("hub", match["name"], given.get(":"), given.get("@"))


def pin_source(source: Source) -> Source:
    """The source with a hub revision replaced by the commit it stands for now, so that every split is of one commit."""
    if source.kind != "hub":
        return source
    return source._replace(revision=resolve_commit(source.name, source.revision))


def read_rows(
    source: Source | str | Sequence[str],
    split: str | None = None,
    *,
    any_split: bool = False,
    demo_groups: Mapping[str, int] | None = None,
) -> SourceRows:
    """Read one split of a source; None stands for the only split there is.

    Files that name no splits have the one split `train`; with `any_split` it stands for whatever split is asked for.
    `demo_groups` says how many rows of the demo source to use for each split; left out, the recipe's defaults.

    Raises:
        MissingSplitError: naming the splits there are.
        DataError: the source can't be read; with file and line where there are lines.
    """
    source = source if isinstance(source, Source) else parse_source(source)
    if source.kind == "hub":
        hub = load_hub(source.name, source.config, pin_source(source).revision)
        name = _choose_split(source.name, split, tuple(hub.splits))
        rows, fingerprint = rows_of(hub, name)
        if not rows:
            raise DataError(f"{source}: split {name} holds no rows")
        description = f"{source._replace(revision=hub.commit)} ({name})"
        return SourceRows(rows, name, fingerprint, hub.commit, description, tuple(hub.splits))
    if source.kind == "file":
        local = read_local(source.files)
        splits = tuple(local.splits)
        chosen = _choose_split(source.name, None if any_split and not local.named else split, splits)
        description, name = source.name, chosen
        if local.named:
            description = f"{source.name} ({name})"
        elif split is None:
            whole = os.path.basename(os.path.abspath(source.files[0]))
            name = whole[: len(whole) - len(suffix_of(whole) or "")]
        found = local.splits[chosen]()
        return SourceRows(found.rows, name, found.fingerprint, None, description, splits, found.shards, found.files)
    return _demo_rows(split, demo_groups)


def has_changed(rows: SourceRows) -> bool:
    """Whether the files that rows were read from hold something else by now, or are gone; never of other sources."""
    try:
        return bool(rows.paths) and fingerprint(rows.paths) != rows.fingerprint
    except (OSError, InputError):
        return True


def _demo_rows(split: str | None, demo_groups: Mapping[str, int] | None) -> SourceRows:
    name = _choose_split("demo", split, tuple(demo.ROWS))
    counts: dict[Any, int] = {**DataSection(source="demo").demo_groups, **(demo_groups or {})}
    rows = demo.demo_rows(name, counts[name])
    fingerprint = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return SourceRows(rows, name, fingerprint, None, f"demo ({name})", tuple(demo.ROWS))


def _choose_split(source: str, split: str | None, splits: tuple[str, ...]) -> str:
    have = ", ".join(splits)
    if split is None and len(splits) > 1:
        raise MissingSplitError(f"{source}: several splits, and none named", f"name one of: {have}")
    if split is not None and split not in splits:
        raise MissingSplitError(f"{source}: no split {split!r}", f"it has: {have}")
    return split or splits[0]
