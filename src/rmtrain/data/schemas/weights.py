"""Weights in a row: how much its preferences count in the loss relative to other rows."""

from rmtrain.data.schemas.messages import list_in
from rmtrain.data.schemas.rows import MISSING, WRONG_TYPE, ParsedRow, RowFault, number

_MOST = 1e6


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
    if weight is None or not 0 <= weight <= _MOST:
        raise RowFault(WRONG_TYPE, column, value, f"weights from 0 to {_MOST:,.0f}")
    return weight
