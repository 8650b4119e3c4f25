"""The preferences of a row: those it states, or those that its scores imply."""

import math
from collections import Counter
from itertools import combinations
from typing import NamedTuple

from rmtrain.data.schemas.rows import ParsedRow
from rmtrain.data.types import Conversation, Preference
from rmtrain.recipe.data_schema import Pairs

TIE = "tie"
BELOW_MIN_GAP = "below min_gap"
IDENTICAL = "identical completions"
DISAGREE = "scores disagree"
NO_WEIGHT = "weight 0"

TIED = 0.5  # probability of a preference between two that are equally good
_ROUNDING = 1e-9  # differences of means such as 13/3 - 4 deviate from a stated gap by rounding errors


class Pairing(NamedTuple):
    """The preferences of a row: possible = kept + dropped."""

    kept: tuple[Preference, ...]
    dropped: Counter[str]  # by cause


def make_preferences(row: ParsedRow, mode: Pairs, min_gap: float, keep_ties: bool = False) -> Pairing:
    """Choose the preferences of one row.

    Stated preferences are taken unchanged in every mode. Otherwise they come from the scores: `all`
    compares every two completions, `best_vs_rest` the best with every other completion, `best_vs_worst` the best with
    the worst (among equals, the first best and the last worst); `as_given` makes none. Dropped are ties (equal scores
    or votes), unless they are kept with a probability of 0.5; differences below `min_gap`; completions with the same
    text; stated preferences for the completion with the lower score; and preferences of weight 0.
    """
    kept: list[Preference] = []
    dropped: Counter[str] = Counter()
    for preference in row.stated if row.stated is not None else _from_scores(row, mode):
        gap = preference.gap
        if row.weight != 1.0:
            preference = preference._replace(weight=row.weight * preference.weight)
        if same_text(row.completions[preference.better], row.completions[preference.worse]):
            dropped[IDENTICAL] += 1
        elif preference.weight == 0:
            dropped[NO_WEIGHT] += 1
        elif gap == 0 or preference.probability == TIED:
            if keep_ties:
                kept.append(preference._replace(probability=TIED))
            else:
                dropped[TIE] += 1
        elif gap is not None and gap < 0:
            dropped[DISAGREE] += 1
        elif gap is not None and gap + _ROUNDING < min_gap:
            dropped[BELOW_MIN_GAP] += 1
        else:
            kept.append(preference)
    return Pairing(tuple(kept), dropped)


def with_gap_probability(preference: Preference, scale: float) -> Preference:
    """A preference with the probability sigmoid(scale * gap), unless votes give it one or it has no score gap."""
    if preference.gap is None or preference.probability != 1.0:
        return preference
    return preference._replace(probability=1 / (1 + math.exp(-min(scale * preference.gap, 700.0))))


def same_text(a: Conversation, b: Conversation) -> bool:
    """Whether two completions are equal apart from white space at the ends of their messages."""
    return len(a) == len(b) and all(
        x._replace(content=x.content.strip()) == y._replace(content=y.content.strip())
        for x, y in zip(a, b, strict=True)
    )


def _from_scores(row: ParsedRow, mode: Pairs) -> list[Preference]:
    if row.scores is None or mode == "as_given":
        return []
    scores = [(score, k) for k, score in enumerate(row.scores) if score is not None]
    if len(scores) < 2:
        return []
    best = max(scores, key=lambda scored: (scored[0], -scored[1]))
    pairs = [(best, other) for other in scores if other != best]
    if mode == "all":
        pairs = list(combinations(scores, 2))
    elif mode == "best_vs_worst":
        pairs = [min(pairs, key=lambda pair: (pair[1][0], -pair[1][1]))]
    return [
        Preference(b[1], a[1], b[0] - a[0]) if b[0] > a[0] else Preference(a[1], b[1], a[0] - b[0]) for a, b in pairs
    ]
