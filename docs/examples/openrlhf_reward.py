"""A reward model as the reward of OpenRLHF, in its own process.

    RMTRAIN_CKPT=runs/… python -m openrlhf.cli.train_ppo_ray --reward.remote_url docs/examples/openrlhf_reward.py …

OpenRLHF calls `reward_func` with whole texts. Where its `--data.apply_chat_template` renders them, the policy's chat
template must be that of the reward model; without it, prompts and answers are plain text, which rmtrain renders.
"""

import os
from functools import cache
from typing import Any

import torch

from rmtrain import RewardFunction


@cache
def reward_model() -> RewardFunction:
    return RewardFunction(os.environ["RMTRAIN_CKPT"], device=os.environ.get("RMTRAIN_DEVICE"))


def reward_func(queries: list[str], prompts: list[str], labels: list[Any], **others: Any) -> dict[str, Any]:
    rewards = torch.tensor(reward_model().score_texts(queries, prompts))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"reward_model": rewards}}
