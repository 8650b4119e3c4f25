"""Rows of the benchmarks as their authors publish them → preference groups, the right completions first."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from rmtrain.data.rows import Row, RowFault, conversation, is_texts, row_id
from rmtrain.data.types import Conversation, Message, Preference, PreferenceGroup
from rmtrain.metrics import rewardbench2, rm_bench

JUDGEBENCH_SECTIONS = {  # section → how the sources of its questions begin
    "Knowledge": "mmlu-pro",
    "Reasoning": "livebench-reasoning",
    "Math": "livebench-math",
    "Coding": "livecodebench",
}


def rewardbench1_group(row: Row) -> PreferenceGroup:
    """`prompt`, `chosen`, `rejected`, `subset`; the prompt is text, or messages in the prior sets.

    Raises:
        ValueError: what the row lacks. So do the functions below.
    """
    subset = _text(row, "subset")
    right, wrong = [_text(row, "chosen")], [_text(row, "rejected")]
    return _group(f"{subset}/{_id(row)}", _prompt(row), right, wrong, subset)


def rewardbench2_group(row: Row) -> PreferenceGroup:
    """`id`, `prompt`, `chosen` [one, or in Ties many], `rejected` [many], `subset`; Ties rows keep their id."""
    names = {name.lower(): name for name in rewardbench2.SUBSETS}
    subset = _text(row, "subset")
    subset = names.get(subset.lower(), subset)
    right, wrong = _texts(row, "chosen"), _texts(row, "rejected")
    stated = row.get("num_correct", len(right))
    if stated != len(right):
        raise ValueError(f"num_correct is {stated!r}, but there are {len(right)} chosen")
    name = _id(row)
    if subset == "Ties":
        ties_id(name)
    elif len(right) != 1:
        raise ValueError(f"chosen holds {len(right)} completions, expected 1")
    return _group(name if subset == "Ties" else f"{subset}/{name}", _prompt(row), right, wrong, subset)


def ties_id(name: str) -> tuple[str, str]:
    """Form and number of a RewardBench 2 Ties row, of its id `ref:N` or `tied:N`."""
    form, colon, number = name.partition(":")
    if form not in ("ref", "tied") or not colon or not number:
        raise ValueError(f"id {name!r} of a Ties row is neither ref:N nor tied:N")
    return form, number


def rm_bench_group(row: Row) -> PreferenceGroup:
    """`prompt`, `chosen` [3], `rejected` [3] (concise, detailed, markdown), `domain`."""
    domain = _text(row, "domain")
    right, wrong = _texts(row, "chosen"), _texts(row, "rejected")
    if not len(right) == len(wrong) == rm_bench.STYLES:
        raise ValueError(f"chosen and rejected hold {len(right)} and {len(wrong)} completions, expected 3 and 3")
    return _group(f"{domain}/{_id(row)}", _prompt(row), right, wrong, domain)


def judgebench_group(row: Row) -> PreferenceGroup:
    """`pair_id`, `question`, `response_A`, `response_B`, `label` (A>B or B>A), `source`; the section is the source."""
    source, label = _text(row, "source"), _text(row, "label")
    if label not in ("A>B", "B>A"):
        raise ValueError(f"label is {label!r}, expected A>B or B>A")
    better, worse = _text(row, f"response_{label[0]}"), _text(row, f"response_{label[2]}")
    section = next((name for name, start in JUDGEBENCH_SECTIONS.items() if source.startswith(start)), source)
    return _group(_text(row, "pair_id"), _asked(_text(row, "question")), [better], [worse], section)


def _group(name: str, prompt: Conversation, right: Sequence[str], wrong: Sequence[str], source: str) -> PreferenceGroup:
    """Every right completion is preferred to every wrong one."""
    pairs = product(range(len(right)), range(len(right), len(right) + len(wrong)))
    return PreferenceGroup(
        id=name,
        prompt=prompt,
        completions=tuple((Message("assistant", text),) for text in [*right, *wrong]),
        preferences=tuple(Preference(better, worse) for better, worse in pairs),
        source=source,
    )


def _value(row: Row, column: str) -> Any:
    value = row.get(column)
    if value is None:
        raise ValueError(f"no {column}; there are: {', '.join(key for key in row if row[key] is not None)}")
    return value


def _id(row: Row) -> str:
    _value(row, "id")
    name = row_id(row)
    if name is None:
        raise ValueError("id is neither text nor a whole number")
    return name


def _text(row: Row, column: str) -> str:
    value = _value(row, column)
    if not isinstance(value, str):
        raise ValueError(f"{column} is not text")
    return value


def _texts(row: Row, column: str) -> list[str]:
    value: list[str] = _value(row, column)
    if not is_texts(value):
        raise ValueError(f"{column} is not a list of texts")
    return value


def _prompt(row: Row) -> Conversation:
    value = _value(row, "prompt")
    try:
        return _asked(value) if isinstance(value, str) else conversation(value)
    except RowFault as fault:
        raise ValueError(f"prompt is neither text nor messages: {fault.cause}") from None


def _asked(text: str) -> Conversation:
    """A prompt as it stands: of a benchmark, even one that looks like a transcript is what was asked."""
    return (Message("user", text),)
