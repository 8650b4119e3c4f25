"""The built-in `demo` source: the rows that scripts/make_demo.py makes, in the columns of raw UltraFeedback."""

import json
import lzma
from itertools import islice
from pathlib import Path
from typing import Any

from rmtrain.errors import DataError

ROWS = {"train": 4000, "validation": 2000, "test": 2000}  # by split


def demo_rows(split: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a split.

    Raises:
        DataError: the split has fewer rows.
    """
    if count > ROWS[split]:
        raise DataError(
            f"data.demo_groups.{split} = {count}: the demo source has {ROWS[split]} rows in this split",
            f"ask for at most {ROWS[split]}",
        )
    with lzma.open(Path(__file__).parent / f"{split}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]
