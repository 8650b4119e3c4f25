"""Readers of rows that no RowSchema can describe: K completions, raw UltraFeedback, HH-RLHF and ms-swift."""

from typing import Any

from rmtrain.data.schemas.messages import completion_of, list_in, listed, prompt_of, transcript
from rmtrain.data.schemas.prompts import split_prompt
from rmtrain.data.schemas.rows import (
    BAD_PREFERENCE,
    MISSING,
    NO_COMMON_PROMPT,
    UNRATED,
    WRONG_TYPE,
    ParsedRow,
    RowFault,
    number,
    rating_faults,
    score_gap,
)
from rmtrain.data.schemas.schema import Scores, pair_scores
from rmtrain.data.types import Message, Preference, Row
from rmtrain.recipe.data_schema import Ratings

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
RECORDING_FAULT = "overall score of 10 with a fine-grained mean of 2 or less"
_FAULTY_OVERALL, _FAULTY_MEAN = 10, 2  # copies before 2023-12-29 hold scores of 1 as 10


def read_completions(row: Row) -> ParsedRow:
    """A prompt and K completions, with `preferences` as [better, worse] indices and `scores`, both optional."""
    values = listed(row.get("completions"), "completions")
    completions = tuple(completion_of(value, f"completions[{place}]") for place, value in enumerate(values))
    scores = _scores(row.get("scores"), len(completions))
    return ParsedRow(
        prompt=prompt_of(row.get("prompt")),
        completions=completions,
        stated=_stated(row.get("preferences"), scores, len(completions)),
        scores=scores,
        faults=rating_faults(scores) if row.get("preferences") is None else None,
    )


def _scores(values: object, k: int) -> Scores | None:
    if values is None or values == "":
        return None
    entries = list_in(values)
    if entries is None or len(entries) != k:
        raise RowFault(WRONG_TYPE, "scores", values, f"a list of {k} numbers, one for each completion")
    return tuple(number(value, "scores") for value in entries)


def _stated(values: object, scores: Scores | None, k: int) -> tuple[Preference, ...] | None:
    if values is None or values == "":
        return None
    entries = list_in(values)
    if entries is None:
        raise RowFault(WRONG_TYPE, "preferences", values, "a list of [better, worse] numbers")
    pairs = [_indices(value, k) for value in entries]
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


def read_ultrafeedback(row: Row, score: Ratings = "fine_grained") -> ParsedRow:
    """`instruction` and `completions` with their annotations (arXiv 2310.01377).

    `fine_grained` is the mean of the four aspect ratings, "N/A" left out, or the row's `fine-grained_score` if none is
    rated; `overall` is `overall_score`. A completion with neither can't be ranked. An overall score of 10 with a
    fine-grained mean of 2 or less is a known error of the source: such a completion is left out when ranking by
    `overall`, and otherwise only counted. The completions' `custom_system_prompt`, which was used to vary them, is not
    part of the prompt.

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
            cause = MISSING if response is None else WRONG_TYPE
            raise RowFault(cause, f"completions[{place}].response", response, "text")
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
        suspect=suspect,
    )


def _fine_grained(entry: Row) -> float | None:
    annotations: Any = entry.get("annotations")
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


def read_hh_rlhf(row: Row) -> ParsedRow:
    """Two transcripts; their common beginning is the prompt."""
    prompt, completions = split_prompt([transcript(row.get(column), column) for column in ("chosen", "rejected")])
    return ParsedRow(prompt, completions, (Preference(0, 1),))


def read_swift(row: Row) -> ParsedRow:
    """`messages` that end with the better answer, and `rejected_response` as the worse one."""
    *prompt, chosen = completion_of(row.get("messages"), "messages")
    if not prompt:
        raise RowFault(NO_COMMON_PROMPT)
    rejected = completion_of(row.get("rejected_response"), "rejected_response")
    scores, gap = pair_scores(row)
    return ParsedRow(tuple(prompt), ((chosen,), rejected), (Preference(0, 1, gap),), scores)
