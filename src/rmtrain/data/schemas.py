"""Row schemas, told apart by their columns: one source row → its prompt, its completions and what it says of them."""

import re
from collections.abc import Callable, Collection
from itertools import product
from typing import Any, Literal

from rmtrain.data.rows import (
    BAD_PREFERENCE,
    MISSING,
    NO_COMMON_PROMPT,
    WRONG_TYPE,
    ParsedRow,
    Row,
    RowFault,
    common_prefix,
    completion_of,
    conversation,
    is_texts,
    number,
    prompt_of,
    row_id,
    row_source,
)
from rmtrain.data.types import Conversation, Message, Preference
from rmtrain.data.ultrafeedback import Score, parse_ultrafeedback
from rmtrain.errors import DataError

Schema = Literal["ultrafeedback", "pair", "hh_rlhf", "rewardbench", "completions"]

REQUIRED: dict[Schema, tuple[str, ...]] = {
    "ultrafeedback": ("instruction", "completions"),
    "pair": ("chosen", "rejected"),  # and `prompt`, unless both hold whole conversations
    "hh_rlhf": ("chosen", "rejected"),
    "rewardbench": ("prompt", "chosen", "rejected"),
    "completions": ("prompt", "completions"),
}
_SHOWN = "; ".join(
    f"{name}: {', '.join(columns)}{' (and prompt, unless these are messages)' if name == 'pair' else ''}"
    for name, columns in REQUIRED.items()
)
_TURN = re.compile(r"\n\n(Human|Assistant):")


def detect_schema(columns: Collection[str], sample: Row) -> Schema:
    """Tell the schema of a source by its columns, and by one row where two schemas share them.

    Raises:
        DataError: no schema has these columns; the message names the columns seen and what each schema requires.
    """
    seen = set(columns)
    if {"instruction", "completions"} <= seen:
        return "ultrafeedback"
    if {"prompt", "completions"} <= seen:
        return "completions"
    if {"chosen", "rejected"} <= seen:
        chosen = sample.get("chosen")
        if "prompt" in seen:
            return "rewardbench" if seen & {"subset", "domain"} or is_texts(chosen) else "pair"
        if isinstance(chosen, list):
            return "pair"
        if isinstance(chosen, str) and _TURN.search(f"\n\n{chosen.strip()}"):
            return "hh_rlhf"
    raise DataError(
        f"the columns ({', '.join(sorted(seen))}) are of no known row schema",
        f"data.columns renames them, data.row_schema states the schema. Known: {_SHOWN}",
    )


def check_columns(schema: Schema, columns: Collection[str]) -> None:
    """Make sure that a stated schema's columns are there.

    Raises:
        DataError: naming those that lack.
    """
    lacking = [column for column in REQUIRED[schema] if column not in columns]
    if lacking:
        raise DataError(
            f"row schema {schema} needs the column{'s'[: len(lacking) > 1]} {', '.join(lacking)}; "
            f"there are: {', '.join(sorted(columns))}",
            "data.columns renames columns, such as `chosen: response_a`",
        )


def row_parser(schema: Schema, score: Score) -> Callable[[Row], ParsedRow]:
    """The reader of one schema's rows; it raises `RowFault` on a row that it can't read, and nothing else."""
    if schema == "ultrafeedback":
        return lambda row: parse_ultrafeedback(row, score)
    return {"pair": _pair, "hh_rlhf": _hh_rlhf, "rewardbench": _rewardbench, "completions": _completions}[schema]


def _pair(row: Row) -> ParsedRow:
    """`chosen` and `rejected` as texts or as messages; messages hold the prompt too, or only what follows it."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        raise RowFault(MISSING)
    if type(chosen) is not type(rejected):
        raise RowFault(WRONG_TYPE)
    a, b = completion_of(chosen), completion_of(rejected)
    if a[0].role == b[0].role == "assistant":
        prompt = prompt_of(row.get("prompt"))
    else:
        prompt, a, b = _split_prompt(a, b, row.get("prompt"))
    scores, gap = _pair_scores(row)
    stated = (Preference(0, 1, gap),)
    return ParsedRow(prompt, (a, b), stated, scores, id=row_id(row), source=row_source(row, "source"))


def _split_prompt(
    a: Conversation, b: Conversation, stated: object = None
) -> tuple[Conversation, Conversation, Conversation]:
    """The longest common prefix of two whole conversations, and what follows it in each.

    Messages in a prompt column come before those, unless the conversations repeat them; of a repeated prompt, a system
    message that only the column has is kept.
    """
    shared = common_prefix(a, b)
    prompt = a[:shared]
    if isinstance(stated, list):
        messages = conversation(stated)
        system = messages[:1] if messages[0].role == "system" else ()
        if a[: len(messages)] != messages:
            repeated = a[: len(messages) - len(system)] == messages[len(system) :]
            prompt = system + prompt if repeated else messages + prompt
    if not prompt:
        raise RowFault(NO_COMMON_PROMPT)
    return prompt, a[shared:], b[shared:]


def _pair_scores(row: Row) -> tuple[tuple[float, float] | None, float | None]:
    """Both scores where the row has both, and their difference; else the row's `margin`, if it is not 0."""
    metadata = row.get("metadata")
    beside: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
    values = [number(row.get(key, beside.get(key))) for key in ("score_chosen", "score_rejected")]
    chosen, rejected = values
    if chosen is not None and rejected is not None:
        return (chosen, rejected), chosen - rejected
    return None, number(row.get("margin")) or None


def _hh_rlhf(row: Row) -> ParsedRow:
    """Two transcripts of `\\n\\nHuman:` and `\\n\\nAssistant:` turns; the prompt is what both begin with."""
    prompt, a, b = _split_prompt(_transcript(row.get("chosen")), _transcript(row.get("rejected")))
    return ParsedRow(prompt, (a, b), (Preference(0, 1),), id=row_id(row), source=row_source(row, "source"))


def _transcript(value: object) -> Conversation:
    if value is None:
        raise RowFault(MISSING)
    if not isinstance(value, str):
        raise RowFault(WRONG_TYPE)
    before, *parts = _TURN.split(f"\n\n{value.strip()}")
    speakers, texts = parts[::2], parts[1::2]
    expected = [("Human", "Assistant")[turn % 2] for turn in range(len(speakers))]
    if before.strip() or speakers != expected or not speakers or speakers[-1] != "Assistant":
        raise RowFault("malformed transcript")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], text.strip()) for who, text in zip(speakers, texts, strict=True))


def _rewardbench(row: Row) -> ParsedRow:
    """As `pair`, or with lists of right and wrong texts: each right one is preferred to each wrong one."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    source = row_source(row, "subset", "domain", "source")
    if not is_texts(chosen) and not is_texts(rejected):
        return _pair(row)._replace(source=source)
    if not chosen or not rejected:
        raise RowFault(MISSING)
    if not is_texts(chosen) or not is_texts(rejected):
        raise RowFault(WRONG_TYPE)
    right, wrong = range(len(chosen)), range(len(chosen), len(chosen) + len(rejected))
    stated = tuple(Preference(better, worse) for better, worse in product(right, wrong))
    completions = tuple(completion_of(text) for text in [*chosen, *rejected])
    return ParsedRow(prompt_of(row.get("prompt")), completions, stated, id=row_id(row), source=source)


def _completions(row: Row) -> ParsedRow:
    """A prompt and K completions, with `preferences` as [better, worse] indices and `scores` where there are any."""
    values = row.get("completions")
    if not values:
        raise RowFault(MISSING)
    if not isinstance(values, list):
        raise RowFault(WRONG_TYPE)
    completions = tuple(completion_of(value) for value in values)
    scores = _scores(row.get("scores"), len(completions))
    faults = tuple("unrated completion" if score is None else None for score in scores) if scores else None
    return ParsedRow(
        prompt=prompt_of(row.get("prompt")),
        completions=completions,
        stated=_stated(row.get("preferences"), scores, len(completions)),
        scores=scores,
        faults=faults if row.get("preferences") is None else None,
        id=row_id(row),
        source=row_source(row, "source", "subset"),
    )


def _scores(values: object, k: int) -> tuple[float | None, ...] | None:
    if values is None or values == "":
        return None
    if not isinstance(values, list) or len(values) != k:
        raise RowFault(WRONG_TYPE)
    return tuple(number(value) for value in values)


def _stated(values: object, scores: tuple[float | None, ...] | None, k: int) -> tuple[Preference, ...] | None:
    if values is None or values == "":
        return None
    if not isinstance(values, list):
        raise RowFault(WRONG_TYPE)
    pairs = [_indices(value, k) for value in values]
    if len({frozenset(pair) for pair in pairs}) != len(pairs):  # twice, or both ways round
        raise RowFault(BAD_PREFERENCE)
    return tuple(Preference(better, worse, _gap(scores, better, worse)) for better, worse in pairs)


def _indices(value: object, k: int) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or any(type(index) is not int for index in value):
        raise RowFault(BAD_PREFERENCE)
    better, worse = value
    if better == worse or not (0 <= better < k and 0 <= worse < k):
        raise RowFault(BAD_PREFERENCE)
    return better, worse


def _gap(scores: tuple[float | None, ...] | None, better: int, worse: int) -> float | None:
    a, b = (scores[better], scores[worse]) if scores else (None, None)
    return None if a is None or b is None else a - b
