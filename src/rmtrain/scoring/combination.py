"""How the rewards of an ensemble's members are combined (arXiv 2310.02743)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmtrain.errors import InputError

_FORM = re.compile(r"(mean|min|mean-minus-variance)(?::([0-9.eE+-]+))?")


class Combination(NamedTuple):
    """How the rewards r_1 ... r_M of a completion are combined.

    `mean` is their mean, `min` the lowest (worst-case optimisation), and `mean-minus-variance` the mean less `weight`
    times their population variance (uncertainty-weighted optimisation).
    """

    kind: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Combination":
        """Parse a combination such as mean-minus-variance:0.5.

        Raises:
            InputError: the text is not a combination.
        """
        match = _FORM.fullmatch(text)
        try:
            weight = float(match[2]) if match and match[2] else 1.0
        except ValueError:
            match = None
        if match is None or (match[2] and match[1] != "mean-minus-variance") or not 0 <= weight < 1e6:
            raise InputError(
                f"--combine {text}: no such combination",
                "choose mean, min, or mean-minus-variance, which takes a weight as in mean-minus-variance:0.5",
            )
        return cls(match[1], weight)

    def of(self, rewards: Sequence[Sequence[float]]) -> tuple[float, ...]:
        """K combined rewards from M times K rewards; float32 values, like those of every scorer."""
        values = np.asarray(rewards, dtype=np.float64)
        if self.kind == "min":
            combined = values.min(axis=0)
        else:
            combined = values.mean(axis=0) - (self.weight * values.var(axis=0) if self.kind != "mean" else 0.0)
        return tuple(combined.astype(np.float32).tolist())
