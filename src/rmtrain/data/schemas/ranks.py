"""Columns of ranks: the smallest is the best, while the largest score is."""

import re
from collections.abc import Mapping

from rmtrain.data.schemas.schema import RowSchema
from rmtrain.errors import DataError

_RANKS = re.compile(
    r"(?!.*(?:score|reward)s?$)(?:.*[^a-z])?rank(?:s|ing|ings)?(?:[^a-z].*)?", re.IGNORECASE | re.DOTALL
)


def is_rank(column: str) -> bool:
    """Whether a column, or the last key of a path, is named as ranks are: `rank`, `rank_a`, `human_ranking`."""
    return _RANKS.fullmatch(column.rpartition(".")[2]) is not None


def refuse_ranks_as_scores(schema: RowSchema, columns: Mapping[str, str]) -> None:
    """Raises DataError if renames make scores of ranks."""
    for ours, theirs in columns.items():
        if ours in schema.columns and "score" in ours and is_rank(theirs):
            raise DataError(
                f"data.columns makes {theirs} the column {ours}, but of ranks the smallest is the best",
                "leave out the renames of the answers and their ranks; data.answers with data.scores names both as "
                "they are, and reads ranks as ranks",
            )
