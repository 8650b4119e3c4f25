"""Training objectives: pure functions from the rewards of a batch to a loss, in one registry.

The loss of an optimiser step is a mean over the groups of its global batch, so every group has the same weight for any
number of completions; or, as `loss.average_over` says, over its preferences. The weights of a `RewardBatch` include
this normaliser: over a whole step the group weights sum to 1, and an objective returns a weighted sum. Sums over any
split into micro-batches and processes therefore add up to the loss of the step, and so do their gradients.

To add an objective: write a function from a `RewardBatch` to a scalar here, with its formula and paper, and name it in
`OBJECTIVES` with the settings that it takes from the recipe's `loss` section; add the name and the settings to
`LossSection`, and to the rules which settings go with it. Nothing else changes:

- a term of the whole global batch, which is no sum over groups (`mean(r)^2`, a correlation): set `whole_step`. The
  function then always sees the whole step, of which only the rewards of the current micro-batch carry a gradient;
- the last hidden states that the rewards are read from: `batch.states`, which are of a micro-batch only;
- a moving average over steps: give `observe` a function that measures a batch (a sum and its weight), and `decay`; the
  value arrives in `batch.averages`, is the same on all processes, and is stored in checkpoints;
- the mean log-probability of the better completions' tokens: `batch.log_probs`, which are there with a `text_loss`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
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
    probabilities: Float[Tensor, " M"]  # how certain it is that `better` is better; 1 unless the row says less


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
    log_probs: Float[Tensor, " N"] | None = None  # mean over the tokens of a completion that is better than another
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
    observe: Observe | None = None  # sums and weights of what is averaged over steps, by name
    decay: float = 0.9  # how much of these averages stays at each step
    text_loss: float = 0.0  # share of the text loss, which step_loss.py adds


def bradley_terry(
    batch: RewardBatch, margin: float = 0.0, centering: float = 0.0, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """The weighted sum of -q log sigmoid(z) - (1 - q) log sigmoid(-z) + centering * (r_better + r_worse)^2.

    z = r_better - r_worse - margin * gap. The margin is that of Llama 2 (arXiv 2307.09288, eq. 2); centring keeps
    rewards near 0 (arXiv 2312.09244). q is the probability that the stated preference is right: that of the row, with
    e = label_smoothing moved to (1 - e) p + e (1 - p). A tie has p = 0.5. Smoothing as for DPO in its "conservative"
    form (https://ericmitchell.ai/cdpo.pdf); for reward models it was measured to hurt (arXiv 2512.06343).
    """
    return (batch.preferences.weights * _cross_entropy(batch, margin, centering, label_smoothing)).sum()


def _cross_entropy(
    batch: RewardBatch, margin: float = 0.0, centering: float = 0.0, label_smoothing: float = 0.0
) -> Float[Tensor, " M"]:
    """The terms of `bradley_terry`, not yet weighted."""
    chosen, rejected = batch.pairs
    logits = chosen - rejected - margin * batch.preferences.gaps
    wrong = 1 - batch.preferences.probabilities
    wrong = wrong + label_smoothing * (1 - 2 * wrong)
    losses = softplus(-logits) + wrong * logits  # -log sigmoid(-z) is softplus(-z) + z
    return losses + centering * (chosen + rejected) ** 2 if centering else losses


def scaled(
    batch: RewardBatch,
    gap_unit: float,
    weight_range: tuple[float, float],
    centering: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Bradley-Terry in which a preference counts by its score gap: clip(gap / gap_unit, *weight_range) times its loss.

    HelpSteer2-Preference (arXiv 2410.01257, "scaled Bradley-Terry"), where the gap is a stated strength of 1 to 3.
    """
    gains = (batch.preferences.gaps / gap_unit).clamp(*weight_range)
    losses = _cross_entropy(batch, centering=centering, label_smoothing=label_smoothing)
    return (batch.preferences.weights * gains * losses).sum()


def hinge(batch: RewardBatch, margin: float = 0.0, centering: float = 0.0) -> Float[Tensor, ""]:
    """The weighted sum of max(0, 1 + margin * gap - (r_better - r_worse)) + centering * (r_better + r_worse)^2.

    RankNet's older relative (Herbrich et al., 1999); for reward models no better than Bradley-Terry (arXiv 2410.18451).
    """
    chosen, rejected = batch.pairs
    losses = (1 + margin * batch.preferences.gaps - (chosen - rejected)).relu() + centering * (chosen + rejected) ** 2
    return (batch.preferences.weights * losses).sum()


def norm_bt(batch: RewardBatch, centering: float = 0.0) -> Float[Tensor, ""]:
    """Bradley-Terry in which a preference counts by d / |h_better - h_worse|, so that close pairs count too.

    h are the last hidden states, not differentiated here. d is the moving average of their distance up to the step
    before (arXiv 2512.06343). In the first step, which has no average yet, every preference counts 1.
    """
    gains: Float[Tensor, " M"] | float = 1.0
    if DISTANCE in batch.averages:
        gains = batch.averages[DISTANCE] / (_distances(batch) + 1e-6)
    return (batch.preferences.weights * gains * _cross_entropy(batch, centering=centering)).sum()


DISTANCE = "distance of hidden states"  # the average that `norm_bt` keeps


def mean_distance(batch: RewardBatch) -> dict[str, Float[Tensor, "2"]]:
    """The distance of the hidden states of a preference's completions, summed by weight, and the sum of the weights."""
    weights = batch.preferences.weights
    return {DISTANCE: torch.stack([(weights * _distances(batch)).sum(), weights.sum()])}


def _distances(batch: RewardBatch) -> Float[Tensor, " M"]:
    if batch.states is None:
        raise ValueError("norm_bt reads the hidden states of a micro-batch, and a whole step has none")
    states = batch.states.detach().float()
    distances: Float[Tensor, " M"] = torch.linalg.vector_norm(
        states[batch.preferences.better] - states[batch.preferences.worse], dim=-1
    )
    return distances


def plackett_luce(batch: RewardBatch, centering: float = 0.0) -> Float[Tensor, ""]:
    """The mean over a group's stages of -log(exp r_i / (exp r_i + sum of exp r_j over the completions j below i)).

    A stage is a completion i that is preferred to at least one j. Where the preferences are all those of a ranking,
    this is the Plackett-Luce likelihood of the ranking (Luce, 1959; ListMLE, Xia et al., 2008; arXiv 2305.18290,
    appendix); tied completions are not compared. With two completions it is Bradley-Terry. Centring is as there.
    """
    rewards, groups, weights = batch.rewards.float(), batch.completions.groups, batch.completions.weights
    compared = torch.eye(len(rewards), dtype=torch.bool, device=rewards.device)
    compared[batch.preferences.better, batch.preferences.worse] = True
    losses = rewards.expand_as(compared).masked_fill(~compared, -torch.inf).logsumexp(1) - rewards
    stages = (compared.sum(1) > 1).float()
    of_group = torch.zeros(2, len(rewards), device=rewards.device).index_add(1, groups, torch.stack([weights, stages]))
    weight, count = of_group[:, groups]
    shares: Float[Tensor, " N"] = weight / count.clamp_min(1) * stages
    chosen, rejected = batch.pairs
    return (shares * losses).sum() + (batch.preferences.weights * centering * (chosen + rejected) ** 2).sum()


def regression(batch: RewardBatch) -> Float[Tensor, ""]:
    """The squared difference of reward and score, each group weighing the same.

    Known weakness: it spends the model on the level of a score, which raters do not agree on, and ranks worse than
    Bradley-Terry on the same data (arXiv 2410.18451: pointwise 87.6, Bradley-Terry 93.8 on RewardBench).
    """
    return (batch.completions.weights * (batch.rewards.float() - batch.completions.scores) ** 2).sum()


def ordinal(batch: RewardBatch, grades: Sequence[float], centering: float = 0.0) -> Float[Tensor, ""]:
    """Ordered logit on graded preferences: -log P(grade | r_better - r_worse), by weight (arXiv 2603.02232).

    With G boundaries in `grades`, a preference has the grade k = number of boundaries below its score gap, and
    P(k) = sigmoid(d - t_k) - sigmoid(d - t_k+1), where t_0 = 0 and t_G+1 is infinite. The thresholds t are
    learned with the model, by `learn_thresholds`, and are not part of the saved model.
    """
    chosen, rejected = batch.pairs
    losses = _graded_losses(batch, grades, _log_widths(batch, len(grades))) + centering * (chosen + rejected) ** 2
    return (batch.preferences.weights * losses).sum()


THRESHOLD = "log width of grade {}"  # names of the averages that hold the thresholds: log(t_k+1 - t_k), 0 at first


def _log_widths(batch: RewardBatch, count: int) -> Float[Tensor, " G"]:
    values = [batch.averages.get(THRESHOLD.format(number), 0.0) for number in range(count)]
    return torch.tensor(values, device=batch.rewards.device)


def _graded_losses(batch: RewardBatch, grades: Sequence[float], log_widths: Float[Tensor, " G"]) -> Float[Tensor, " M"]:
    chosen, rejected = batch.pairs
    grade = (batch.preferences.gaps[:, None] > torch.tensor(grades, device=chosen.device)).sum(1)
    widths, end = log_widths.exp(), log_widths.new_full((1,), torch.inf)
    above = chosen - rejected - torch.cat([torch.zeros_like(end), widths.cumsum(0)])[grade]
    width = torch.cat([widths, end])[grade]
    # sigmoid(a) - sigmoid(a - w) = sigmoid(a) sigmoid(w - a) (1 - exp(-w)), in logarithms
    return softplus(-above) + softplus(above - width) - torch.log1p(-torch.exp(-width))


def learn_thresholds(batch: RewardBatch, grades: Sequence[float]) -> dict[str, Float[Tensor, "2"]]:
    """A step of gradient descent on the thresholds: in the moving average with decay 0.9, its learning rate is 0.1."""
    with torch.enable_grad():
        log_widths = _log_widths(batch, len(grades)).requires_grad_()
        still, weights = replace(batch, rewards=batch.rewards.detach()), batch.preferences.weights
        loss = (weights * _graded_losses(still, grades, log_widths)).sum()
        (gradient,) = torch.autograd.grad(loss, log_widths)
    stepped = weights.sum() * log_widths.detach() - gradient
    return {THRESHOLD.format(number): torch.stack([value, weights.sum()]) for number, value in enumerate(stepped)}


def sum_to_zero(batch: RewardBatch) -> Float[Tensor, ""]:
    """The square of the step's mean reward, over completions, each group weighing the same (BSR, arXiv 2505.07271)."""
    return (batch.completions.weights * batch.rewards.float()).sum() ** 2


def length_decorrelation(batch: RewardBatch) -> Float[Tensor, ""]:
    """The squared correlation of reward and length in tokens over the step's completions, each group weighing the same.

    Pearson's, of the kind of ODIN's length loss (arXiv 2402.07319). 0 where all completions have one length.
    """
    weights = batch.completions.weights.double()
    rewards, lengths = batch.rewards.double(), batch.completions.lengths.double()
    rewards, lengths = rewards - (weights * rewards).sum(), lengths - (weights * lengths).sum()
    covariance, *variances = ((weights * a * b).sum() for a, b in [(rewards, lengths), (rewards,) * 2, (lengths,) * 2])
    return (covariance**2 / (variances[0] * variances[1]).clamp_min(1e-12)).float()


OBJECTIVES: dict[str, Callable[[LossSection], Objective]] = {
    "bradley_terry": lambda loss: Objective(
        partial(bradley_terry, margin=loss.margin, centering=loss.centering, label_smoothing=loss.label_smoothing)
    ),
    "scaled": lambda loss: Objective(
        partial(
            scaled,
            gap_unit=loss.gap_unit,
            weight_range=loss.weight_range,
            centering=loss.centering,
            label_smoothing=loss.label_smoothing,
        )
    ),
    "hinge": lambda loss: Objective(partial(hinge, margin=loss.margin, centering=loss.centering)),
    "norm_bt": lambda loss: Objective(partial(norm_bt, centering=loss.centering), observe=mean_distance, decay=0.9),
    "plackett_luce": lambda loss: Objective(partial(plackett_luce, centering=loss.centering)),
    "regression": lambda loss: Objective(regression),
    "ordinal": lambda loss: Objective(
        partial(ordinal, grades=loss.grades, centering=loss.centering),
        observe=partial(learn_thresholds, grades=loss.grades),
        decay=0.9,
    ),
}
UNWEIGHTED = ("plackett_luce", "regression")  # objectives over whole groups, which can't weigh single preferences
SOFT = ("bradley_terry", "scaled", "norm_bt")  # objectives that read the probabilities of preferences
READS = {"scaled": "gaps", "ordinal": "gaps", "regression": "scores"}  # what an objective needs of every training row
TERMS: dict[str, Loss] = {  # terms of the whole step; the loss section's key of the same name is the coefficient
    "sum_to_zero": sum_to_zero,
    "length_decorrelation": length_decorrelation,
}


def make_objective(section: LossSection) -> Objective:
    """The objective of a recipe, with its settings and terms."""
    objective = replace(OBJECTIVES[section.objective](section), text_loss=section.text_loss)
    terms = [(getattr(section, name), term) for name, term in TERMS.items() if getattr(section, name)]
    return replace(objective, loss=partial(_with_terms, objective.loss, terms), whole_step=True) if terms else objective


def _with_terms(loss: Loss, terms: Sequence[tuple[float, Loss]], batch: RewardBatch) -> Float[Tensor, ""]:
    return sum((coefficient * term(batch) for coefficient, term in terms), loss(batch))
