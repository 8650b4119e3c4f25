"""Training objectives: pure functions from the rewards of a batch to a loss, in one registry.

The loss of an optimiser step is a mean over the groups of its global batch, so every group weighs the same, whatever
its number of completions. The weights of a `RewardBatch` hold that normaliser: over a whole step the group weights sum
to 1, and an objective returns a weighted sum. Sums over any split into micro-batches and processes therefore add up to
the loss of the step, and so do their gradients.

To add an objective: write a function from a `RewardBatch` to a scalar here, with its formula and paper, and name it in
`OBJECTIVES` with the settings that it takes from the recipe's `loss` section. Nothing else changes:

- a term of the whole global batch, which is no sum over groups (`mean(r)^2`, a correlation): set `whole_step`. The
  function then always sees the whole step, of which only the rewards of the current micro-batch carry a gradient;
- the last hidden states that the rewards are read from: `batch.states`;
- a moving average over steps: give `observe` a function that measures a batch (a sum and its weight), and `decay`; the
  value arrives in `batch.averages`, is the same on all processes, and is stored in checkpoints;
- anything else of the forward pass: name it in `asks`, as the arguments that `RewardForward.forward` takes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from accelerate.utils import gather, send_to_device
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from rmtrain.recipe.schema import LossSection


class Preferences(NamedTuple):
    """M preferences between the completions of a batch."""

    better: Int[Tensor, " M"]  # places among the batch's completions
    worse: Int[Tensor, " M"]
    weights: Float[Tensor, " M"]  # the group's weight / preferences of the group
    gaps: Float[Tensor, " M"]  # score differences on the source's scale, 0 where it has no scores
    probabilities: Float[Tensor, " M"]  # that `better` is the better one; 1 unless the row says less


class Completions(NamedTuple):
    """N distinct completions of a batch's groups."""

    groups: Int[Tensor, " N"]  # numbers of their groups in the batch
    weights: Float[Tensor, " N"]  # the group's weight / distinct completions of the group
    lengths: Int[Tensor, " N"]  # tokens after the prefix that the group shares
    scores: Float[Tensor, " N"]  # the source's own, NaN where it has none


@dataclass(frozen=True)
class RewardBatch:
    """What an objective sees: the rewards of a micro-batch, or of a whole step, and what is known of them."""

    rewards: Float[Tensor, " N"]
    preferences: Preferences
    completions: Completions
    states: Float[Tensor, "N H"] | None = None  # last hidden states at which the rewards are read
    log_probs: Float[Tensor, " N"] | None = None  # of the completions' tokens, for objectives that ask for them
    averages: Mapping[str, float] = field(default_factory=dict)  # moving averages up to the step before

    @property
    def pairs(self) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
        """Rewards of the better and of the worse completion of each preference, in float32."""
        rewards = self.rewards.float()
        return rewards[self.preferences.better], rewards[self.preferences.worse]

    def moved(self, device: torch.device | str) -> "RewardBatch":
        """Without gradients and hidden states, on another device."""
        rewards = self.rewards.detach().to(device)
        preferences, completions = send_to_device((self.preferences, self.completions), device)
        return RewardBatch(rewards, preferences, completions, averages=self.averages)


Loss = Callable[[RewardBatch], Float[Tensor, ""]]
Observe = Callable[[RewardBatch], Mapping[str, Float[Tensor, "2"]]]


@dataclass(frozen=True)
class Objective:
    """A loss with its settings, and what it reads besides rewards and preferences."""

    loss: Loss
    whole_step: bool = False  # it is no weighted sum: it sees all completions of the global batch
    asks: Mapping[str, bool] = field(default_factory=dict)  # arguments of the model's forward pass
    observe: Observe | None = None  # sums and weights of what is averaged over steps, by name
    decay: float = 0.9  # of these averages


def bradley_terry(batch: RewardBatch, margin: float = 0.0, centering: float = 0.0) -> Float[Tensor, ""]:
    """The weighted sum of -log sigmoid(r_better - r_worse - margin * gap) + centering * (r_better + r_worse)^2.

    The margin is that of Llama 2 (arXiv 2307.09288, eq. 2); centring keeps rewards near 0 (arXiv 2312.09244).
    """
    chosen, rejected = batch.pairs
    losses = softplus(margin * batch.preferences.gaps - (chosen - rejected))
    if centering:
        losses = losses + centering * (chosen + rejected) ** 2
    return (batch.preferences.weights * losses).sum()


OBJECTIVES: dict[str, Callable[[LossSection], Objective]] = {
    "bradley_terry": lambda loss: Objective(partial(bradley_terry, margin=loss.margin, centering=loss.centering)),
}


def make_objective(section: LossSection) -> Objective:
    """The objective of a recipe, with its settings."""
    return OBJECTIVES["bradley_terry"](section)


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
        decay: of what was before.
    """
    moved = {}
    for name in observed[0]:
        total, weight = gather(torch.stack([one[name] for one in observed]).sum(0)[None]).double().sum(0).tolist()
        mean = total / weight
        moved[name] = decay * averages[name] + (1 - decay) * mean if name in averages else mean
    return moved


def loss_of_step(objective: Objective, parts: Sequence[RewardBatch], place: int, live: RewardBatch) -> Tensor:
    """One part's share of the loss of a whole step, for an objective that is no sum over parts.

    Args:
        objective: with `whole_step`.
        parts: the step's micro-batches over all processes, without gradients; their weights sum to their number.
        place: of the part whose rewards carry gradients.
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
