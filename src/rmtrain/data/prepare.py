"""Source → tokenised splits, the way that every command takes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rmtrain.data.load import PreparedData, SplitData, load_data
from rmtrain.data.render import Renderer
from rmtrain.data.token_cache import TokenizedSplit, tokenize_split
from rmtrain.data.tokenize import OverLength
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.recipe.schema import Recipe


class ReadySplit(NamedTuple):
    """A split as read and curated, and as tokenised."""

    data: SplitData
    tokens: TokenizedSplit

    @property
    def fingerprint(self) -> str:
        """Digest of the groups as tokenised."""
        return self.tokens.fingerprint


class ReadyData(NamedTuple):
    """All splits of a recipe, and the contract that they are tokenised by."""

    data: PreparedData
    renderer: Renderer
    splits: dict[str, ReadySplit]


def prepare(recipe: Recipe, renderer: Renderer, display: Display) -> ReadyData:
    """Read, curate and tokenise the splits of a recipe.

    Raises:
        DataError: as `load_data`, or a sequence that is too long where the recipe has that as an error.
    """
    data, section = load_data(recipe.data, recipe.run.seed), recipe.data
    data.notes.extend(renderer.notes)
    baked = renderer.baked()
    if baked.prepend_bos or baked.append_eos:
        data.notes.append(
            "the chat template can't write BOS or the end token by itself: who renders without rmtrain must add them"
        )
    splits = tokenize_splits(data, renderer, section.max_length, section.over_length, display)
    return ReadyData(data, renderer, splits)


def cache_folder() -> Path:
    """Where tokenised splits are kept: $RMTRAIN_CACHE, or rmtrain/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RMTRAIN_CACHE") or Path(base) / "rmtrain")


def tokenize_named(
    name: str,
    groups: Sequence[PreferenceGroup],
    renderer: Renderer,
    max_length: int,
    over_length: OverLength,
    display: Display,
) -> TokenizedSplit:
    """Tokenise groups through the cache, showing how far it is under the split's name."""

    def progress(done: int) -> None:
        display.progress(f"tokenise {name}", done, len(groups))

    return tokenize_split(groups, renderer, max_length, over_length, cache_folder() / "tokens", progress)


def tokenize_splits(
    data: PreparedData, renderer: Renderer, max_length: int, over_length: OverLength, display: Display
) -> dict[str, ReadySplit]:
    """Tokenise the splits of a recipe; only training drops or refuses for length."""
    ready = {}
    for name, split in data.splits.items():
        rule = over_length if name == "train" else evaluation_rule(over_length)
        ready[name] = ReadySplit(split, tokenize_named(name, split.groups, renderer, max_length, rule, display))
    return ready


def evaluation_rule(over_length: OverLength) -> OverLength:
    """What evaluation does with a sequence that is too long: it truncates, never drops."""
    return over_length if over_length == "truncate_completion" else "truncate_prompt"
