"""Tokenised splits: a memory-mapped table on disk, made once for all processes, and checked whenever it is opened."""

import contextlib
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmtrain.data.render import Renderer
from rmtrain.data.template import REFUSED, UNKNOWN, TemplateRefusalError
from rmtrain.data.tokenize import OverLength, TokenizedGroup, tokenize_groups
from rmtrain.data.types import Preference, PreferenceGroup
from rmtrain.errors import RunFailedError
from rmtrain.files import writing

OVER_LENGTH = "over length"
IDENTICAL = ("identical after rendering", "identical after truncation")  # the cause in a whole group, and in a cut one

_VERSION = "3"  # raise when tokenisation or rendering changes what tokens come out, or when rows change
_LAYOUT = "3"  # raise when a table gets other columns or values; no part of the fingerprint, which resumed runs compare
_BOOKS, _CHECKSUMS = "books.json", "checksums"  # files in an entry of the cache, beside those of datasets


class Lost(NamedTuple):
    """What a split lost to one cause when it was tokenised."""

    rows: int
    completions: int
    preferences: int
    first: str  # id of the first group
    why: str = ""  # in detail, of the first group


class Omitted(NamedTuple):
    """What a chat template leaves out of the rows of a split."""

    rows: int
    first: str  # id of the first group
    words: str  # that are lost there


class TokenizedSplit(NamedTuple):
    """A split as a memory-mapped table, one row a group."""

    fingerprint: str  # of groups, tokenizer, rendering and rules
    table: Any  # datasets.Dataset; a row is what group_to_row makes
    dropped: dict[str, Lost]  # by cause
    identical: dict[str, int]  # preferences that are kept between completions of the same tokens, by cause
    truncated: int  # groups
    omitted: dict[str, Omitted]  # by what the chat template leaves out of kept groups: text of a role, tools, calls

    def __len__(self) -> int:
        return len(self.table)

    @property
    def refused(self) -> tuple[str, Lost] | None:
        """What the renderer refused, and why: a split of texts has one cause, and a split of token ids the other."""
        return next(((cause, self.dropped[cause]) for cause in (REFUSED, UNKNOWN) if cause in self.dropped), None)

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
        scores=None if row["scores"] is None else tuple(row["scores"]),
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
        "scores": group.scores,
        "truncated": group.truncated,
    }


def tokenize_split(
    groups: Sequence[PreferenceGroup],
    renderer: Renderer,
    max_length: int,
    over_length: OverLength,
    cache: Path,
    progress: Callable[[int], None] = lambda done: None,
    notify: Callable[[str], None] = lambda line: None,
    drop_identical: bool = False,
) -> TokenizedSplit:
    """Tokenise a split, or take it from the cache.

    The cache key holds the groups, the tokenizer, the rendering contract and the rules. The first of several
    processes does the work; the others wait for it on a file lock, which no collective's time-out ends.

    Args:
        groups: the split's groups.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        over_length: what happens to longer ones.
        cache: folder that holds cached splits.
        progress: called with the number of groups done.
        notify: takes one line for the user.
        drop_identical: drop the preferences between completions of the same tokens, and groups that have no other.

    Raises:
        DataError: as tokenize_groups.
    """
    rule = [_VERSION, renderer.contract(), max_length, over_length, drop_identical]
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    digest.update(renderer.tokenizer.backend_tokenizer.to_str().encode())
    for group in groups:
        digest.update(repr(group).encode("utf-8", "surrogatepass"))
    fingerprint = digest.hexdigest()
    folder = cache / f"{fingerprint[:32]}-{_LAYOUT}"
    with writing(cache, left="RMTRAIN_CACHE names another place"), _locked(cache / f"{folder.name}.lock"):
        found = _open(folder)
        if found is None:
            if folder.exists():
                notify(f"the cached tokens in {folder} are damaged, and are made anew")
            columns: dict[str, list[Any]] = {name: [] for name in _features()}
            books, refused = _Books({}, {}, 0, {}), dict[str, TemplateRefusalError]()
            tokenized = tokenize_groups(groups, renderer, max_length, over_length, refused)
            for done, made in enumerate(tokenized, start=1):
                kept = books.enter(groups[done - 1], made, drop_identical, refused)
                for name, value in (group_to_row(kept) if kept is not None else {}).items():
                    columns[name].append(value)
                progress(done)
            _write(folder, columns, books)
            found = _open(folder)
            if found is None:
                raise RunFailedError(f"{folder}: what was written can't be read back", "the disk may be damaged")
    table, books = found
    return TokenizedSplit(fingerprint, table, books.dropped, books.identical, books.truncated, books.omitted)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


@dataclass
class _Books:
    """What became of the groups and preferences of a split; see TokenizedSplit."""

    dropped: dict[str, Lost]
    identical: dict[str, int]
    truncated: int
    omitted: dict[str, Omitted]

    def enter(
        self,
        group: PreferenceGroup,
        made: TokenizedGroup | None,
        drop_identical: bool,
        refused: dict[str, TemplateRefusalError],
    ) -> TokenizedGroup | None:
        """Book a group; answers with what is kept of it."""
        if made is None:
            error = refused.get(group.id)
            cause, why = (error.cause, error.message) if error else (OVER_LENGTH, "")
            self._lose(cause, group, len(group.preferences), whole=True, why=why)
            return None
        if alike := sum(made.identical):
            cause = IDENTICAL[made.truncated]
            if not drop_identical:
                self.identical[cause] = self.identical.get(cause, 0) + alike
            else:
                left = tuple(compress(made.preferences, (not same for same in made.identical)))
                self._lose(cause, group, alike, whole=not left)
                if not left:
                    return None
                made = made._replace(preferences=left)
        self.truncated += made.truncated
        for omission in made.omitted:
            before = self.omitted.get(omission.what, Omitted(0, group.id, omission.words))
            self.omitted[omission.what] = before._replace(rows=before.rows + 1)
        return made

    def _lose(self, cause: str, group: PreferenceGroup, preferences: int, whole: bool, why: str = "") -> None:
        before = self.dropped.get(cause, Lost(0, 0, 0, group.id, why))
        self.dropped[cause] = Lost(
            before.rows + whole,
            before.completions + whole * len(group.completions),
            before.preferences + preferences,
            before.first,
            before.why,
        )


def _features() -> Any:
    from datasets import Features, List, Value

    return Features(
        {
            "id": Value("string"),
            "source": Value("string"),
            "tokens": List(Value("int32")),
            "prefix_length": Value("int32"),
            "suffix_lengths": List(Value("int32")),
            "suffix_of": List(Value("int32")),
            "preferences": List(List(Value("int32"))),
            "gaps": List(Value("float64")),
            "scores": List(Value("float64")),
            "truncated": Value("bool"),
        }
    )


def _open(folder: Path) -> tuple[Any, _Books] | None:
    """Table and books of an entry; None where there is none, or where a byte of it is not as it was written.

    Checked before Arrow maps the table into memory, since a damaged one can end the process.
    """
    from datasets import load_from_disk

    try:
        if (folder / _CHECKSUMS).read_bytes() != _checksums(folder):
            return None
        books = json.loads((folder / _BOOKS).read_bytes())
        dropped = {cause: Lost(*lost) for cause, lost in books["dropped"].items()}
        omitted = {what: Omitted(*lost) for what, lost in books["omitted"].items()}
        return load_from_disk(folder), _Books(dropped, books["identical"], books["truncated"], omitted)
    except (OSError, ValueError):  # pyarrow's errors are among these
        return None


def _write(folder: Path, columns: dict[str, list[Any]], books: _Books) -> None:
    from datasets import Dataset

    # the caller holds the lock, so what lies in either place was left by a dead writer, or is damaged
    staging = folder.with_name(f".{folder.name}")
    for left in (staging, folder):
        shutil.rmtree(left, ignore_errors=True)
    # left to itself, datasets writes no shard for no rows, and can't read that
    try:
        Dataset.from_dict(columns, features=_features()).save_to_disk(staging, num_shards=1)
        (staging / _BOOKS).write_text(json.dumps(asdict(books)))
        (staging / _CHECKSUMS).write_bytes(_checksums(staging))
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _checksums(folder: Path) -> bytes:
    """CRC-32, size and name of each file of an entry: at a gigabyte a second, it finds every flipped bit."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != _CHECKSUMS:
            value = size = 0
            with open(path, "rb") as stream:
                while piece := stream.read(1 << 20):
                    value, size = zlib.crc32(piece, value), size + len(piece)
            lines.append(f"{value:08x} {size} {path.name}\n")
    return "".join(lines).encode()
