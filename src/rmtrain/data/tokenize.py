"""PreferenceGroup → TokenizedGroup: each prompt's tokens once, then what each distinct completion adds."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.render import Renderer
from rmtrain.data.types import Conversation, Message, Preference, PreferenceGroup
from rmtrain.errors import DataError

Tokens = NDArray[np.int32]
OverLength = Literal["truncate_prompt", "truncate_completion", "drop", "error"]
Value = TypeVar("Value")

_CHUNK = 512  # groups tokenised in one call of the fast tokenizer, which works on them in parallel


class TokenizedGroup(NamedTuple):
    """A group's sequences, split at their longest common token prefix; equal ones are held once.

    Completion k is `prefix` followed by `suffixes[suffix_of[k]]`, so completions of the same tokens share one suffix,
    and with it one reward. No suffix is empty, since rewards are read at its last token. The split is by tokens, so it
    is exact whatever the chat template or the tokenizer do at the border of the prompt.
    """

    id: str
    source: str
    prefix: Tokens  # [P]
    suffixes: tuple[Tokens, ...]  # D distinct arrays of at least one token
    preferences: tuple[Preference, ...]  # between the K completions
    truncated: bool
    starts: tuple[int, ...] = ()  # D places at which the responses start; only where log-probabilities are asked for
    suffix_of: tuple[int, ...] = ()  # K indices of suffixes; empty: each completion has the suffix of its own number

    def spread(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """D values, one a suffix, as K values, one a completion."""
        return tuple(values[place] for place in self.suffix_of or range(len(values)))

    @property
    def identical(self) -> tuple[bool, ...]:
        """For each preference, whether both of its completions have the same tokens."""
        places = self.spread(range(len(self.suffixes)))
        return tuple(places[preference.better] == places[preference.worse] for preference in self.preferences)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each distinct sequence."""
        return tuple(len(self.prefix) + len(suffix) for suffix in self.suffixes)


def merge_equal(sequences: Iterable[Sequence[int]]) -> tuple[list[Sequence[int]], tuple[int, ...]]:
    """K sequences without repetitions, in their order, and which of them each of the K is."""
    places: dict[tuple[int, ...], int] = {}
    numbers = tuple(places.setdefault(tuple(sequence), len(places)) for sequence in sequences)
    return list(places), numbers


def split_prefix(sequences: Sequence[Sequence[int]]) -> tuple[Tokens, tuple[Tokens, ...]]:
    """Split K sequences at their longest common prefix, leaving each at least one token."""
    arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
    shared = min(len(array) for array in arrays) - 1
    for array in arrays[1:]:
        different = np.flatnonzero(array[:shared] != arrays[0][:shared])
        shared = int(different[0]) if len(different) else shared
    return arrays[0][:shared], tuple(array[shared:] for array in arrays)


def tokenize_groups(
    groups: Sequence[PreferenceGroup], renderer: Renderer, max_length: int, over_length: OverLength
) -> Iterator[TokenizedGroup | None]:
    """Tokenise groups in order; None stands for one dropped as over-length.

    All completions of a group keep the same part of their prompt, so that they are judged on the same question.

    Args:
        groups: what to tokenise.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        over_length: `truncate_prompt` cuts the oldest prompt text first, and a completion only where that is not
            enough; `truncate_completion` cuts the end of long completions, and the prompt only where that is not
            enough; `drop` yields None; `error` raises. Template tokens, BOS and end token always survive.

    Raises:
        DataError: an over-length group under `error`, or a template that alone exceeds max_length.
    """
    for start in range(0, len(groups), _CHUNK):
        chunk = groups[start : start + _CHUNK]
        texts = [tuple(dict.fromkeys(group.completions)) for group in chunk]  # equal texts are tokenised once
        whole = [group.prompt + text for group, own in zip(chunk, texts, strict=True) for text in own]
        flat = iter(renderer.tokenize(whole))
        for group, own in zip(chunk, texts, strict=True):
            sequences = list(islice(flat, len(own)))
            longest = max(len(sequence) for sequence in sequences)
            truncated = longest > max_length
            if truncated:
                if over_length == "drop":
                    yield None
                    continue
                if over_length == "error":
                    raise DataError(
                        f"group {group.id}: {longest} tokens, more than data.max_length {max_length}",
                        "raise data.max_length or choose another data.over_length",
                    )
                distinct = group._replace(completions=own)
                sequences = truncate_group(distinct, sequences, renderer, max_length, over_length == "truncate_prompt")[
                    1
                ]
            by_text = dict(zip(own, sequences, strict=True))
            merged, suffix_of = merge_equal(by_text[text] for text in group.completions)
            prefix, suffixes = split_prefix(merged)
            yield TokenizedGroup(
                group.id, group.source, prefix, suffixes, group.preferences, truncated, suffix_of=suffix_of
            )


def truncate_group(
    group: PreferenceGroup, sequences: list[list[int]], renderer: Renderer, max_length: int, prompt_first: bool
) -> tuple[Conversation, list[list[int]]]:
    """A group's prompt cut to the length rule, and its sequences with the completions cut too.

    Args:
        group: one that is too long.
        sequences: its rendering.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        prompt_first: completions are cut only where the prompt is not enough; else the other way round.

    Raises:
        DataError: the template alone exceeds max_length.
    """
    prompt, completions = group.prompt, list(group.completions)
    for cut_prompt in (prompt_first, not prompt_first):
        # each pass takes off the excess measured; tokens that merge anew at the cut can leave one or two for the next
        while max(excess := [len(sequence) - max_length for sequence in sequences]) > 0:
            before = prompt, completions
            if cut_prompt:
                prompt = _cut(renderer, prompt, max(excess), from_start=True)
            else:
                pairs = zip(completions, excess, strict=True)
                completions = [_cut(renderer, completion, over, from_start=False) for completion, over in pairs]
            if (prompt, completions) == before:
                break
            sequences = renderer.tokenize([prompt + completion for completion in completions])
    if max(map(len, sequences)) > max_length:
        raise DataError(
            f"group {group.id}: the chat template alone takes more than {max_length} tokens",
            "raise data.max_length",
        )
    return prompt, sequences


def _cut(renderer: Renderer, messages: Conversation, tokens: int, from_start: bool) -> Conversation:
    """Take `tokens` tokens of text off the first messages (or the last), leaving the messages themselves."""
    kept = list(messages)
    order = range(len(kept)) if from_start else reversed(range(len(kept)))
    for index in order:
        content = kept[index].content
        if not content or tokens <= 0:
            continue
        encoded = renderer.tokenizer(content, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = encoded["offset_mapping"]
        if len(spans) <= tokens:
            rest = ""
        elif from_start:
            rest = content[spans[tokens][0] :]
        else:
            rest = content[: spans[len(spans) - tokens][0]]
        if rest == content:  # a cut inside a character's bytes: take the whole character
            rest = content[1:] if from_start else content[:-1]
        kept[index] = Message(kept[index].role, rest)
        tokens -= len(spans)
    return tuple(kept)
