"""Rows of a prompt with any number of completions, and the preferences or scores among them."""

from rmtrain.data.layout import listed, rating_faults, score_gap
from rmtrain.data.rows import (
    BAD_PREFERENCE,
    WRONG_TYPE,
    ParsedRow,
    Row,
    RowFault,
    completion_of,
    number,
    prompt_of,
    row_id,
    row_source,
)
from rmtrain.data.transcripts import list_in
from rmtrain.data.types import Preference


def parse_completions(row: Row) -> ParsedRow:
    """A prompt and K completions, with `preferences` as [better, worse] indices and `scores` where there are any."""
    values = listed(row.get("completions"), "completions")
    completions = tuple(completion_of(value, f"completions[{place}]") for place, value in enumerate(values))
    scores = _scores(row.get("scores"), len(completions))
    return ParsedRow(
        prompt=prompt_of(row.get("prompt")),
        completions=completions,
        stated=_stated(row.get("preferences"), scores, len(completions)),
        scores=scores,
        faults=rating_faults(scores) if row.get("preferences") is None else None,
        id=row_id(row),
        source=row_source(row, "source", "subset"),
    )


def _scores(values: object, k: int) -> tuple[float | None, ...] | None:
    if values is None or values == "":
        return None
    found = list_in(values)
    if found is None or len(found) != k:
        raise RowFault(WRONG_TYPE, "scores", values, f"a list of {k} numbers, one for each completion")
    return tuple(number(value, "scores") for value in found)


def _stated(values: object, scores: tuple[float | None, ...] | None, k: int) -> tuple[Preference, ...] | None:
    if values is None or values == "":
        return None
    found = list_in(values)
    if found is None:
        raise RowFault(WRONG_TYPE, "preferences", values, "a list of [better, worse] numbers")
    pairs = [_indices(value, k) for value in found]
    if len({frozenset(pair) for pair in pairs}) != len(pairs):  # twice, or both ways round
        raise RowFault(BAD_PREFERENCE, "preferences", values, "each pair once")
    return tuple(Preference(better, worse, score_gap(scores, better, worse)) for better, worse in pairs)


def _indices(value: object, k: int) -> tuple[int, int]:
    better, worse = value if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)
    if (
        type(better) is not int
        or type(worse) is not int
        or better == worse
        or not 0 <= min(better, worse) < k > max(better, worse)
    ):
        raise RowFault(BAD_PREFERENCE, "preferences", value, f"two different numbers from 0 to {k - 1}")
    return better, worse
