"""The loss of a whole optimiser step from its micro-batches, the text loss beside it, and averages over steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from accelerate.utils import gather
from jaxtyping import Float
from torch import Tensor

from rmtrain.training.objectives import Completions, Objective, Preferences, RewardBatch


def join(parts: Sequence[RewardBatch]) -> RewardBatch:
    """Several batches as one; hidden states and log-probabilities are left out."""
    preferences, completions, places, groups = [], [], 0, 0
    for part in parts:
        own, rows = part.preferences, part.completions
        preferences.append(own._replace(better=own.better + places, worse=own.worse + places))
        completions.append(rows._replace(groups=rows.groups + groups))
        places, groups = places + len(part.rewards), groups + int(rows.groups[-1]) + 1
    return RewardBatch(
        torch.cat([part.rewards for part in parts]),
        Preferences(*map(torch.cat, zip(*preferences, strict=True))),
        Completions(*map(torch.cat, zip(*completions, strict=True))),
        averages=parts[0].averages,
    )


def move_averages(
    averages: Mapping[str, float], observed: Sequence[Mapping[str, Float[Tensor, "2"]]], decay: float
) -> dict[str, float]:
    """Moving averages after a step: decay * before + (1 - decay) * the mean over the step and all processes.

    Args:
        averages: up to the step before; a name that is new begins with its first mean.
        observed: by micro-batch and name, a sum and its weight.
    """
    moved = {}
    for name in observed[0]:
        total, weight = gather(torch.stack([sums[name] for sums in observed]).sum(0)[None]).double().sum(0).tolist()
        mean = total / weight
        moved[name] = decay * averages[name] + (1 - decay) * mean if name in averages else mean
    return moved


def text_loss(batch: RewardBatch) -> Float[Tensor, ""]:
    """The negative log-likelihood of the better completion of each preference, in nats a token, by weight.

    The regulariser of GRM (arXiv 2406.10216, "SFT"), which keeps the hidden states able to continue the text through
    the base's frozen language head. There it is -log sigmoid(beta * sum log p); here a long completion counts no more
    than a short one. Its tokens are those after the prefix that the group's completions share.
    """
    if batch.log_probs is None:
        raise ValueError(
            "the text loss reads the log-probabilities of each micro-batch, so it can't be computed over a whole step"
        )
    return -(batch.preferences.weights * batch.log_probs[batch.preferences.better]).sum()


def with_text_loss(loss: Float[Tensor, ""], batch: RewardBatch, share: float) -> Float[Tensor, ""]:
    """(1 - share) * the objective's loss of a micro-batch + share * its text loss; the loss itself for a share of 0."""
    return (1 - share) * loss + share * text_loss(batch) if share else loss


def loss_of_step(objective: Objective, parts: Sequence[RewardBatch], place: int, live: RewardBatch) -> Tensor:
    """A micro-batch's share of the loss of a whole step, for an objective that is not a sum over micro-batches.

    Args:
        objective: with `whole_step`.
        parts: the step's micro-batches over all processes, without gradients; their weights sum to their number.
        place: the place of the part whose rewards carry gradients.
        live: that part.

    Returns:
        A scalar whose value is the loss of the step. Its gradient is that of the loss times the number of parts, so
        that a mean over the parts is exact in both.
    """
    whole, n = join([*parts[:place], live, *parts[place + 1 :]]), len(parts)
    preferences = whole.preferences._replace(weights=whole.preferences.weights / n)
    completions = whole.completions._replace(weights=whole.completions.weights / n)
    loss = objective.loss(replace(whole, preferences=preferences, completions=completions))
    return loss + (n - 1) * (loss - loss.detach())
