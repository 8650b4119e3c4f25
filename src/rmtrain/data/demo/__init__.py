"""The built-in `demo` source: preference groups made by rule, of any number, with grades that can be verified.

Rows have the columns of raw UltraFeedback. Neither length nor any single word, position or model name tells the better
completion: a model has to read it against the prompt.
"""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rmtrain.data.demo.questions import draw_question
from rmtrain.data.demo.row import make_row
from rmtrain.errors import DataError

SPLITS = ("train", "validation", "test")
MAX_ROWS = 20_000  # a split; the prompts of the smaller families run out some way above it


def demo_rows(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The first `count` rows of a split.

    Rows are the same in every process and Python version, and row i does not depend on `count`. No prompt recurs within
    a split, and no two splits share a prompt, whatever their seeds.

    Raises:
        DataError: `count` is above `MAX_ROWS`.
    """
    if count > MAX_ROWS:
        raise DataError(
            f"the demo source can't make {count} rows of split {split!r}", f"ask for at most {MAX_ROWS} rows of a split"
        )
    return list(islice(_rows(split, seed), count))


def _rows(split: str, seed: int) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for index in range(MAX_ROWS):
        rng = random.Random(f"{seed}/{split}/{index}")
        question = draw_question(rng)
        while question.prompt in seen or _split_of(question.key) != split:
            question = draw_question(rng)
        seen.add(question.prompt)
        yield make_row(rng, question)


def _split_of(key: str) -> str:
    """The split that a question belongs to, by the hash of its canonical parameters; half of all are train."""
    digest = hashlib.sha256(key.encode()).digest()
    return ("train", "train", "validation", "test")[digest[0] % 4]
