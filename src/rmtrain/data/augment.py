"""Augmentation: a good answer to another prompt becomes a worse completion of some training groups (RRM)."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from rmtrain.data.curate import Candidate, Curation
from rmtrain.data.ledgers import Added
from rmtrain.data.splits import leak_key
from rmtrain.data.types import Conversation, Preference, PreferenceGroup

_DRAWN = 16  # candidate groups for an answer


class _Answer(NamedTuple):
    """The best answer of a group."""

    prompt: bytes  # leak key of the group's
    text: Conversation
    length: int  # characters


def add_other_prompts(curations: Sequence[Curation], share: float, seed: int) -> None:
    """Add a completion to a share of a training split's groups: a good answer to another prompt.

    A reward model that ignores the prompt is wrong about it (RRM, arXiv 2409.13156: such pairs and others took a
    model from 80.6 to 84.2 on RewardBench). Each completion that is preferred to another one is also preferred to the
    new one. The worst completions are not compared with it: an answer to the right prompt may still be worse, for
    example if it is harmful. The new completion has no score, so the group loses its scores.

    The answer is the best one of another group. Of several drawn candidates, the one closest in length to the group's
    own best is taken, so that length does not reveal it. Draws depend only on the seed and the groups.
    """
    owned = [(each, curation) for curation in curations for each in curation.kept]
    answers = [_best_answer(each.group) for each, _ in owned]
    for place in sorted(Random(f"{seed}:other_prompts").sample(range(len(owned)), round(share * len(owned)))):
        each, curation = owned[place]
        drawn = Random(f"{seed}:other_prompts:{each.group.id}").sample(answers, min(_DRAWN, len(answers)))
        if (own := answers[place]) is not None and (other := _nearest(own, each.group, drawn)) is not None:
            _add(each, curation, other.text)


def _best_answer(group: PreferenceGroup) -> _Answer | None:
    """The first completion that is better than another and worse than none."""
    worse = {preference.worse for preference in group.preferences}
    best = min({preference.better for preference in group.preferences} - worse, default=None)
    if best is None:
        return None
    text = group.completions[best]
    return _Answer(leak_key(group.prompt), text, sum(len(message.content) for message in text))


def _nearest(own: _Answer, group: PreferenceGroup, drawn: Sequence[_Answer | None]) -> _Answer | None:
    fit = [each for each in drawn if each and each.prompt != own.prompt and each.text not in group.completions]
    return min(fit, key=lambda each: abs(each.length - own.length), default=None)


def _add(each: Candidate, curation: Curation, text: Conversation) -> None:
    group = each.group
    winners = sorted({preference.better for preference in group.preferences})
    added = tuple(Preference(winner, len(group.completions)) for winner in winners)
    each.group = group._replace(
        completions=(*group.completions, text), preferences=(*group.preferences, *added), scores=None
    )
    curation.added = Added(curation.added.completions + 1, curation.added.preferences + len(added))
