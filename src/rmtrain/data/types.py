"""The central value: a prompt, its K completions, and the preferences among them."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from rmtrain.json_values import JsonObject

Row = dict[str, Any]  # a source row: column → value
TOKENS = "tokens"  # the role of a message of token ids, which no row can have; its content is their JSON
_CALLS = ("tool_calls", "function_call")


class Message(NamedTuple):
    """One turn of a conversation, for chat templates."""

    role: str  # "system", "user", "assistant", or another role of the template
    content: str  # "" if the source has null
    fields: str = ""  # JSON of the message's other keys, such as tool_calls; "" for none

    @property
    def calls(self) -> str:
        """JSON of the tool calls of the turn; "" for none."""
        fields = from_json(self.fields)
        return as_json({key: fields[key] for key in _CALLS if fields.get(key)})

    def as_dict(self) -> JsonObject:
        """The message in the form that chat templates take."""
        return {"role": self.role, "content": self.content, **from_json(self.fields)}


Conversation = tuple[Message, ...]


def of_ids(ids: list[int]) -> Message:
    """Token ids as a message."""
    return Message(TOKENS, json.dumps(ids))


def holds_ids(conversations: Iterable[Conversation]) -> bool:
    """Whether any of the conversations holds token ids."""
    return any(message.role == TOKENS for conversation in conversations for message in conversation)


def ids_in(conversation: Conversation) -> list[int] | None:
    """The token ids of a conversation of token ids; None for one of messages."""
    if not conversation or conversation[0].role != TOKENS:
        return None
    return [token for message in conversation for token in json.loads(message.content)]


def as_json(values: dict[str, Any]) -> str:
    """JSON of an object, with keys in the order that templates print; "" for an empty one."""
    return json.dumps(values, ensure_ascii=False, default=str) if values else ""


def without_nulls(value: Any) -> Any:
    """A JSON value without the keys of objects that hold null, at any depth.

    A Parquet column of objects has the keys of all its rows, so a tool call has null for each argument of other tools.
    """
    return json.loads(json.dumps(value, default=str), object_hook=_without_null_keys)


def _without_null_keys(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def from_json(text: str) -> Any:
    """The object from the text of `as_json`."""
    return json.loads(text) if text else {}


class Preference(NamedTuple):
    """Completion `better` is preferred to completion `worse` (indices into the group's completions)."""

    better: int
    worse: int
    gap: float | None = None  # score difference on the source's scale; None if the source has no scores
    probability: float = 1.0  # that `better` is better: the share of raters who say so, 0.5 for a tie
    weight: float = 1.0  # in the loss, relative to other preferences

    def __repr__(self) -> str:
        """Omits a probability or weight of 1, so that digests over the `repr` of groups stay as in earlier versions."""
        soft = "" if self.probability == 1.0 else f", probability={self.probability!r}"
        weight = "" if self.weight == 1.0 else f", weight={self.weight!r}"
        return f"Preference(better={self.better!r}, worse={self.worse!r}, gap={self.gap!r}{soft}{weight})"


def right_over_wrong(right: int, wrong: int) -> tuple[Preference, ...]:
    """Each of the first `right` completions is preferred to each of the `wrong` ones after them."""
    return tuple(Preference(better, worse) for better in range(right) for worse in range(right, right + wrong))


class PreferenceGroup(NamedTuple):
    """A prompt with K completions and the preferences among them.

    A pair is K = 2 with the one preference (0, 1). A group without preferences can be scored but not trained on.
    Manifests hold digests over the `repr` of groups, so a new field needs a default that leaves `repr` unchanged.
    """

    id: str  # unique within its split
    prompt: Conversation  # may be empty, if a source has only whole texts
    completions: tuple[Conversation, ...]  # K; each holds the messages that follow the prompt, usually one
    preferences: tuple[Preference, ...]
    source: str = ""  # the subset or origin, for figures by source
    scores: tuple[float, ...] | None = None  # K graded scores, if the source has them
    arguments: str = ""  # JSON of the chat template's other arguments, such as tools


def has_votes(groups: Iterable[PreferenceGroup]) -> bool:
    """Whether any preference has a probability below 1."""
    return any(preference.probability != 1.0 for group in groups for preference in group.preferences)


def has_weights(groups: Iterable[PreferenceGroup]) -> bool:
    """Whether any preference has another weight than 1."""
    return any(preference.weight != 1.0 for group in groups for preference in group.preferences)
