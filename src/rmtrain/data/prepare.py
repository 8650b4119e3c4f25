"""Recipe → tokenised splits, for all commands: load, tokenise through the cache, and report losses."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from rmtrain.data.cache_entry import cache_folder
from rmtrain.data.curated_store import open_stored, stored_data
from rmtrain.data.ledgers import Ledger, join_ledgers
from rmtrain.data.load import CuratedData, load_data
from rmtrain.data.mixture import one_pass
from rmtrain.data.parse import MAX_MALFORMED
from rmtrain.data.render import Renderer
from rmtrain.data.split_data import SplitData, SplitPart
from rmtrain.data.template import REFUSED, TOO_LONG, UNKNOWN
from rmtrain.data.token_cache import TokenizedSplit, join_splits, tokenize_split
from rmtrain.data.token_notes import token_notes
from rmtrain.data.tokenize import Tokenization
from rmtrain.data.types import TOKENS, PreferenceGroup
from rmtrain.display import Display
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import OverLength
from rmtrain.recipe.schema import Recipe

LedgerName = Literal["rows", "completions", "preferences"]
LEDGERS: tuple[LedgerName, ...] = ("rows", "completions", "preferences")

_MENDED = {
    REFUSED: "give a model.chat_template that accepts such rows, or correct them",
    UNKNOWN: "make them with this model's tokenizer",
    TOO_LONG: "raise data.max_length",
}
_CURATED = "RMTRAIN_CURATED"  # folder of the cache with the launching process's curated data


class ReadyPart(NamedTuple):
    """An entry of a split, curated and tokenised."""

    data: SplitPart
    tokens: TokenizedSplit

    def ledger(self, name: LedgerName) -> Ledger:
        """A ledger of the entry with what tokenisation dropped.

        Raises:
            AssertionError: it does not balance: a fault of this program.
        """
        tokens, curated = self.tokens, getattr(self.data.report, name)
        column = {"completions": "suffix_of", "preferences": "preferences"}.get(name)
        kept = len(tokens) if column is None else len(tokens.column(column).flatten())
        dropped = {cause: n for cause, lost in tokens.report.dropped.items() if (n := getattr(lost, name))}
        return Ledger(curated.total, kept, {**curated.dropped, **dropped})


class ReadySplit(NamedTuple):
    """A split, curated and tokenised."""

    data: SplitData
    tokens: TokenizedSplit  # of all entries in order
    parts: tuple[ReadyPart, ...]

    def ledger(self, name: LedgerName) -> Ledger:
        """A ledger of the split over all entries, including rows dropped in tokenisation."""
        return join_ledgers([part.ledger(name) for part in self.parts])

    def one_pass(self, seed: int) -> list[int]:
        """The rows of one epoch: each once, or as often as its entry is repeated."""
        return one_pass([len(part.tokens) for part in self.parts], [part.data.repeated for part in self.parts], seed)

    @property
    def fingerprint(self) -> str:
        """Digest of the groups as tokenised."""
        return self.tokens.fingerprint


class ReadyData(NamedTuple):
    """All splits of a recipe, and the renderer that tokenises them."""

    data: CuratedData
    renderer: Renderer
    splits: dict[str, ReadySplit]


def prepare(recipe: Recipe, renderer: Renderer, display: Display, with_rows: bool = False) -> ReadyData:
    """Load, curate and tokenise the splits of a recipe, or reuse the launching process's curated data.

    With `with_rows`, nothing is reused, and `data.rows` holds every row.

    Raises:
        DataError: as `load_data`, a sequence that is too long where the recipe makes that an error, or a chat template
            that refuses more than a fifth of a split.
    """
    data = load_data(recipe.data, recipe.run.seed) if with_rows else _curated(recipe, display)
    splits = tokenize_splits(data, Tokenization(renderer, recipe.data.max_length, recipe.data.over_length), display)
    notes = [*data.notes, *renderer.notes]
    baked = renderer.baked()
    if baked.prepend_bos or baked.append_eos:
        notes.append(
            "the chat template can't write BOS or the end token: code that renders without rmtrain must add them"
        )
    notes += [
        f"{part.label(name)}: {note}"
        for name, split in splits.items()
        for (part, groups), ready in zip(split.data.by_part(), split.parts, strict=True)
        for note in token_notes(
            ready.tokens.report, split.data.place, groups if part.report.schema == TOKENS else (), renderer
        )
    ]
    return ReadyData(replace(data, notes=[*dict.fromkeys(notes)]), renderer, splits)


def _curated(recipe: Recipe, display: Display) -> CuratedData:
    shared = os.environ.get(_CURATED)
    if shared and (data := open_stored(Path(shared), recipe.data)) is not None:
        return data
    return stored_data(recipe.data, recipe.run.seed, cache_folder() / "curated", display.note)


@contextlib.contextmanager
def shared_with_processes(data: CuratedData) -> Iterator[None]:
    """Let processes started inside the block open this data, so that they do not read the sources again."""
    os.environ[_CURATED] = str(data.folder or "")
    try:
        yield
    finally:
        del os.environ[_CURATED]


def require_few_refusals(tokens: TokenizedSplit, place: Callable[[str], str]) -> None:
    """Refuse a split if the renderer refuses more than a fifth of it.

    Raises:
        DataError: names the first such row.
    """
    refused = tokens.report.refused
    total = len(tokens) + sum(lost.rows for lost in tokens.report.dropped.values())
    if sum(lost.rows for lost in refused.values()) > MAX_MALFORMED * total:
        cause, lost = max(refused.items(), key=lambda item: item[1].rows)
        raise DataError(
            f"{lost.rows} of {total} rows are {cause}; the first: {place(lost.first)}: {lost.why}", _MENDED[cause]
        )


def tokenize_named(
    name: str, groups: Sequence[PreferenceGroup], how: Tokenization, display: Display, drop_identical: bool = False
) -> TokenizedSplit:
    """Tokenise groups through the cache, and show the progress under the split's name."""

    def progress(done: int) -> None:
        display.progress(f"tokenise {name}", done, len(groups))

    cache = cache_folder() / "tokens"
    return tokenize_split(groups, how, cache, progress, display.note, drop_identical)


def tokenize_splits(data: CuratedData, how: Tokenization, display: Display) -> dict[str, ReadySplit]:
    """Tokenise the splits of a recipe; only in training are rows dropped or refused for length, or dropped as
    identical."""
    ready = {}
    for name, split in data.splits.items():
        trains = name == "train"
        rule = how if trains else how._replace(over_length=evaluation_rule(how.over_length))
        parts = []
        for part, groups in split.by_part():
            title = part.label(name)
            tokens = tokenize_named(title, groups, rule, display, drop_identical=trains)
            require_few_refusals(tokens, split.place)
            parts.append(ReadyPart(part, tokens))
        ready[name] = ReadySplit(split, join_splits([part.tokens for part in parts]), tuple(parts))
    return ready


def evaluation_rule(over_length: OverLength) -> OverLength:
    """The rule of evaluation for over-length sequences: truncate, never drop."""
    return over_length if over_length == "truncate_completion" else "truncate_prompt"
