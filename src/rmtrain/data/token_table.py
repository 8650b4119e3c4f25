"""The table of tokenised groups: its columns, its rows, and the sizes of its groups as arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.data.types import Preference, Row

FIGURES = ("probabilities", "weights")  # of preferences; a table has a column only if some value is not 1


def features_of(figures: Sequence[str]) -> Any:
    """The columns of a table, with those of `FIGURES` that some preference needs."""
    from datasets import Features, List, Value

    integers = List(Value("int32"))
    columns = Features(
        {
            "id": Value("string"),
            "source": Value("string"),
            "tokens": integers,
            "prefix_length": Value("int32"),
            "suffix_lengths": integers,
            "suffix_of": integers,
            "preferences": List(integers),
            "gaps": List(Value("float64")),
            "scores": List(Value("float64")),
            "truncated": Value("bool"),
        }
    )
    return Features({**columns, **{name: List(Value("float64")) for name in figures}})


def row_to_group(row: Row) -> TokenizedGroup:
    """A row of a TokenizedSplit's table as a group."""
    tokens = np.asarray(row["tokens"], dtype=np.int32)
    borders = np.cumsum([row["prefix_length"], *row["suffix_lengths"]])
    prefix, *suffixes = np.split(tokens, borders[:-1])
    pairs, gaps = row["preferences"], row["gaps"]
    figures = (row.get(name) or [1.0] * len(pairs) for name in FIGURES)
    preferences = tuple(Preference(*pair, *own) for pair, *own in zip(pairs, gaps, *figures, strict=True))
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
        "weights": [p.weight for p in group.preferences],
        "scores": group.scores,
        "truncated": group.truncated,
    }


class Sizes(NamedTuple):
    """Tokens of G groups with S distinct suffixes and N completions in all."""

    prefixes: NDArray[np.int32]  # [G]
    suffixes: NDArray[np.int32]  # [S]
    distinct: NDArray[np.int32]  # [G] suffixes of each group
    suffix_of: NDArray[np.int32]  # [N] among those of the group
    completions: NDArray[np.int32]  # [G]

    @property
    def tokens(self) -> int:
        """Tokens with each prompt once per group."""
        return int(self.prefixes.sum(dtype=np.int64) + self.suffixes.sum(dtype=np.int64))

    @property
    def tokens_repeated(self) -> int:
        """Tokens with each prompt once per distinct suffix."""
        return int((self.prefixes.astype(np.int64) * self.distinct).sum() + self.suffixes.sum(dtype=np.int64))

    @property
    def answers(self) -> NDArray[np.int32]:
        """[N] tokens of each completion after the shared prefix."""
        first = np.cumsum(self.distinct, dtype=np.int64) - self.distinct
        return np.asarray(self.suffixes[np.repeat(first, self.completions) + self.suffix_of])

    @property
    def sequences(self) -> NDArray[np.int32]:
        """[N] tokens of each completion with its prompt."""
        return np.asarray(self.answers + np.repeat(self.prefixes, self.completions))
