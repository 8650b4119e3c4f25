"""A parsed source row, the faults of rows, and the checks that all schemas share."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from rmtrain.data.types import Conversation, Preference, Row, as_json, without_nulls

TEMPLATE_COLUMNS = ("tools", "documents", "chat_template_kwargs")  # columns for a chat template beside the messages
# transformers' own arguments, which are not template variables
_NOT_VARIABLES = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize", "padding"}
    | {"truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs", "continue_final_message"}
    | {"return_assistant_tokens_mask", "sanitize_control_tokens", "strftime_now"}
)

WRONG_TYPE = "wrong type"
MALFORMED = "malformed transcript"
MISSING = "missing value"
NO_COMMON_PROMPT = "no common prompt"
OTHER_PROMPT = "the prompt is not that of the answers"
UNANSWERED = "does not end with the assistant"
BAD_PREFERENCE = "bad preference"
EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"
UNRATED = "unrated completion"

_SHOWN = 40  # characters of a value in a message
_NAMED = 40  # columns in a message


class RowFault(Exception):  # noqa: N818 - describes a row; never shown as an error by itself
    """A row that its schema can't read.

    Args:
        cause: a short description, the same for all rows with this fault; the ledger counts rows under it.
        column: the column with the fault; empty for the whole row.
        value: the column's value; shown only with `wanted`.
        wanted: the expected value.
    """

    def __init__(self, cause: str, column: str = "", value: object = None, wanted: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        contents = f" holds {shown(value)}, expected {wanted}" if wanted else ""
        self.detail = f"{cause}: column {column}{contents}" if column else cause


def shown(value: object) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:_SHOWN]}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= _SHOWN else value[:_SHOWN] + '…'!r}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} that begins with {shown(value[0])}" if value else "an empty list"
    if isinstance(value, Mapping):
        keys = ", ".join(repr(str(key)[:_SHOWN]) for key in list(value)[:4])
        return f"an object with {keys}" if value else "an empty object"
    return f"a {type(value).__name__}"


def named(columns: Iterable[str]) -> str:
    """The names of columns for messages: in order, and the number of those beyond the first forty."""
    names = sorted(columns)
    return ", ".join(names if len(names) <= _NAMED else [*names[:_NAMED], f"and {len(names) - _NAMED:,} more"])


_MEDIA = {name: kind for kind in ("image", "video", "audio") for name in (kind, f"{kind}s")}  # as TRL names them


def refuse_media(row: Row) -> None:
    """Refuse a row of which a part is no text, in the columns where TRL and others keep it.

    Raises:
        RowFault: there is one.
    """
    for name, kind in _MEDIA.items():
        if value := row.get(name):
            raise RowFault(
                f"content of type {kind}", name, value, "texts alone: leave the column out if they are whole"
            )


class ParsedRow(NamedTuple):
    """A parsed row, before preferences are chosen."""

    prompt: Conversation
    completions: tuple[Conversation, ...]  # K
    stated: tuple[Preference, ...] | None = None  # the preferences that the row states; None: it states none
    scores: tuple[float | None, ...] | None = None  # K, or None if the source has no scores
    faults: tuple[str | None, ...] | None = None  # K: why a completion can't be ranked; None: it can
    id: str | None = None
    source: str = ""
    suspect: int = 0  # completions whose overall score shows the known error of UltraFeedback
    arguments: str = ""  # as in PreferenceGroup
    weight: float = 1.0  # of the whole row in the loss; stated preferences may have their own beside it

    def unweighted(self) -> "ParsedRow":
        """The row without weights."""
        stated = self.stated and tuple(preference._replace(weight=1.0) for preference in self.stated)
        return self._replace(stated=stated, weight=1.0)


def is_there(rows: Iterable[Row], path: str) -> bool:
    """Whether any row has a column, or a value under the keys of a path."""
    return any(path in row or value_at(row, path) is not None for row in rows)


def value_at(row: Row, path: str) -> Any:
    """The value of a column, or at a path of nested keys such as `data.question`; None if missing."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """A row with columns, or values inside its objects, renamed by the recipe."""
    renamed = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    nested = {ours: value_at(row, theirs) for ours, theirs in columns.items() if "." in theirs and theirs not in row}
    renamed |= {ours: value for ours, value in nested.items() if value is not None}
    return {name: value for name, value in row.items() if name not in columns.values()} | renamed


def row_id(row: Row) -> str | None:
    """The row's own id: `id`, else `prompt_id`."""
    for key in ("id", "prompt_id"):
        value = row.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def row_source(row: Row, *columns: str) -> str:
    """The row's source for figures by source: the first of `columns` with text, or with a list of one text."""
    values = (value[0] if isinstance(value, list) and len(value) == 1 else value for value in map(row.get, columns))
    return next((value for value in values if isinstance(value, str) and value), "")


def number(value: object, column: str = "") -> float | None:
    """A finite number, also from text as CSV has it; None for null, empty text and N/A.

    Raises:
        RowFault: anything else.
    """
    if value is None or (isinstance(value, str) and value.strip().upper() in ("", "N/A", "NA")):
        return None
    if isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(result := float(value)):
                return result
    raise RowFault(WRONG_TYPE, column, value, "a finite number")


def template_arguments(row: Row) -> str:
    """JSON of what a row gives the chat template beside messages: `tools`, `documents` and `chat_template_kwargs`.

    Raises:
        RowFault: one of them, which may be JSON text, does not fit `apply_chat_template`.
    """
    arguments: Row = {}
    for name, kind in zip(TEMPLATE_COLUMNS, (list, list, dict), strict=True):
        value = cell = row.get(name)
        if isinstance(cell, str) and cell.strip():
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(cell)
        if not value:
            continue
        if not isinstance(value, kind) or (kind is list and not all(isinstance(entry, dict) for entry in value)):
            wanted = "an object, or its JSON" if kind is dict else "a list of objects, or its JSON"
            raise RowFault(WRONG_TYPE, name, cell, wanted)
        arguments[name] = without_nulls(value)
    variables = arguments.pop("chat_template_kwargs", {})
    if reserved := sorted(_NOT_VARIABLES & variables.keys()):
        raise RowFault("not a variable of a chat template", TEMPLATE_COLUMNS[2], reserved[0], "variables")
    return as_json({**arguments, **variables})


def is_texts(value: object) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)


def rating_faults(scores: tuple[float | None, ...] | None) -> tuple[str | None, ...] | None:
    """For each completion, why it can't be ranked: it has no score."""
    return tuple(UNRATED if score is None else None for score in scores) if scores else None


def score_gap(scores: tuple[float | None, ...] | None, better: int, worse: int) -> float | None:
    """The difference of two scores; None unless both exist."""
    a, b = (scores[better], scores[worse]) if scores else (None, None)
    return None if a is None or b is None else a - b


def is_empty(completion: Conversation) -> bool:
    """Whether a completion's last message has no text and calls no tool."""
    return not completion[-1].content.strip() and not completion[-1].calls


def empty_cause(row: ParsedRow) -> str | None:
    """The cause for rows with an empty prompt, or with fewer than two non-empty completions."""
    asked = [message for message in row.prompt if message.role != "system"] or row.prompt
    if not any(message.content.strip() or message.calls for message in asked):
        return EMPTY_PROMPT
    empty = sum(map(is_empty, row.completions))
    return EMPTY_COMPLETION if empty and len(row.completions) - empty < 2 else None
