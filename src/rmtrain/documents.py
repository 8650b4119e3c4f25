"""The JSON files of runs and results: their types, and readers that check them."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rmtrain.errors import DataError
from rmtrain.json_values import DIGITS

Count = Annotated[int, Field(ge=0, lt=10**DIGITS)]
Figure = float | None  # finite
Shape = TypeVar("Shape")


class Document(TypedDict, total=False):
    """A JSON object with typed entries; other entries are allowed."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")  # type: ignore[misc]


class Source(Document, total=False):
    """The rows that were scored."""

    source: str
    revision: str | None
    fingerprint: str | None


class Part(Document, total=False):
    """Accuracy of a source or a subset."""

    n: Required[Count]
    accuracy: Required[float]
    low: Figure
    high: Figure
    accuracy_half: Figure
    ties: Count | None
    length_baseline: Figure


class Sizes(Document, total=False):
    """Number of rows, and their published number."""

    n: Required[Count]
    expected: Required[Count]


class Section(Document, total=False):
    """Scores of a section, or of the prior sets."""

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
    """Scores by the formulas of an era."""

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


class ParityStep(Document, total=False):
    """One step from the leaderboard's way of scoring RewardBench 1 to rmtrain's."""

    rung: str
    accuracy: Figure
    mean_of_sections: Figure
    to_right: Count
    to_wrong: Count
    ties: Count


class Parity(Document, total=False):
    """The steps from the leaderboard's way of scoring to rmtrain's."""

    ladder: list[ParityStep]


class Result(Document, total=False):
    """A result of `eval`, `rewardbench` or `compare`."""

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
    by_entry: dict[str, Part]
    mean_accuracy: Figure
    votes: dict[str, Figure] | None
    # of rewardbench; `ties` is a count in eval, and the terms of the Ties subset in RewardBench 2
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
    training_check: dict[str, Any] | None
    asked: dict[str, Any]


class LedgerRecord(Document, total=False):
    """Rows or preferences: kept + dropped by cause = total."""

    total: Count
    kept: Count
    dropped: dict[str, Count]


class Split(Document, total=False):
    """A split that a run used."""

    source: str
    revision: str | None
    fingerprint: str
    rows: LedgerRecord
    preferences: LedgerRecord
    checks: list[dict[str, Any]]
    groups: Count
    truncated: Count
    dropped_over_length: Count
    entries: dict[str, dict[str, Any]]


class Manifest(Document, total=False):
    """The state of a run."""

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
    model: dict[str, str | None]  # name and commit of the base
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
    eval_mean_accuracy: Figure  # over the entries of a mixture; each has a key of its own, `eval_accuracy/NAME`


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def sound(value: Mapping[str, Any], shape: type[Shape]) -> tuple[Shape, list[str]]:
    """The valid entries of a JSON object, and a sentence on each invalid one."""
    faults: dict[str, str] = {}
    while True:
        try:
            return _adapter(shape).validate_python(value), list(faults.values())
        except ValidationError as error:
            wrong = {str(fault["loc"][0]): _sentence(fault) for fault in error.errors() if fault["loc"]}
            if not wrong.keys() & value.keys():  # a required entry is missing
                raise DataError(next(iter(wrong.values()), "not a JSON object")) from None
            faults |= wrong
            value = {key: entry for key, entry in value.items() if key not in wrong}


def checked(value: Any, shape: type[Shape], path: Path | None = None, hint: str = "") -> Shape:
    """A JSON object, checked; `path` is its file, for the message.

    Raises:
        DataError: an entry has another type than in `shape`, or it is no object.
    """
    try:
        document: Shape = _adapter(shape).validate_python(value)
    except ValidationError as error:
        message = _sentence(error.errors()[0])
        raise DataError(f"{path}: {message}" if path is not None else message, hint) from None
    return document


def _sentence(fault: Mapping[str, Any]) -> str:
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg'].lower()}" if where else str(fault["msg"]).lower()
