"""Groups → implicit rewards of a policy: the way of all rewards, once for each model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.model.policy import Policy
from rmtrain.scoring.score import Progress, Rewards, score_groups


def score_policy(
    policy: Policy,
    groups: Sequence[TokenizedGroup],
    tokens_per_batch: int,
    partial: Path,
    progress: Progress,
    notify: Callable[[str], None],
) -> list[Rewards]:
    """log pi - log pi_ref of every completion, or without a reference log pi alone, as `policy.reading` says.

    The arguments are those of `score_groups`, and so is what is raised. Each model leaves its finished batches in a
    file of its own, whose name begins as `partial`.
    """
    found: list[list[Rewards]] = []
    for folder in policy.folders:
        model = policy.load(folder)
        for note in model.notes:
            notify(note)
        own = partial.with_name(f"{partial.name}.{len(found)}")
        found.append(score_groups(model, groups, policy.renderer.pad_id, tokens_per_batch, own, progress, notify))
        del model  # before the next is loaded
    differences = (np.subtract(*k) if len(k) == 2 else np.array(k[0]) for k in zip(*found, strict=True))
    return [tuple(values.astype(np.float32).tolist()) for values in differences]
