"""PreferenceGroup → TokenizedGroup: the tokens of each prompt once, then those of each distinct completion."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rmtrain.data.omissions import Omission, find_omissions
from rmtrain.data.render import Renderer
from rmtrain.data.template import BareTemplateError, RunawayTemplateError, TemplateRefusalError
from rmtrain.data.types import Conversation, Preference, PreferenceGroup, ids_in, of_ids
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import OverLength

Tokens = NDArray[np.int32]
Value = TypeVar("Value")

_CHUNK = 512  # groups tokenised in one call of the fast tokenizer, which runs in parallel


class Tokenization(NamedTuple):
    """How groups become tokens.

    A sequence of more than `max_length` tokens, a prompt with one completion, is cut or not by `over_length`:
    `truncate_prompt` cuts the oldest prompt text first, and completions only if that does not suffice;
    `truncate_completion` cuts the end of long completions, and the prompt only if that does not suffice; `drop` drops
    the group; `error` raises. Template tokens, BOS and end token are never cut.
    """

    renderer: Renderer
    max_length: int
    over_length: OverLength


class TokenizedGroup(NamedTuple):
    """A group's sequences, split at their longest common token prefix; equal sequences are stored once.

    Completion k is `prefix` followed by `suffixes[suffix_of[k]]`, so completions of the same tokens share one suffix
    and one reward. No suffix is empty, since rewards are read at its last token. The split is by tokens, so it is exact
    for any chat template and tokenizer.
    """

    id: str
    source: str
    prefix: Tokens  # [P]
    suffixes: tuple[Tokens, ...]  # D distinct arrays of at least one token
    preferences: tuple[Preference, ...]  # between the K completions
    truncated: bool
    starts: tuple[int, ...] = ()  # D start positions of the responses; only for log-probabilities
    suffix_of: tuple[int, ...] = ()  # K indices of suffixes; empty: completion k has suffix k
    omitted: tuple[Omission, ...] = ()  # what the chat template leaves out, each kind once; not stored in tables
    scores: tuple[float, ...] | None = None  # K, of the source

    def spread(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """D values, one a suffix, as K values, one a completion."""
        return tuple(values[place] for place in self.suffix_of or range(len(values)))

    def suffix_scores(self) -> list[float]:
        """D scores, each the mean over the completions that share a suffix; NaN if the source has none."""
        if self.scores is None:
            return [math.nan] * len(self.suffixes)
        of_suffix: list[list[float]] = [[] for _ in self.suffixes]
        for score, place in zip(self.scores, self.spread(range(len(self.suffixes))), strict=True):
            of_suffix[place].append(score)
        return [sum(values) / len(values) for values in of_suffix]

    @property
    def identical(self) -> tuple[bool, ...]:
        """For each preference, whether both of its completions have the same tokens."""
        places = self.spread(range(len(self.suffixes)))
        return tuple(places[preference.better] == places[preference.worse] for preference in self.preferences)

    @property
    def response_lengths(self) -> tuple[int, ...]:
        """The number of tokens of each of the K responses, for a group with `starts`."""
        return self.spread([total - start for total, start in zip(self.lengths, self.starts, strict=True)])

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each distinct sequence."""
        return tuple(len(self.prefix) + len(suffix) for suffix in self.suffixes)


def merge_equal(sequences: Iterable[Sequence[int]]) -> tuple[list[Sequence[int]], tuple[int, ...]]:
    """The distinct sequences of K, in order, and for each of the K its index among them."""
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
    groups: Sequence[PreferenceGroup], how: Tokenization, refused: dict[str, TemplateRefusalError] | None = None
) -> Iterator[TokenizedGroup | None]:
    """Tokenise groups in order; None for a group that is dropped as over-length or refused by the renderer.

    All completions of a group keep the same part of their prompt, so that they answer the same question. `refused`
    receives, by group id, why the renderer refuses a group; without it, a refusal is an error.

    Raises:
        DataError: an over-length group under `error`, or a refused group.
        RunawayTemplateError: the template does not terminate.
    """
    for start in range(0, len(groups), _CHUNK):
        chunk = list(groups[start : start + _CHUNK])
        merged = [group._replace(completions=tuple(dict.fromkeys(group.completions))) for group in chunk]
        texts = _texts_of_all(merged, how.renderer, refused)  # equal completions only once
        flat = iter(how.renderer.encode([text for of_one in texts for text in of_one]))
        for group, distinct, rendered in zip(chunk, merged, texts, strict=True):
            sequences = list(islice(flat, len(rendered)))
            truncated = max(map(len, sequences), default=0) > how.max_length
            if truncated:
                sequences = _fit(distinct, sequences, how, refused)
            if not sequences:
                yield None
                continue
            by_text = dict(zip(distinct.completions, sequences, strict=True))
            different, suffix_of = merge_equal(by_text[text] for text in group.completions)
            prefix, suffixes = split_prefix(different)
            yield TokenizedGroup(
                group.id,
                group.source,
                prefix,
                suffixes,
                group.preferences,
                truncated,
                suffix_of=suffix_of,
                omitted=_omitted(distinct, rendered),
                scores=group.scores,
            )


def _fit(
    group: PreferenceGroup,
    sequences: list[list[int]],
    how: Tokenization,
    refused: dict[str, TemplateRefusalError] | None,
) -> list[list[int]]:
    """The sequences of an over-length group by the rule; empty if the group is dropped or refused."""
    if how.over_length == "drop":
        return []
    if how.over_length == "error":
        raise DataError(
            f"group {group.id}: {max(map(len, sequences))} tokens, more than data.max_length {how.max_length}",
            "raise data.max_length or choose another data.over_length",
        )
    try:
        return truncate_group(group, sequences, how)[1]
    except TemplateRefusalError as error:
        _refuse(group, error, refused)
        return []


def _texts_of_all(
    groups: Sequence[PreferenceGroup], renderer: Renderer, refused: dict[str, TemplateRefusalError] | None
) -> list[list[Any]]:
    """`_texts` of each group, in one call of the template if it accepts all groups."""
    if len({group.arguments for group in groups}) == 1:
        conversations = [group.prompt + completion for group in groups for completion in group.completions]
        with contextlib.suppress(TemplateRefusalError, RunawayTemplateError):  # the refused group is found below
            texts = iter(renderer.texts(conversations, groups[0].arguments))
            return [list(islice(texts, len(group.completions))) for group in groups]
    return [_texts(group, renderer, refused) for group in groups]


def _texts(group: PreferenceGroup, renderer: Renderer, refused: dict[str, TemplateRefusalError] | None) -> list[Any]:
    """What the renderer encodes for a group's sequences; empty if the template refuses one."""
    try:
        return [renderer.text(group.prompt + completion, group.arguments) for completion in group.completions]
    except TemplateRefusalError as error:
        _refuse(group, error, refused)
        return []
    except RunawayTemplateError as error:
        raise RunawayTemplateError(f"group {group.id}: {error.message}", error.hint) from error


def _refuse(
    group: PreferenceGroup, error: TemplateRefusalError, refused: dict[str, TemplateRefusalError] | None
) -> None:
    if refused is None:
        raise type(error)(f"group {group.id}: {error.message}", error.hint) from error
    refused[group.id] = error


def _omitted(group: PreferenceGroup, rendered: list[Any]) -> tuple[Omission, ...]:
    omissions: dict[str, Omission] = {}
    for completion, text in zip(group.completions, rendered, strict=True):
        if isinstance(text, str):  # an encoder's pair of texts omits nothing
            for omission in find_omissions(text, group.prompt + completion, group.arguments):
                omissions.setdefault(omission.what, omission)
    return tuple(omissions.values())


def truncate_group(
    group: PreferenceGroup, sequences: list[list[int]], how: Tokenization
) -> tuple[PreferenceGroup, list[list[int]]]:
    """A group cut to fit, and its sequences, which come untruncated.

    Raises:
        BareTemplateError: the template alone exceeds max_length.
    """
    renderer, max_length, prompt_first = how.renderer, how.max_length, how.over_length == "truncate_prompt"
    prompt, completions = group.prompt, list(group.completions)
    for cut_prompt in (prompt_first, not prompt_first):
        # each pass cuts the measured excess; tokens that merge differently at the cut may need another pass
        while max(excess := [len(sequence) - max_length for sequence in sequences]) > 0:
            before = prompt, completions
            if cut_prompt:
                prompt = _cut(renderer, prompt, max(excess), from_start=True)
            else:
                pairs = zip(completions, excess, strict=True)
                completions = [_cut(renderer, completion, over, from_start=False) for completion, over in pairs]
            if (prompt, completions) == before:
                break
            sequences = renderer.tokenize([prompt + completion for completion in completions], group.arguments)
    if max(map(len, sequences)) > max_length:
        raise BareTemplateError(f"the chat template alone takes more than {max_length} tokens", "raise data.max_length")
    return group._replace(prompt=prompt, completions=tuple(completions)), sequences


def _cut(renderer: Renderer, messages: Conversation, tokens: int, from_start: bool) -> Conversation:
    """Cut `tokens` tokens of text from the first messages (or the last); the messages themselves stay."""
    if (ids := ids_in(messages)) is not None:  # keep BOS, and the token at which the reward is read
        first, tokens = from_start and ids[:1] == [renderer.tokenizer.bos_token_id], max(0, tokens)
        left = max(0, len(ids) - tokens - 1)
        return (of_ids(ids[:first] + ids[first + tokens :] if from_start else ids[:left] + ids[-1:]),)
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
        if rest == content:  # the cut is inside a character's bytes: cut the whole character
            rest = content[1:] if from_start else content[:-1]
        kept[index] = kept[index]._replace(content=rest)
        tokens -= len(spans)
    return tuple(kept)
