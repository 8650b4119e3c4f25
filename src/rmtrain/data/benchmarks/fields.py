"""Typed fields of a benchmark's published row, and the preference group made of them; faults are ValueErrors."""

from collections.abc import Sequence
from typing import Any

from rmtrain.data.schemas.messages import conversation
from rmtrain.data.schemas.rows import RowFault, is_texts, row_id
from rmtrain.data.types import Conversation, Message, PreferenceGroup, Row, right_over_wrong


def text_in(row: Row, column: str) -> str:
    """A column's text."""
    value = _value(row, column)
    if not isinstance(value, str):
        raise ValueError(f"{column} is not text")
    return value


def texts_in(row: Row, column: str) -> list[str]:
    """A column with a non-empty list of texts."""
    value: list[str] = _value(row, column)
    if not is_texts(value):
        raise ValueError(f"{column} is not a list of texts")
    return value


def id_in(row: Row) -> str:
    """The row's `id` as text."""
    _value(row, "id")
    name = row_id(row)
    if name is None:
        raise ValueError("id is neither text nor a whole number")
    return name


def prompt_in(row: Row) -> Conversation:
    """The row's `prompt`: text, or messages."""
    value = _value(row, "prompt")
    try:
        return user_turn(value) if isinstance(value, str) else conversation(value)
    except RowFault as fault:
        raise ValueError(f"prompt is neither text nor messages: {fault.cause}") from None


def user_turn(text: str) -> Conversation:
    """One user message with exactly this text: prompts of benchmarks are never parsed as transcripts."""
    return (Message("user", text),)


def right_and_wrong(
    name: str, prompt: Conversation, right: Sequence[str], wrong: Sequence[str], subset: str
) -> PreferenceGroup:
    """A group in which every right completion is preferred to every wrong one."""
    return PreferenceGroup(
        id=name,
        prompt=prompt,
        completions=tuple((Message("assistant", text),) for text in [*right, *wrong]),
        preferences=right_over_wrong(len(right), len(wrong)),
        source=subset,
    )


def _value(row: Row, column: str) -> Any:
    value = row.get(column)
    if value is None:
        raise ValueError(f"no {column}; the row has: {', '.join(key for key in row if row[key] is not None)}")
    return value
