"""Tokenised splits: a memory-mapped table on disk, made once for all processes and verified when it is opened."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rmtrain.data.cache_entry import cached
from rmtrain.data.render import Renderer
from rmtrain.data.template import TemplateRefusalError
from rmtrain.data.token_report import Lost, Omitted, TokenReport
from rmtrain.data.token_table import FIGURES, Sizes, features_of, group_to_row, row_to_group
from rmtrain.data.tokenize import Tokenization, TokenizedGroup, Value, tokenize_groups
from rmtrain.data.types import PreferenceGroup, has_votes, has_weights
from rmtrain.data.workers import PART, in_parts

_VERSION = "3"  # raise this if tokenisation or rendering gives other tokens, or if the rows' format changes
_LAYOUT = "5"  # raise this if cache entries change their format; not in the fingerprint, which resumed runs compare
_TABLE, _REPORT = "groups.arrow", "report.json"  # the files in an entry of the cache


class TokenizedSplit(NamedTuple):
    """A split as a memory-mapped table, one row per group."""

    fingerprint: str  # of groups, tokenizer, rendering and rules
    table: Any  # datasets.Dataset; its rows are made by group_to_row
    report: TokenReport

    def __len__(self) -> int:
        return len(self.table)

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


def tokenize_split(
    groups: Sequence[PreferenceGroup],
    how: Tokenization,
    cache: Path,
    progress: Callable[[int], None] = lambda done: None,
    notify: Callable[[str], None] = lambda line: None,
    drop_identical: bool = False,
) -> TokenizedSplit:
    """Tokenise a split, or take it from the cache.

    The first of several processes does the work; the others wait for a file lock, without a time limit. `progress` is
    called with the number of groups done. `drop_identical` drops the preferences between completions of the same
    tokens, and groups that have no other.

    Raises:
        DataError: as tokenize_groups.
    """
    rule = [_VERSION, how.renderer.contract(), how.max_length, how.over_length, drop_identical]
    fingerprint, figures = _fingerprint(groups, rule, how.renderer, cache)

    def write(folder: Path) -> None:
        work = _Tokenize(how, drop_identical, figures)
        _write(folder, _counted(progress, in_parts(work, groups), len(groups)), features_of(figures))

    folder = cache / f"{fingerprint[:32]}-{_LAYOUT}"
    return TokenizedSplit(fingerprint, *cached(folder, "cached tokens", write, _read, notify))


def join_splits(parts: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """The parts of a mixture as one split; its fingerprint is computed from theirs."""
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    report = TokenReport()
    for part in parts:
        report.add(part.report)
    fingerprint = hashlib.sha256(" ".join(part.fingerprint for part in parts).encode()).hexdigest()
    return TokenizedSplit(fingerprint, concatenate_datasets([part.table for part in parts]), report)


def _fingerprint(
    groups: Sequence[PreferenceGroup], rule: list[Any], renderer: Renderer, cache: Path
) -> tuple[str, list[str]]:
    """The fingerprint of groups as tokenised by a rule, and which of FIGURES are not 1 for some preference.

    Those of a named table are kept in the cache.
    """
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    digest.update(renderer.tokenizer.backend_tokenizer.to_str().encode())
    name = getattr(groups, "name", None)
    if name is None:
        return _of_groups(groups, digest)
    known = cache / "fingerprints" / hashlib.sha256(f"{name} {digest.hexdigest()}".encode()).hexdigest()[:32]

    def write(folder: Path) -> None:
        (folder / "fingerprint.json").write_text(json.dumps(_of_groups(groups, digest)))

    def read(folder: Path) -> tuple[str, list[str]]:
        fingerprint, figures = json.loads((folder / "fingerprint.json").read_bytes())
        return fingerprint, figures

    return cached(known, "cached fingerprint", write, read, lambda line: None)


def _of_groups(groups: Sequence[PreferenceGroup], digest: Any) -> tuple[str, list[str]]:
    needed: set[str] = set()
    for text, of_part in in_parts(_texts_of, groups):
        digest.update(text)
        needed |= of_part
    return digest.hexdigest(), [name for name in FIGURES if name in needed]


def _texts_of(groups: Sequence[PreferenceGroup]) -> tuple[bytes, set[str]]:
    """What the fingerprint is made of, and which of FIGURES are not 1 for some preference."""
    groups = list(groups)
    text = "".join(map(repr, groups)).encode("utf-8", "surrogatepass")
    needed = zip(FIGURES, (has_votes(groups), has_weights(groups)), strict=True)
    return text, {name for name, is_needed in needed if is_needed}


@dataclass(frozen=True)
class _Tokenize:
    """How groups are tokenised."""

    how: Tokenization
    drop_identical: bool
    figures: Sequence[str]

    def __call__(self, groups: Sequence[PreferenceGroup]) -> tuple[Any, TokenReport]:
        """Groups as a batch of the table (pyarrow.RecordBatch), and what happened to them."""
        import pyarrow as pa

        groups, report, refused = list(groups), TokenReport(self.drop_identical), dict[str, TemplateRefusalError]()
        tokenized = tokenize_groups(groups, self.how, refused)
        pairs = zip(groups, tokenized, strict=True)
        kept = (report.keep(group, tokens, refused.pop(group.id, None)) for group, tokens in pairs)
        rows = [group_to_row(each) for each in kept if each is not None]
        return pa.RecordBatch.from_pylist(rows, features_of(self.figures).arrow_schema), report


def _counted(progress: Callable[[int], None], parts: Iterable[Value], groups: int) -> Iterator[Value]:
    """Report how many groups are done, part by part."""
    for number, part in enumerate(parts, start=1):
        progress(min(number * PART, groups))
        yield part


def _read(folder: Path) -> tuple[Any, TokenReport]:
    from datasets import Dataset

    report = TokenReport(**json.loads((folder / _REPORT).read_bytes()))
    report.dropped = {cause: Lost(*lost) for cause, lost in report.dropped.items()}
    report.omitted = {what: Omitted(*omitted) for what, omitted in report.omitted.items()}
    return Dataset.from_file(str(folder / _TABLE)), report


def _write(folder: Path, parts: Iterable[tuple[Any, TokenReport]], features: Any) -> None:
    """Write a table part by part, and the report of all parts."""
    import pyarrow as pa

    schema, report = features.arrow_schema, TokenReport()
    with pa.OSFile(str(folder / _TABLE), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write(pa.RecordBatch.from_pylist([], schema))  # datasets can't open a table without any part
        for batch, of_batch in parts:
            report.add(of_batch)
            stream.write(batch)
    (folder / _REPORT).write_text(json.dumps(asdict(report)))
