"""The figures of `rmtrain gap`, as in its JSON; arXiv 2405.19534 defines them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rmtrain.documents import checked
from rmtrain.errors import DataError
from rmtrain.evaluation.graded_groups import Choices, Mean, Ranking
from rmtrain.json_values import JsonObject
from rmtrain.metrics.alignment_gap import Flips


@dataclass(frozen=True)
class Accuracy:
    """Share of preferences ranked right, a tie counting 1/2, with its 95 % interval clustered by prompt."""

    accuracy: float | None
    low: float | None
    high: float | None
    n: int
    ties: int
    normalised: "Accuracy | None" = None  # the same preferences, by mean log-probabilities


@dataclass(frozen=True)
class Difference:
    """A difference of two accuracies on the same preferences: paired bootstrap over prompts, exact McNemar test."""

    difference: float
    low: float
    high: float
    mcnemar_p: float | None = None
    normalised: "Difference | None" = None


@dataclass(frozen=True)
class RewardModelFigures:
    """A reward model's accuracy, and its distance from the policy and from the ideal policy at the median beta.

    The first nine are those of `Accuracy`, and of `Difference` for the accuracy minus the policy's.
    """

    accuracy: float
    low: float
    high: float
    n: int
    ties: int
    minus_policy: float
    minus_low: float
    minus_high: float
    mcnemar_p: float | None
    minus_policy_normalised: Difference
    minus_ideal: Difference
    minus_ideal_normalised: Difference
    closed: Mean | None = None  # (reward model - policy) / (ideal - policy); None if the gap's interval includes 0
    closed_normalised: Mean | None = None  # the same for the length-normalised gap

    @property
    def beside_policy(self) -> Difference:
        """Its accuracy minus the policy's."""
        return Difference(self.minus_policy, self.minus_low, self.minus_high, self.mcnemar_p)


@dataclass(frozen=True)
class Ends:
    """Ends of a 95 % interval and the number of preferences; None without preferences."""

    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class LossBound:
    """Theorem 4.1 on the preferences that the reference ranks wrong, by the DPO loss at one beta."""

    beta: float
    n: int  # preferences that the reference ranks wrong
    at_or_below: int  # with a loss at or below the bound: the policy ranks them right
    above: int
    above_though_learnt: int  # of those above the bound, with a loss below ln 2: the implicit reward ranks them right
    median_bound: float | None  # nats
    median_loss: float | None


@dataclass(frozen=True)
class Bar:
    """A bar of the histogram of the reference's log-ratio, log pi_ref(better) - log pi_ref(worse), in nats."""

    low: float
    high: float
    right: int  # preferences that the policy ranks right
    wrong: int


@dataclass(frozen=True)
class GapFigures:
    """All measurements of `rmtrain gap`; None for those that lack a reference, preferences or graded groups."""

    n: int
    groups: int
    identical: int  # preferences between completions of the same tokens, which are ties
    policy: Accuracy
    reference: Accuracy | None
    implicit: Accuracy | None
    alpha: str
    circular_for: str | None
    ideal_of: str  # the model from which the ideal starts: reference or policy
    idealised: dict[str, Accuracy]  # for each beta
    gap: dict[str, Difference]  # for each beta, and for `median`
    reward_models: dict[str, RewardModelFigures]
    flips: Flips | None
    flip_rate: float | None
    flip_rate_interval: Ends | None
    loss_bound: LossBound | None
    ranking: dict[str, Ranking]
    best_of_n: Choices | None
    minus_reference: Difference | None = None  # the policy's accuracy minus the reference's: the effect of tuning
    log_ratios: list[Bar] = field(default_factory=list)
    gold: str | None = None  # the reward model whose rewards are the graded scores; None: the rows' own

    def to_json(self) -> JsonObject:
        """The figures as in `gap --json`."""
        return asdict(self)


@dataclass(frozen=True)
class Rendering:
    """The part of a result on how conversations became tokens."""

    chat_template_sha256: str | None = None


@dataclass(frozen=True)
class ScoredBy:
    """The part of a result on a model that scored its rows."""

    where: str
    rendering: Rendering
    plain_text: bool = False


@dataclass(frozen=True)
class GapSource:
    """The part of a result on its rows."""

    source: str


@dataclass(frozen=True)
class GapSetting:
    """The models and rows of the measurement."""

    refused: int  # rows that a chat template refuses
    models: dict[str, ScoredBy]  # policy, reference, and reward models by name
    data: GapSource
    ckpt: str | None = None  # the reward model in whose folder the result is


@dataclass(frozen=True)
class GapResult:
    """A result of `rmtrain gap`, as read back for reports."""

    figures: GapFigures
    setting: GapSetting

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GapResult":
        """Read the output of `gap --json`; unknown entries are ignored.

        Raises:
            DataError: names the first entry that is missing or has another type.
        """
        result = cls(checked(values, GapFigures), checked(values, GapSetting))
        if "policy" not in result.setting.models:
            raise DataError("models.policy: field required")
        return result
