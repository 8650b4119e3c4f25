"""Tokenised splits: a memory-mapped table on disk, made once for all processes."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import OverLength, TokenizedGroup, tokenize_groups
from rmtrain.data.types import Preference, PreferenceGroup

_VERSION = "2"  # raise when tokenisation or rendering changes what tokens come out, or when rows change


class TokenizedSplit(NamedTuple):
    """A split as a memory-mapped table, one row a group."""

    fingerprint: str  # of groups, tokenizer, rendering and length rule
    table: Any  # datasets.Dataset; a row is what group_to_row makes
    over_length_dropped: int
    truncated: int

    def __len__(self) -> int:
        return len(self.table)

    def group(self, index: int) -> TokenizedGroup:
        """The group at a row."""
        return row_to_group(self.table[index])

    def groups(self) -> list[TokenizedGroup]:
        """All groups, in memory."""
        return [row_to_group(row) for row in self.table]

    def lengths(self) -> list[tuple[int, tuple[int, ...]]]:
        """For each row, tokens of the shared prefix and of each suffix: what batch planning needs."""
        prefixes = self.table["prefix_length"]
        return list(zip(prefixes, (tuple(lengths) for lengths in self.table["suffix_lengths"]), strict=True))


def row_to_group(row: dict[str, Any]) -> TokenizedGroup:
    """A row of a TokenizedSplit's table as a group."""
    tokens = np.asarray(row["tokens"], dtype=np.int32)
    borders = np.cumsum([row["prefix_length"], *row["suffix_lengths"]])
    parts = np.split(tokens, borders[:-1])
    gaps = [None if gap is None else float(gap) for gap in row["gaps"]]
    preferences = tuple(Preference(b, w, gap) for (b, w), gap in zip(row["preferences"], gaps, strict=True))
    return TokenizedGroup(
        row["id"],
        row["source"],
        parts[0],
        tuple(parts[1:]),
        preferences,
        row["truncated"],
        suffix_of=tuple(row["suffix_of"]),
    )


def group_to_row(group: TokenizedGroup) -> dict[str, Any]:
    """The inverse of row_to_group."""
    return {
        "id": group.id,
        "source": group.source,
        "tokens": np.concatenate([group.prefix, *group.suffixes]),
        "prefix_length": len(group.prefix),
        "suffix_lengths": [len(suffix) for suffix in group.suffixes],
        "suffix_of": list(group.suffix_of),
        "preferences": [[p.better, p.worse] for p in group.preferences],
        "gaps": [p.gap for p in group.preferences],
        "truncated": group.truncated,
    }


def tokenize_split(
    groups: Sequence[PreferenceGroup],
    renderer: Renderer,
    max_length: int,
    over_length: OverLength,
    cache: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> TokenizedSplit:
    """Tokenise a split, or take it from the cache.

    The cache key holds the groups, the tokenizer, the rendering contract and the length rule. The first of several
    processes does the work; the others wait for it on a file lock, which no collective's time-out ends.

    Args:
        groups: the split's groups.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        over_length: what happens to longer ones.
        cache: folder that holds cached splits.
        progress: called with the number of groups done.

    Raises:
        DataError: as tokenize_groups.
    """
    from filelock import FileLock

    rule = [_VERSION, renderer.contract(), max_length, over_length]
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    digest.update(renderer.tokenizer.backend_tokenizer.to_str().encode())
    for group in groups:
        digest.update(repr(group).encode("utf-8", "surrogatepass"))
    fingerprint = digest.hexdigest()
    folder = cache / fingerprint[:32]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        table = _read_table(folder)
        if table is None:
            tokenized = tokenize_groups(groups, renderer, max_length, over_length)
            table = _write_table(folder, tokenized, progress)
    return TokenizedSplit(fingerprint, table, len(groups) - len(table), sum(table["truncated"]))


def _read_table(folder: Path) -> Any:
    """The table in a folder; None where there is none, or one that a crash of the machine left unreadable."""
    from datasets import load_from_disk

    try:
        return load_from_disk(folder)
    except (OSError, ValueError):  # pyarrow's errors are among these
        return None


def _write_table(folder: Path, tokenized: Iterator[TokenizedGroup | None], progress: Callable[[int], None]) -> Any:
    from datasets import Dataset, Features, List, Value, load_from_disk

    features = Features(
        {
            "id": Value("string"),
            "source": Value("string"),
            "tokens": List(Value("int32")),
            "prefix_length": Value("int32"),
            "suffix_lengths": List(Value("int32")),
            "suffix_of": List(Value("int32")),
            "preferences": List(List(Value("int32"))),
            "gaps": List(Value("float64")),
            "truncated": Value("bool"),
        }
    )
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for done, group in enumerate(tokenized, start=1):
        for name, value in (group_to_row(group) if group is not None else {}).items():
            columns[name].append(value)
        progress(done)
    # the caller holds the lock, so what lies in either place was left by a dead writer
    staging = folder.with_name(f".{folder.name}")
    for left in (staging, folder):
        shutil.rmtree(left, ignore_errors=True)
    # left to itself, datasets writes no shard for no rows, and can't read that
    Dataset.from_dict(columns, features=features).save_to_disk(staging, num_shards=1)
    staging.rename(folder)
    return load_from_disk(folder)
