"""Figures of the data report for each entry of a mixture: its share of the split, and its dropped rows."""

from dataclasses import dataclass

import numpy as np

from rmtrain.data.ledgers import Ledger
from rmtrain.data.prepare import ReadySplit
from rmtrain.data.token_cache import TokenizedSplit
from rmtrain.metrics.rankings import ranking_accuracy


@dataclass(frozen=True)
class TokenFigures:
    """Figures of tokenised groups; None if undefined."""

    tokens: int  # of one forward pass, each prompt once per group
    length_baseline: float | None  # accuracy of "the longer completion wins", in tokens; equal lengths count 1/2
    completions_per_group: float | None  # mean


@dataclass(frozen=True)
class EntryFigures:
    """One entry of a mixture; its groups and tokens are those of one epoch, repetitions included."""

    source: str
    revision: str | None
    fingerprint: str
    schema: str
    tags: list[str]
    rows: Ledger
    completions: Ledger
    preferences: Ledger
    groups: int
    share_of_groups: float
    tokens: int
    share_of_tokens: float
    length_baseline: float | None
    completions_per_group: float | None


def token_figures(split: TokenizedSplit) -> TokenFigures:
    """Measure tokenised groups."""
    sizes, preferences = split.sizes(), split.column("preferences")
    first = np.cumsum(sizes.completions, dtype=np.int64) - sizes.completions
    pairs = preferences.flatten().flatten().to_numpy().reshape(-1, 2)
    better, worse = sizes.answers[np.repeat(first, preferences.value_lengths())[:, None] + pairs].T
    return TokenFigures(
        tokens=sizes.tokens,
        length_baseline=ranking_accuracy((better - worse).astype(np.float64)).accuracy,
        completions_per_group=len(sizes.suffix_of) / len(split) if len(split) else None,
    )


def entry_figures(split: ReadySplit) -> dict[str, EntryFigures]:
    """The figures of each entry by name; none for a split that is no mixture."""
    if not split.data.mixed:
        return {}
    measured = [token_figures(part.tokens) for part in split.parts]
    groups = [max(len(part.tokens), part.data.repeated or 0) for part in split.parts]
    tokens = [
        figures.tokens * count // max(1, len(part.tokens))
        for part, figures, count in zip(split.parts, measured, groups, strict=True)
    ]
    return {
        part.data.entry.name: EntryFigures(
            source=part.data.origin["source"],
            revision=part.data.origin["revision"],
            fingerprint=part.data.origin["fingerprint"],
            schema=part.data.report.schema,
            tags=list(part.data.entry.tags),
            rows=part.ledger("rows"),
            completions=part.ledger("completions"),
            preferences=part.ledger("preferences"),
            groups=own_groups,
            share_of_groups=own_groups / max(1, sum(groups)),
            tokens=own_tokens,
            share_of_tokens=own_tokens / max(1, sum(tokens)),
            length_baseline=figures.length_baseline,
            completions_per_group=figures.completions_per_group,
        )
        for part, figures, own_groups, own_tokens in zip(split.parts, measured, groups, tokens, strict=True)
    }
