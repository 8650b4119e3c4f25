"""Where the responses of tokenised groups start, for scoring the log-probabilities of completions."""

from collections.abc import Sequence

import numpy as np

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import OverLength, TokenizedGroup, truncate_group
from rmtrain.data.types import PreferenceGroup


def mark_responses(
    groups: Sequence[PreferenceGroup],
    tokenized: Sequence[TokenizedGroup],
    renderer: Renderer,
    max_length: int,
    over_length: OverLength,
) -> list[TokenizedGroup]:
    """Set `starts` of tokenised groups: where each sequence departs from the prompt that the model would be given.

    A response is what follows the longest common token prefix with the prompt and its generation prompt, so tokens that
    merge at the border belong to the response. It has at least one token, and at least one token precedes it.

    Args:
        groups: what was tokenised.
        tokenized: the result of `tokenize_groups` by the same rule, with no group dropped.
        renderer, max_length, over_length: as of `tokenize_groups`.
    """
    marked = []
    for group, tokens in zip(groups, tokenized, strict=True):
        prompt = group.prompt
        if tokens.truncated:
            whole = renderer.tokenize([group.prompt + completion for completion in group.completions], group.arguments)
            prompt = truncate_group(group, whole, renderer, max_length, over_length == "truncate_prompt")[0].prompt
        before = np.asarray(renderer.tokenize_prompt(prompt, group.arguments) if prompt else [], dtype=np.int32)
        starts = []
        for suffix in tokens.suffixes:
            sequence = np.concatenate([tokens.prefix, suffix])
            shared = min(len(before), len(sequence) - 1)
            different = np.flatnonzero(before[:shared] != sequence[:shared])
            starts.append(max(1, int(different[0]) if len(different) else shared))
        marked.append(tokens._replace(starts=tuple(starts)))
    return marked
