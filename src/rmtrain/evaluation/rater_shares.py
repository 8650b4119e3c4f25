"""Alpha: the share of raters who prefer the better completion of a preference (arXiv 2405.19534)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmtrain.data.schemas import votes
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import InputError
from rmtrain.evaluation.results import ScoredRow, gaps_of
from rmtrain.metrics.calibration import fit_scale
from rmtrain.metrics.rankings import Floats, sigmoid
from rmtrain.places import name_only

_FORMS = "a share such as 0.75, `votes`, `scores`, `scores:SCALE` or `rewards`"


class Alpha(NamedTuple):
    """For each preference, the share of raters who prefer the better completion."""

    values: Floats  # [n]
    origin: str  # in words
    circular_for: str | None = None  # the reward model that gave the shares, which therefore can't be judged by them


class AlphaSource(NamedTuple):
    """The source of alpha, as in `--alpha`."""

    kind: str  # constant, votes, scores or rewards
    value: float = 1.0  # the constant, or the scale of score gaps


def parse_alpha(text: str, has_reward_model: bool) -> AlphaSource:
    """Read `--alpha`.

    Raises:
        InputError: it is not of a known form, or asks for rewards without a reward model.
    """
    if text == "rewards" and not has_reward_model:
        raise InputError("--alpha rewards: no reward model is given", "name one with --ckpt")
    kind, _, scale = text.partition(":")
    try:
        if kind in ("votes", "rewards") and not scale:
            return AlphaSource(kind)
        if kind == "scores" and 0 < float(scale or 1) < float("inf"):
            return AlphaSource(kind, float(scale or 1))
        if 0 < float(text) <= 1:
            return AlphaSource("constant", float(text))
    except ValueError:
        pass
    raise InputError(f"--alpha {text}: not a known source of alpha", f"give {_FORMS}")


def find_alpha(
    source: AlphaSource,
    groups: Sequence[PreferenceGroup],
    rows: Mapping[str, Mapping[str, Any]],
    reward_models: Mapping[str, Sequence[ScoredRow]],
) -> Alpha:
    """The share of raters for the better completion of every preference of the groups.

    `rows` are the source rows by group id; of the reward models, `rewards` takes the first.

    Raises:
        InputError: a preference has no votes or no score gap.
    """
    preferences = [(group, preference) for group in groups for preference in group.preferences]
    if source.kind == "constant":
        return Alpha(np.full(len(preferences), source.value), f"constant {source.value:g}")
    if source.kind == "votes":
        shares = {group.id: vote_share(rows[group.id], group) for group in groups}
        values = [
            shares[group.id] if not preference.better else 1 - shares[group.id] for group, preference in preferences
        ]
        return Alpha(np.array(values, dtype=np.float64), "votes of raters")
    if source.kind == "scores":
        unknown = next((group.id for group, preference in preferences if preference.gap is None), None)
        if unknown is not None:
            raise InputError(f"--alpha scores: group {unknown} has no scores", f"give {_FORMS}")
        gaps = np.array([preference.gap for _, preference in preferences], dtype=np.float64)
        return Alpha(sigmoid(source.value * gaps), f"sigmoid of {source.value:g} times the score gap")
    name, scored = next(iter(reward_models.items()))
    gaps = gaps_of(scored).gaps
    scale = fit_scale(gaps)
    origin = f"sigmoid of {scale:.3g} times the reward gap of {name_only(name)}, the scale fitted on these preferences"
    return Alpha(sigmoid(scale * gaps), origin, circular_for=name)


def vote_share(row: Mapping[str, Any], group: PreferenceGroup) -> float:
    """Share of raters for the first of two completions: `alpha`, or `votes` of 1 (first), 2 (second) and 0 (tie, 1/2).

    Raises:
        InputError: the row has neither, or more than two completions.
    """
    shares = (votes.vote_share(row.get(column)) for column in ("alpha", "votes")) if len(group.completions) == 2 else ()
    if (share := next((share for share in shares if share is not None), None)) is not None:
        return share
    raise InputError(
        f"--alpha votes: group {group.id} has no votes of raters on two completions",
        "give rows with `votes`, a list of 1, 2 and 0, or with `alpha`, the share for the first completion",
    )
