"""Where the responses of tokenised groups start, for those who score log-probabilities of completions."""

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
    """The tokenised groups with `starts`: where each sequence leaves its prompt as the model would be given it.

    A response is what follows the longest common token prefix with the prompt and its generation prompt, so that
    tokens that merge at the border are the response's; it has at least one token, and leaves one before it.

    Args:
        groups: what was tokenised.
        tokenized: of `tokenize_groups`, by the same rule, with none dropped.
        renderer: the rendering contract.
        max_length: tokens of prompt and one completion.
        over_length: the rule.
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
