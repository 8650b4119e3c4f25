"""The JSON files of runs and results: read within bounds, each entry by its type."""

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rmtrain.errors import DataError, InputError
from rmtrain.files import read_text

_DIGITS = 18  # of a whole number: more than is ever counted, and all that a float or an array takes
_DEPTH = 50

Count = Annotated[int, Field(ge=0, lt=10**_DIGITS)]
Figure = float | None  # finite
Shape = TypeVar("Shape", bound=Mapping[str, Any])


class Document(TypedDict, total=False):
    """A JSON object whose entries have types; further entries are let be."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")  # type: ignore[misc]


class Source(Document, total=False):
    """The rows that were scored."""

    source: str
    revision: str | None
    fingerprint: str | None


class Part(Document, total=False):
    """Figures of a source or a subset."""

    n: Required[Count]
    accuracy: Required[float]
    low: Figure
    high: Figure
    accuracy_half: Figure
    ties: Count | None
    length_baseline: Figure


class Sizes(Document, total=False):
    """Rows there are, and rows published."""

    n: Required[Count]
    expected: Required[Count]


class Section(Document, total=False):
    """Figures of a section, or of the prior sets."""

    score: Figure
    low: Figure
    high: Figure
    score_half: Figure
    ties: Count | None
    length_baseline: Figure
    hard: Figure
    normal: Figure
    easy: Figure
    subsets: dict[str, Part]


class Score(Document, total=False):
    """Figures by the formulas of an era."""

    mean_of_sections: Figure
    low: Figure
    high: Figure
    mean_half: Figure
    length_baseline: Figure
    with_prior_sets: Figure
    with_prior_low: Figure
    with_prior_high: Figure
    with_prior_half: Figure
    with_prior_length_baseline: Figure
    sections: dict[str, Figure]
    prior_sets: Figure
    hard: Figure
    normal: Figure
    easy: Figure


class Policy(Document, total=False):
    """How a policy was scored."""

    reference: str | None
    log_probabilities: str
    prompt: str


class Rung(Document, total=False):
    """One way of scoring RewardBench 1 on the way from the leaderboard's to rmtrain's."""

    rung: str
    accuracy: Figure
    mean_of_sections: Figure
    to_right: Count
    to_wrong: Count
    ties: Count


class Parity(Document, total=False):
    """From the leaderboard's way of scoring to rmtrain's."""

    ladder: list[Rung]


class Result(Document, total=False):
    """A result of `eval`, of `rewardbench`, or of rows that `compare` has scored."""

    ckpt: str | None
    n: Count
    truncated: Count | None
    rows: str | None
    data: Source
    weights_fingerprint: str
    dtype: str
    max_length: Count
    published: dict[str, Any] | None
    policy: Policy
    # of eval
    split: str
    groups: Count
    accuracy: Figure
    accuracy_low: Figure
    accuracy_high: Figure
    accuracy_strict: Figure
    loss: Figure
    reward_gap: Figure
    length_baseline: Figure
    reward_length_correlation: Figure
    ece: Figure
    brier: Figure
    by_source: dict[str, Part]
    # of rewardbench; `ties` is a count of eval, and of RewardBench 2 the terms of its Ties
    benchmark: str
    ties: Count | dict[str, Figure]
    subsets: dict[str, Part]
    sections: dict[str, Section | None]
    scores: dict[str, Score]
    prior_sets: Section | None
    missing_subsets: list[str]
    incomplete_subsets: dict[str, Sizes]
    unknown_subsets: list[str]
    prior_data: list[Source] | None
    parity: Parity
    asked: dict[str, Any]


class Books(Document, total=False):
    """Rows or preferences: kept + dropped by cause = total."""

    total: Count
    kept: Count
    dropped: dict[str, Count]


class Split(Document, total=False):
    """A split that a run used."""

    source: str
    revision: str | None
    fingerprint: str
    rows: Books
    preferences: Books
    groups: Count
    truncated: Count
    dropped_over_length: Count


class Model(Document, total=False):
    """The base of a run."""

    name: str
    commit: str | None


class Manifest(Document, total=False):
    """What a run is and how far it came."""

    state: Required[Literal["running", "finished", "failed", "interrupted"]]
    started: str
    ended: str | None
    error: str | None
    recipe: str
    command: list[str]
    seed: Count
    processes: Count
    python: str
    versions: dict[str, str | None]
    git_commit: str | None
    model: Model
    data: dict[str, Split]
    steps: Count
    totals: dict[str, float]
    resumed: list[dict[str, Any]]


class LogLine(Document, total=False):
    """A line of metrics.jsonl."""

    step: Required[Count]
    steps: Count
    loss: Figure
    accuracy: Figure
    reward_gap: Figure
    learning_rate: Figure
    grad_norm: Figure
    tokens_per_second: Figure
    eval_loss: Figure
    eval_accuracy: Figure


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def parse_json(text: str, odd: Callable[[str], Any] = lambda number: None) -> Any:
    """A value from JSON; `odd` makes a value of a number that is not finite, or has more digits than any count.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """

    def whole(digits: str) -> Any:
        return int(digits) if len(digits) <= _DIGITS else odd(digits)

    def fraction(number: str) -> Any:
        return value if math.isfinite(value := float(number)) else odd(number)

    try:
        value = json.loads(text, parse_int=whole, parse_float=fraction, parse_constant=fraction)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level := [part for outer in level for part in _parts(outer)]:
        depth += 1
        if depth > _DEPTH:
            raise ValueError("it is nested too deeply")
    return value


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def read_json(
    path: Path,
    hint: str = "",
    error: type[InputError] = DataError,
    odd: Callable[[str], Any] = lambda number: None,
) -> Any:
    """What a JSON file holds; `odd` is that of `parse_json`.

    Raises:
        InputError: of the class asked for: it can't be read, is no JSON, or is beyond the bounds of `parse_json`.
    """
    try:
        return parse_json(read_text(path, error=error), odd)
    except ValueError as fault:
        raise error(f"{path}: can't be read as JSON: {fault}", hint) from None


def sound(value: Mapping[str, Any], shape: type[Shape]) -> tuple[Shape, list[str]]:
    """The entries of a JSON object that have the types of its shape, and what is wrong with each of the others."""
    faults: dict[str, str] = {}
    while True:
        try:
            return _adapter(shape).validate_python(value), list(faults.values())
        except ValidationError as error:
            found = {str(fault["loc"][0]): _told(fault) for fault in error.errors() if fault["loc"]}
            if not found.keys() & value.keys():  # a required entry is missing
                raise DataError(next(iter(found.values()), "not a JSON object")) from None
            faults |= found
            value = {key: entry for key, entry in value.items() if key not in found}


def checked(value: Any, shape: type[Shape], path: Path, hint: str = "") -> Shape:
    """A JSON object all of whose entries have the types of its shape.

    Raises:
        DataError: one has not, or it is no object.
    """
    try:
        found: Shape = _adapter(shape).validate_python(value)
    except ValidationError as error:
        raise DataError(f"{path}: {_told(error.errors()[0])}", hint) from None
    return found


def _told(fault: Mapping[str, Any]) -> str:
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg'].lower()}" if where else str(fault["msg"]).lower()
