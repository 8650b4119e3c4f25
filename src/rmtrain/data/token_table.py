"""The table of tokenised groups: its columns, and the sizes of its groups as arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIGURES = ("probabilities", "weights")  # of preferences, which a table holds only where one of them is not 1


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
