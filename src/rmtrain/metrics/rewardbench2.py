"""RewardBench 2 (arXiv 2506.01937): one right completion of four, and the Ties subset with a formula of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from rmtrain.metrics.intervals import Interval, percentile_interval, resampled_sums, wilson_interval
from rmtrain.metrics.rankings import Floats

COUNTS: dict[str, int] = {
    "Factuality": 475,
    "Precise IF": 160,
    "Math": 183,
    "Safety": 450,
    "Focus": 495,
    "Ties": 102,
}
SUBSETS = tuple(COUNTS)

ZeroSpread = Literal["leave_out", "limit"]


def best_of_credit(rewards: Sequence[float], right: int = 1) -> float:
    """1/k if one of the first `right` completions is among the k that share the highest reward, else 0."""
    best = max(rewards)
    return 1 / sum(reward == best for reward in rewards) if best in rewards[:right] else 0.0


class TiesPrompt(NamedTuple):
    """Rewards of a prompt of the Ties subset, the right completions first."""

    form: Literal["ref", "tied"]  # ref has one right answer, tied has many
    number: str  # what joins the two forms of a prompt
    rewards: Sequence[float]
    right: int  # how many are right; at least one is wrong


@dataclass(frozen=True)
class TiesScore:
    """The Ties score and its terms; None where no prompt has what a term needs."""

    score: float | None  # at most 1.01
    tied_accuracy: float | None
    ref_accuracy: float | None
    preferred: float | None  # share of prompts with M_tied > D
    preferred_hard: float | None  # share of prompts with min(M_ref, M_tied) > D
    margin: float | None  # mean tanh(min(M_ref, M_tied) / D - 1)
    interval: Interval | None
    draws: Floats | None = field(default=None, compare=False, repr=False)  # [R] scores of resampled prompts


def ties_score(prompts: Sequence[TiesPrompt], zero_spread: ZeroSpread = "leave_out", seed: int = 0) -> TiesScore:
    """0.3 tied accuracy + 0.3 ref accuracy + 0.2 preferred + 0.2 preferred hard + 0.01 margin (paper, app. on Ties).

    With M = least right - greatest wrong reward and D = greatest - least right reward of the tied form, a prompt is
    accurate if M > 0. The interval resamples prompts, both forms of one together.

    Args:
        prompts: both forms of each prompt; the last three terms are over prompts that have both.
        zero_spread: what the margin term makes of prompts with D = 0. `leave_out`, as in the `rewardbench` package up
            to 0.1.4, takes the mean over the others; `limit`, as on its main branch, gives tanh(+-inf) = +-1, and 0
            where min(M_ref, M_tied) is 0 too. If D is 0 for all, `leave_out` makes the term 0.
        seed: of the resampling.

    Raises:
        ValueError: a form of a prompt comes twice, or has no right or no wrong completion.
    """
    by_number = _by_number(prompts)
    if not by_number:
        return TiesScore(None, None, None, None, None, None, None)
    sums = np.array([_prompt_sums(forms, zero_spread) for forms in by_number.values()])
    total = sums.sum(axis=0)[None, :]
    tied, ref, preferred, preferred_hard, margin = (None if np.isnan(x) else float(x) for x in _terms(total)[0])
    score = float(_score(total)[0])
    known, draws = not np.isnan(score), _score(resampled_sums(sums, seed=seed))
    return TiesScore(
        score=score if known else None,
        tied_accuracy=tied,
        ref_accuracy=ref,
        preferred=preferred,
        preferred_hard=preferred_hard,
        margin=margin,
        interval=_interval(draws, score, len(sums)) if known else None,
        draws=draws,
    )


def ties_difference_draws(a: Sequence[TiesPrompt], b: Sequence[TiesPrompt], seed: int = 0) -> Floats:
    """[R] scores of A less those of B, both of the same resampled prompts; NaN where a resample leaves one undefined.

    Args:
        a: prompts with the rewards of A.
        b: the same prompts, in any order, with those of B.
        seed: of the resampling.
    """
    of_a, of_b = _by_number(a), _by_number(b)
    sums = np.array(
        [_prompt_sums(of_a[n], "leave_out") + _prompt_sums(of_b[n], "leave_out") for n in of_a], dtype=np.float64
    )
    drawn = resampled_sums(sums, seed=seed)
    return np.asarray(_score(drawn[:, :10]) - _score(drawn[:, 10:]))


def _by_number(prompts: Sequence[TiesPrompt]) -> dict[str, dict[str, TiesPrompt]]:
    found: dict[str, dict[str, TiesPrompt]] = {}
    for prompt in prompts:
        if not 0 < prompt.right < len(prompt.rewards):
            raise ValueError(f"{prompt.form}:{prompt.number} has {prompt.right} right of {len(prompt.rewards)}")
        if prompt.form in found.setdefault(prompt.number, {}):
            raise ValueError(f"{prompt.form}:{prompt.number} comes twice")
        found[prompt.number][prompt.form] = prompt
    return found


def _margin(prompt: TiesPrompt) -> float:
    return min(prompt.rewards[: prompt.right]) - max(prompt.rewards[prompt.right :])


def _prompt_sums(forms: dict[str, TiesPrompt], zero_spread: ZeroSpread) -> list[float]:
    """Numerator and denominator of each of the five terms."""
    accuracy = [
        part
        for form in ("tied", "ref")
        for part in ((float(_margin(forms[form]) > 0), 1.0) if form in forms else (0.0, 0.0))
    ]
    if len(forms) < 2:
        return [*accuracy, 0, 0, 0, 0, 0, 0]
    tied = forms["tied"]
    spread = max(tied.rewards[: tied.right]) - min(tied.rewards[: tied.right])
    least = min(_margin(forms["ref"]), _margin(tied))
    if spread > 0:
        margin, counted = float(np.tanh(least / spread - 1)), 1.0
    elif zero_spread == "limit":
        margin, counted = float(np.sign(least)), 1.0
    else:
        margin, counted = 0.0, 0.0
    return [*accuracy, float(_margin(tied) > spread), 1, float(least > spread), 1, margin, counted]


def _terms(sums: Floats) -> Floats:
    """[R, 10] sums to [R, 5] terms, NaN where a denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[:, 0::2] / sums[:, 1::2])


def _score(sums: Floats) -> Floats:
    terms = _terms(sums)
    margin = np.where((sums[:, 9] == 0) & (sums[:, 7] > 0), 0.0, terms[:, 4])
    return np.asarray(terms[:, :4] @ [0.30, 0.30, 0.20, 0.20] + 0.01 * margin)


def _interval(draws: Floats, score: float, prompts: int) -> Interval:
    interval = percentile_interval(draws)
    if interval.low < interval.high:
        return interval
    wilson = wilson_interval(min(1.0, max(0.0, score)), prompts)  # all prompts alike: nothing to resample
    return Interval(min(wilson.low, score), max(wilson.high, score))
