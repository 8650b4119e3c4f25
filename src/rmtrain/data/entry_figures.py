"""Figures of the data report for each entry of a mixture: its share of the split, and its dropped rows."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rmtrain.data.ledgers import Ledger
from rmtrain.data.prepare import ReadyPart, ReadySplit
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
    parts = [(part, token_figures(part.tokens)) for part in split.parts]
    shares = [_Share.of(part, figures) for part, figures in parts]
    total = _Share(sum(each.groups for each in shares), sum(each.tokens for each in shares))
    return {
        part.data.entry.name: _figures(part, figures, share, total)
        for (part, figures), share in zip(parts, shares, strict=True)
    }


class _Share(NamedTuple):
    """The groups and tokens of one epoch, of an entry or of all."""

    groups: int
    tokens: int

    @classmethod
    def of(cls, part: ReadyPart, figures: TokenFigures) -> "_Share":
        kept = len(part.tokens)
        groups = max(kept, part.data.repeated or 0)
        return cls(groups, figures.tokens * groups // max(1, kept))


def _figures(part: ReadyPart, figures: TokenFigures, share: _Share, total: _Share) -> EntryFigures:
    origin = part.data.origin
    return EntryFigures(
        source=origin["source"],
        revision=origin["revision"],
        fingerprint=origin["fingerprint"],
        schema=part.data.report.schema,
        tags=list(part.data.entry.tags),
        rows=part.ledger("rows"),
        completions=part.ledger("completions"),
        preferences=part.ledger("preferences"),
        groups=share.groups,
        share_of_groups=share.groups / max(1, total.groups),
        tokens=share.tokens,
        share_of_tokens=share.tokens / max(1, total.tokens),
        length_baseline=figures.length_baseline,
        completions_per_group=figures.completions_per_group,
    )
