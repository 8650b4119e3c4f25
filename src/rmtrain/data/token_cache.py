"""Tokenised splits: a memory-mapped table on disk, made once for all processes, and checked when it is opened."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmtrain.data.cache_entry import cached
from rmtrain.data.render import Renderer
from rmtrain.data.template import REFUSED, UNKNOWN, TemplateRefusalError
from rmtrain.data.token_table import Sizes, features_of
from rmtrain.data.tokenize import OverLength, TokenizedGroup, Value, tokenize_groups
from rmtrain.data.types import Preference, PreferenceGroup, Row

OVER_LENGTH = "over length"
IDENTICAL = ("identical after rendering", "identical after truncation")  # the cause in a whole group, and in a cut one

_VERSION = "3"  # raise when tokenisation or rendering changes what tokens come out, or when rows change
_LAYOUT = "5"  # raise when entries of the cache change in form; not part of the fingerprint, which resumed runs compare
_TABLE, _REPORT = "groups.arrow", "report.json"  # the files in an entry of the cache
_ROWS = 1000  # that are in memory at once when a table is written


class Lost(NamedTuple):
    """What a split lost to one cause when it was tokenised."""

    rows: int
    completions: int
    preferences: int
    first: str  # id of the first group
    why: str = ""  # in detail, of the first group

    def plus(self, other: "Lost") -> "Lost":
        """Both together; the first is this one's."""
        rows, completions = self.rows + other.rows, self.completions + other.completions
        return self._replace(rows=rows, completions=completions, preferences=self.preferences + other.preferences)


class Omitted(NamedTuple):
    """What a chat template leaves out of the rows of a split."""

    rows: int
    first: str  # id of the first group
    words: str  # the beginning of its omitted text


class TokenizedSplit(NamedTuple):
    """A split as a memory-mapped table, one row a group."""

    fingerprint: str  # of groups, tokenizer, rendering and rules
    table: Any  # datasets.Dataset; a row is what group_to_row makes
    dropped: dict[str, Lost]  # by cause
    identical: dict[str, int]  # preferences that are kept between completions of the same tokens, by cause
    truncated: int  # groups
    omitted: dict[str, Omitted]  # by what the chat template leaves out of kept groups: a role's text, tools, calls

    def __len__(self) -> int:
        return len(self.table)

    @property
    def refused(self) -> tuple[str, Lost] | None:
        """Why the renderer refused rows, and what was lost: one cause for texts, another for token ids."""
        return find_refused(self.dropped)

    def group(self, index: int) -> TokenizedGroup:
        """The group at a row."""
        return row_to_group(self.table[index])

    def groups(self) -> list[TokenizedGroup]:
        """All groups, in memory."""
        return [row_to_group(row) for row in self.table]

    def column(self, name: str) -> Any:
        """A column as one Arrow array."""
        return self.table.with_format("arrow")[:][name].combine_chunks()

    def sizes(self) -> Sizes:
        """Tokens and completions of all groups, as arrays."""
        suffixes, completions = self.column("suffix_lengths"), self.column("suffix_of")
        return Sizes(
            self.column("prefix_length").to_numpy(),
            *(part.to_numpy() for each in (suffixes, completions) for part in (each.flatten(), each.value_lengths())),
        )

    def lengths(self) -> list[tuple[int, tuple[int, ...]]]:
        """For each row, tokens of the shared prefix and of each suffix: what batch planning needs."""
        prefixes = self.table["prefix_length"]
        return list(zip(prefixes, (tuple(lengths) for lengths in self.table["suffix_lengths"]), strict=True))


def find_refused(dropped: Mapping[str, Lost]) -> tuple[str, Lost] | None:
    """Why the renderer refused rows, and what was lost; None if it took them all."""
    return next(((cause, dropped[cause]) for cause in (REFUSED, UNKNOWN) if cause in dropped), None)


def row_to_group(row: Row) -> TokenizedGroup:
    """A row of a TokenizedSplit's table as a group."""
    tokens = np.asarray(row["tokens"], dtype=np.int32)
    borders = np.cumsum([row["prefix_length"], *row["suffix_lengths"]])
    prefix, *suffixes = np.split(tokens, borders[:-1])
    pairs, gaps = row["preferences"], row["gaps"]
    shares = row.get("probabilities") or [1.0] * len(pairs)
    preferences = tuple(Preference(b, w, gap, share) for (b, w), gap, share in zip(pairs, gaps, shares, strict=True))
    return TokenizedGroup(
        row["id"],
        row["source"],
        prefix,
        tuple(suffixes),
        preferences,
        row["truncated"],
        suffix_of=tuple(row["suffix_of"]),
        scores=None if row["scores"] is None else tuple(row["scores"]),
    )


def group_to_row(group: TokenizedGroup) -> Row:
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
        "probabilities": [p.probability for p in group.preferences],
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

    The first of several processes does the work; the others wait for it on a file lock, which has no time-out.

    Args:
        groups: the split's groups.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        over_length: what happens to longer ones.
        cache: folder that holds cached splits.
        progress: called with the number of groups done.
        notify: receives one line for the user.
        drop_identical: drop the preferences between completions of the same tokens, and groups that have no other.

    Raises:
        DataError: as tokenize_groups.
    """
    rule = [_VERSION, renderer.contract(), max_length, over_length, drop_identical]
    fingerprint, soft = _fingerprint(groups, rule, renderer, cache)

    def write(folder: Path) -> None:
        report, refused = TokenReport(drop_identical), dict[str, TemplateRefusalError]()
        tokenized = tokenize_groups(groups, renderer, max_length, over_length, refused)
        counted = _counted(progress, zip(groups, tokenized, strict=True))
        kept = (report.keep(group, tokens, refused.pop(group.id, None)) for group, tokens in counted)
        _write(folder, (group_to_row(each) for each in kept if each is not None), features_of(soft), report)

    folder = cache / f"{fingerprint[:32]}-{_LAYOUT}"
    table, report = cached(folder, "cached tokens", write, _read, notify)
    return TokenizedSplit(fingerprint, table, report.dropped, report.identical, report.truncated, report.omitted)


class _Fingerprint(NamedTuple):
    """What names the tokens of some groups, and decides on their columns."""

    digest: str
    soft: bool  # whether a preference has another probability than 1


def _fingerprint(groups: Sequence[PreferenceGroup], rule: list[Any], renderer: Renderer, cache: Path) -> _Fingerprint:
    """The fingerprint of groups as tokenised by a rule; that of a named table is kept in the cache."""
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    digest.update(renderer.tokenizer.backend_tokenizer.to_str().encode())
    name = getattr(groups, "name", None)
    if name is None:
        return _of_groups(groups, digest)
    known = cache / "fingerprints" / hashlib.sha256(f"{name} {digest.hexdigest()}".encode()).hexdigest()[:32]

    def write(folder: Path) -> None:
        (folder / "fingerprint.json").write_text(json.dumps(_of_groups(groups, digest)))

    return cached(known, "cached fingerprint", write, _read_fingerprint, lambda line: None)


def _read_fingerprint(folder: Path) -> _Fingerprint:
    return _Fingerprint(*json.loads((folder / "fingerprint.json").read_bytes()))


def _of_groups(groups: Iterable[PreferenceGroup], digest: Any) -> _Fingerprint:
    soft = False
    for group in groups:
        digest.update(repr(group).encode("utf-8", "surrogatepass"))
        soft = soft or any(each.probability != 1.0 for each in group.preferences)
    return _Fingerprint(digest.hexdigest(), soft)


def _counted(progress: Callable[[int], None], pairs: Iterable[Value]) -> Iterator[Value]:
    """Report how many were taken, before the next one is made."""
    for done, pair in enumerate(pairs, start=1):
        yield pair
        progress(done)


@dataclass
class TokenReport:
    """What happened to the groups and preferences of a split; see TokenizedSplit."""

    drop_identical: bool = False
    dropped: dict[str, Lost] = field(default_factory=dict)
    identical: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    omitted: dict[str, Omitted] = field(default_factory=dict)

    @property
    def refused(self) -> tuple[str, Lost] | None:
        """As of TokenizedSplit."""
        return find_refused(self.dropped)

    def keep(
        self, group: PreferenceGroup, tokens: TokenizedGroup | None, refusal: TemplateRefusalError | None
    ) -> TokenizedGroup | None:
        """Count a group, and return what is kept of it."""
        if tokens is None:
            cause, why = (refusal.cause, refusal.message) if refusal else (OVER_LENGTH, "")
            self._lose(cause, group, len(group.preferences), whole=True, why=why)
            return None
        if identical := sum(tokens.identical):
            cause = IDENTICAL[tokens.truncated]
            if not self.drop_identical:
                self.identical[cause] = self.identical.get(cause, 0) + identical
            else:
                left = tuple(compress(tokens.preferences, (not same for same in tokens.identical)))
                self._lose(cause, group, identical, whole=not left)
                if not left:
                    return None
                tokens = tokens._replace(preferences=left)
        self.truncated += tokens.truncated
        for omission in tokens.omitted:
            before = self.omitted.get(omission.what, Omitted(0, group.id, omission.words))
            self.omitted[omission.what] = before._replace(rows=before.rows + 1)
        return tokens

    def _lose(self, cause: str, group: PreferenceGroup, preferences: int, whole: bool, why: str = "") -> None:
        before = self.dropped.get(cause, Lost(0, 0, 0, group.id, why))
        self.dropped[cause] = before._replace(
            rows=before.rows + whole,
            completions=before.completions + whole * len(group.completions),
            preferences=before.preferences + preferences,
        )


def _read(folder: Path) -> tuple[Any, TokenReport]:
    from datasets import Dataset

    report = TokenReport(**json.loads((folder / _REPORT).read_bytes()))
    report.dropped = {cause: Lost(*lost) for cause, lost in report.dropped.items()}
    report.omitted = {what: Omitted(*omitted) for what, omitted in report.omitted.items()}
    return Dataset.from_file(str(folder / _TABLE)), report


def _write(folder: Path, rows: Iterator[Row], features: Any, report: TokenReport) -> None:
    """Write the rows of a table part by part, and the report, which the last row completes."""
    import pyarrow as pa

    schema = features.arrow_schema
    with pa.OSFile(str(folder / _TABLE), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write(pa.RecordBatch.from_pylist([], schema))  # datasets can't open a table without any part
        while part := list(islice(rows, _ROWS)):
            stream.write(pa.RecordBatch.from_pylist(part, schema))
    (folder / _REPORT).write_text(json.dumps(asdict(report)))
