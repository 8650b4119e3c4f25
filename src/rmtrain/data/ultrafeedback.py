"""Raw UltraFeedback rows: four completions, each with aspect ratings and an overall score (arXiv 2310.01377)."""

from typing import Any, Literal

from rmtrain.data.rows import MISSING, WRONG_TYPE, ParsedRow, Row, RowFault, number, row_id, row_source
from rmtrain.data.types import Message

Score = Literal["fine_grained", "overall"]

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
UNRATED = "unrated completion"
RECORDING_FAULT = "overall score of 10 with a fine-grained mean of 2 or less"
_FAULTY_OVERALL, _FAULTY_MEAN = 10, 2  # copies before 2023-12-29 hold scores of 1 as 10


def parse_ultrafeedback(row: Row, score: Score = "fine_grained") -> ParsedRow:
    """Read a row of `instruction` and `completions[...]`.

    `fine_grained` is the mean of the four aspect ratings, "N/A" left out, or the row's `fine-grained_score` where none
    is rated; `overall` is `overall_score`. A completion with neither can't be ranked. An overall score of 10 beside a
    fine-grained mean of 2 or less is a recording fault of the source: it rules the completion out when ranking by
    `overall`, and is only counted otherwise. The completions' `custom_system_prompt` was a means of making them differ
    and is no part of the prompt.

    Raises:
        RowFault: the row does not have this shape.
    """
    instruction, entries = row.get("instruction"), row.get("completions")
    if instruction is None or not entries:
        raise RowFault(MISSING, "instruction" if instruction is None else "completions")
    if not isinstance(instruction, str):
        raise RowFault(WRONG_TYPE, "instruction", instruction, "text")
    if not isinstance(entries, list):
        raise RowFault(WRONG_TYPE, "completions", entries, "a list of objects")
    completions, scores, faults = [], [], []
    suspect = 0
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise RowFault(WRONG_TYPE, f"completions[{place}]", entry, "an object with `response` and `annotations`")
        response = entry.get("response")
        if not isinstance(response, str):
            raise RowFault(
                MISSING if response is None else WRONG_TYPE, f"completions[{place}].response", response, "text"
            )
        fine_grained, overall = _fine_grained(entry), number(entry.get("overall_score"), "overall_score")
        faulty = overall == _FAULTY_OVERALL and fine_grained is not None and fine_grained <= _FAULTY_MEAN
        suspect += faulty
        value = overall if score == "overall" else fine_grained
        completions.append((Message("assistant", response),))
        scores.append(value)
        faults.append(UNRATED if value is None else RECORDING_FAULT if faulty and score == "overall" else None)
    return ParsedRow(
        prompt=(Message("user", instruction),),
        completions=tuple(completions),
        scores=tuple(scores),
        faults=tuple(faults),
        id=row_id(row),
        source=row_source(row, "source"),
        suspect=suspect,
    )


def _fine_grained(entry: dict[str, Any]) -> float | None:
    annotations = entry.get("annotations")
    if annotations is not None and not isinstance(annotations, dict):
        raise RowFault(WRONG_TYPE, "annotations", annotations, "an object with the aspects")
    ratings = []
    for aspect in ASPECTS:
        annotation = (annotations or {}).get(aspect)
        if annotation is not None and not isinstance(annotation, dict):
            raise RowFault(WRONG_TYPE, aspect, annotation, "an object with `Rating`")
        rating = number((annotation or {}).get("Rating"), f"{aspect}.Rating")
        if rating is not None:
            ratings.append(rating)
    return sum(ratings) / len(ratings) if ratings else number(entry.get("fine-grained_score"), "fine-grained_score")
