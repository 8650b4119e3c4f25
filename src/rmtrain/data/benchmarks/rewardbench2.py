"""RewardBench 2 (arXiv 2506.01937): one right completion of four, and the Ties subset with its own formula."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from rmtrain.data.benchmarks.definition import (
    Benchmark,
    Era,
    FormulaScore,
    OwnFormula,
    ScoredPrompt,
    Sizes,
    single_subset_sections,
)
from rmtrain.data.benchmarks.fields import id_in, prompt_in, right_and_wrong, text_in, texts_in
from rmtrain.data.types import PreferenceGroup, Row
from rmtrain.metrics.intervals import resampled_sums
from rmtrain.metrics.rankings import Floats

COUNTS = {"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495, "Ties": 102}
TIES_TERMS = {  # of the Ties score: weights
    "tied_accuracy": 0.30,
    "ref_accuracy": 0.30,
    "preferred": 0.20,  # share of prompts with M_tied > D
    "preferred_hard": 0.20,  # share of prompts with min(M_ref, M_tied) > D
    "margin": 0.01,  # mean tanh(min(M_ref, M_tied) / D - 1)
}


def read(row: Row) -> PreferenceGroup:
    """`id`, `prompt`, `chosen` [one, or many in Ties], `rejected` [many], `subset`; Ties rows keep their id."""
    names = {name.lower(): name for name in COUNTS}
    subset = text_in(row, "subset")
    subset = names.get(subset.lower(), subset)
    right, wrong = texts_in(row, "chosen"), texts_in(row, "rejected")
    stated = row.get("num_correct", len(right))
    if stated != len(right):
        raise ValueError(f"num_correct is {stated!r}, but chosen holds {len(right)} completions")
    name = id_in(row)
    if subset == "Ties":
        ties_id(name)
    elif len(right) != 1:
        raise ValueError(f"chosen holds {len(right)} completions, expected 1")
    return right_and_wrong(name if subset == "Ties" else f"{subset}/{name}", prompt_in(row), right, wrong, subset)


def ties_id(name: str) -> tuple[str, str]:
    """Form and prompt number of a Ties row: `ref:N` has one right answer, `tied:N` has many."""
    form, colon, number = name.partition(":")
    if form not in ("ref", "tied") or not colon or not number:
        raise ValueError(f"id {name!r} of a Ties row is neither ref:N nor tied:N")
    return form, number


def eras(sizes: Sizes, prior: Collection[str]) -> Mapping[str, Era]:
    """The plain mean of the six subsets."""
    return {"current": Era(dict.fromkeys(COUNTS, 1))}


def ties_score(prompts: Sequence[ScoredPrompt], seed: int = 0) -> FormulaScore:
    """0.3 tied accuracy + 0.3 ref accuracy + 0.2 preferred + 0.2 preferred hard + 0.01 margin (paper, app. on Ties).

    With M = lowest right - highest wrong reward and D = highest - lowest right reward of the tied form, a prompt is
    accurate if M > 0. As in the `rewardbench` package up to 0.1.4, the margin is a mean over the prompts with D > 0,
    and 0 without such prompts; its main branch now gives the other prompts +-1, which changes the score by 0.02 at
    most. The last three terms are over prompts that have both forms, which are resampled together.

    Raises:
        ValueError: a form of a prompt occurs twice, or has no right or no wrong completion.
    """
    sums = np.array([_prompt_sums(forms) for forms in _by_number(prompts).values()]).reshape(-1, 10)
    total = sums.sum(axis=0)[None, :]
    score, *terms = (None if np.isnan(x) else float(x) for x in (*_score(total), *_terms(total)[0]))
    draws = resampled_sums(sums, seed=seed) if len(sums) else total
    return FormulaScore(score, dict(zip(TIES_TERMS, terms, strict=True)), _score(draws))


def ties_difference_draws(a: Sequence[ScoredPrompt], b: Sequence[ScoredPrompt], seed: int = 0) -> Floats:
    """[R] scores of A minus those of B on the same resampled prompts, in any order; NaN where undefined."""
    of_a, of_b = _by_number(a), _by_number(b)
    sums = np.array([_prompt_sums(of_a[n]) + _prompt_sums(of_b[n]) for n in of_a], dtype=np.float64)
    drawn = resampled_sums(sums, seed=seed)
    return np.asarray(_score(drawn[:, :10]) - _score(drawn[:, 10:]))


def _by_number(prompts: Sequence[ScoredPrompt]) -> dict[str, dict[str, ScoredPrompt]]:
    """Prompt number → form → prompt."""
    numbered: dict[str, dict[str, ScoredPrompt]] = {}
    for prompt in prompts:
        form, number = ties_id(prompt.id)
        if not 0 < prompt.right < len(prompt.rewards):
            raise ValueError(f"{prompt.id} has {prompt.right} right of {len(prompt.rewards)} completions")
        if form in numbered.setdefault(number, {}):
            raise ValueError(f"{prompt.id} occurs twice")
        numbered[number][form] = prompt
    return numbered


def _margin(prompt: ScoredPrompt) -> float:
    return min(prompt.rewards[: prompt.right]) - max(prompt.rewards[prompt.right :])


def _prompt_sums(forms: Mapping[str, ScoredPrompt]) -> list[float]:
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
    margin = [float(np.tanh(least / spread - 1)), 1.0] if spread > 0 else [0.0, 0.0]
    return [*accuracy, float(_margin(tied) > spread), 1, float(least > spread), 1, *margin]


def _terms(sums: Floats) -> Floats:
    """[R, 10] sums → [R, 5] terms. A term is NaN where its denominator is 0; the margin is 0 where every D is 0."""
    with np.errstate(invalid="ignore"):
        terms = sums[:, 0::2] / sums[:, 1::2]
    terms[(sums[:, 9] == 0) & (sums[:, 7] > 0), 4] = 0
    return np.asarray(terms)


def _score(sums: Floats) -> Floats:
    return np.asarray(_terms(sums) @ list(TIES_TERMS.values()))


BENCHMARK = Benchmark(
    name="rewardbench-2",
    title="RewardBench 2",
    hub_id="allenai/reward-bench-2",
    split="test",
    read=read,
    sections=single_subset_sections(*COUNTS),
    eras=eras,
    counts=COUNTS,
    rule="best",
    needs_rewards=True,
    own_formulas={
        "Ties": OwnFormula(ties_score, ties_difference_draws, lambda name: ties_id(name)[1], prompts=51, excess=0.01)
    },
)
