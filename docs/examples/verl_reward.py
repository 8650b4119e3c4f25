"""A reward model as the reward of verl, in its own process.

    RMTRAIN_CKPT=runs/… python -m verl.trainer.main_ppo \
        reward.custom_reward_function.path=docs/examples/verl_reward.py …

verl passes the answer without its prompt, so the `extra_info` of every row must hold `prompt`, as text or messages.
It asks for one row at a time, in each of its `reward.num_workers`, which load the model each: set 1, or have the model
behind `rmtrain serve`, which gathers the rows. Older versions of verl have these settings without `reward.`; there,
`reward_model.reward_manager=batch` and `custom_reward_function.name=compute_scores` score all rows of a step at once.
"""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from rmtrain import RewardFunction


@cache
def reward_model() -> RewardFunction:
    return RewardFunction(os.environ["RMTRAIN_CKPT"], device=os.environ.get("RMTRAIN_DEVICE"), score_blank=True)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], **others: Any
) -> float | None:
    return compute_scores([data_source], [solution_str], [ground_truth], [extra_info])[0]


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[dict[str, Any]],
    **others: Any,
) -> list[float | None]:
    return reward_model()([info["prompt"] for info in extra_infos], solution_strs)
