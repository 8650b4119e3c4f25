"""Votes and weights in a row: the probabilities of its preferences, and how much they count in the loss."""

from collections.abc import Sequence

from rmtrain.data.schemas.messages import list_in
from rmtrain.data.schemas.rows import MISSING, WRONG_TYPE, ParsedRow, RowFault, number, score_gap
from rmtrain.data.types import Preference

_FIRST = {1: 1.0, 2: 0.0, 0: 0.5}  # the share of a vote for the first of two answers
_LARGEST_WEIGHT = 1e6


def vote_share(value: object) -> float | None:
    """The share of raters for the first of two answers: a number from 0 to 1, or the votes 1, 2 and 0 of each rater.

    None if it is neither.
    """
    votes = list_in(value)
    if votes is not None:
        known = [_FIRST[vote] for vote in votes if type(vote) is int and vote in _FIRST]
        return sum(known) / len(known) if known and len(known) == len(votes) else None
    try:
        share = number(value)
    except RowFault:
        return None
    return share if share is not None and 0 <= share <= 1 else None


def with_votes(row: ParsedRow, value: object, column: str) -> ParsedRow:
    """A row with the preferences of the majority of raters, each with its share of raters as probability.

    `value` is the share of raters for the first of two answers, or their votes; for more answers a share for each
    stated preference.

    Raises:
        RowFault: the value is missing or invalid.
    """
    if value is None or value == "":
        raise RowFault(MISSING, column)
    stated: Sequence[Preference] | None = row.stated
    if len(row.completions) == 2:
        share = vote_share(value)
        if share is None:
            raise RowFault(
                WRONG_TYPE, column, value, "a share of raters from 0 to 1, or a list of the votes 1, 2 and 0"
            )
        shares, stated = [share], [Preference(0, 1)]
    else:
        listed = list_in(value)
        shares = [share for each in listed or () if (share := vote_share(each)) is not None]
        if stated is None or len(shares) != len(stated) or len(shares) != len(listed or ()):
            raise RowFault(WRONG_TYPE, column, value, "a share of raters from 0 to 1 for each entry of preferences")
    return row._replace(
        stated=tuple(_majority(each, share, row.scores) for each, share in zip(stated, shares, strict=True)),
        faults=None,
    )


def _majority(stated: Preference, share: float, scores: tuple[float | None, ...] | None) -> Preference:
    better, worse = (stated.better, stated.worse) if share >= 0.5 else (stated.worse, stated.better)
    gap = score_gap(scores, better, worse)
    return Preference(better, worse, None if gap is None else max(gap, 0.0) or None, max(share, 1 - share))


def with_weights(row: ParsedRow, value: object, column: str) -> ParsedRow:
    """A row with the weights of its preferences: a number for all, or a list with one for each stated preference.

    Raises:
        RowFault: the value is missing or something else.
    """
    if value is None or value == "":
        raise RowFault(MISSING, column)
    listed = list_in(value)
    if listed is None:
        return row._replace(weight=_weight(value, value, column))
    if row.stated is None or len(listed) != len(row.stated):
        raise RowFault(
            WRONG_TYPE, column, value, "a number, or a list with one for each preference that the row states"
        )
    weights = [_weight(each, value, column) for each in listed]
    return row._replace(stated=tuple(p._replace(weight=w) for p, w in zip(row.stated, weights, strict=True)))


def _weight(each: object, value: object, column: str) -> float:
    weight = number(each, column)
    if weight is None or not 0 <= weight <= _LARGEST_WEIGHT:
        raise RowFault(WRONG_TYPE, column, value, f"weights from 0 to {_LARGEST_WEIGHT:,.0f}")
    return weight
