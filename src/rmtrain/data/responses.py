"""The start of the responses in tokenised groups, for log-probabilities and lengths of completions."""

from collections.abc import Iterator, Sequence

import numpy as np

from rmtrain.data.template import TemplateRefusalError
from rmtrain.data.tokenize import Tokenization, TokenizedGroup, Tokens, truncate_group
from rmtrain.data.types import Conversation, PreferenceGroup


def mark_responses(
    groups: Sequence[PreferenceGroup], tokenized: Sequence[TokenizedGroup], how: Tokenization
) -> list[TokenizedGroup]:
    """Set `starts` of tokenised groups: where each sequence departs from the prompt with its generation prompt.

    A response is everything after the longest common token prefix with that prompt, so tokens that merge at the
    boundary belong to the response. It has at least one token, and at least one token precedes it. `tokenized` lacks
    none of the groups.

    Raises:
        TemplateRefusalError: the chat template refuses a prompt without an answer.
    """
    return [
        _mark(tokens, how.renderer.tokenize_prompt(prompt, group.arguments) if prompt else [])
        for group, tokens, prompt in _prompts(groups, tokenized, how)
    ]


def count_responses(
    groups: Sequence[PreferenceGroup], tokenized: Sequence[TokenizedGroup], how: Tokenization
) -> list[tuple[int, ...]]:
    """The number of tokens of each of the K responses of each group, independent of the other responses; see
    `mark_responses`.

    If the chat template refuses the prompt alone, all tokens but the first are counted.
    """
    counts = []
    for group, tokens, prompt in _prompts(groups, tokenized, how):
        try:
            before = how.renderer.tokenize_prompt(prompt, group.arguments) if prompt else []
        except TemplateRefusalError:
            before = []
        counts.append(_mark(tokens, before).response_lengths)
    return counts


def _prompts(
    groups: Sequence[PreferenceGroup], tokenized: Sequence[TokenizedGroup], how: Tokenization
) -> Iterator[tuple[PreferenceGroup, TokenizedGroup, Conversation]]:
    """Each group, its tokens, and its prompt after truncation."""
    for group, tokens in zip(groups, tokenized, strict=True):
        prompt = group.prompt
        if tokens.truncated:
            whole = how.renderer.tokenize(
                [group.prompt + completion for completion in group.completions], group.arguments
            )
            prompt = truncate_group(group, whole, how)[0].prompt
        yield group, tokens, prompt


def _mark(tokens: TokenizedGroup, before: Sequence[int]) -> TokenizedGroup:
    """The group with `starts`, after the tokens of its prompt."""
    sequences = (np.concatenate([tokens.prefix, suffix]) for suffix in tokens.suffixes)
    return tokens._replace(starts=tuple(max(1, common_prefix(before, sequence)) for sequence in sequences))


def common_prefix(before: Sequence[int], sequence: Sequence[int] | Tokens) -> int:
    """The number of common first tokens, fewer than those of the sequence."""
    shared = min(len(before), len(sequence) - 1)
    different = np.flatnonzero(np.asarray(before[:shared]) != np.asarray(sequence[:shared]))
    return int(different[0]) if len(different) else shared
