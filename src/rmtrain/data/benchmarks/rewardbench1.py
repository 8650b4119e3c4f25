"""RewardBench 1 (arXiv 2403.13787): its rows and subsets, and all published versions of its formulas."""

from collections.abc import Collection, Mapping

from rmtrain.data.benchmarks.definition import Benchmark, Era, PriorSets, Sizes, Weights
from rmtrain.data.benchmarks.fields import id_in, prompt_in, right_and_wrong, text_in
from rmtrain.data.types import PreferenceGroup, Row

_ROWS: dict[str, dict[str, int]] = {  # of the `filtered` split, by section and subset
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), 164),
    },
}
SECTIONS = {section: tuple(rows) for section, rows in _ROWS.items()}
COUNTS = {name: n for rows in _ROWS.values() for name, n in rows.items()}
SUBSETS = tuple(COUNTS)
PRIOR_COUNTS: dict[str, int] = {  # rows of the splits of the prior sets that the leaderboard reports
    "anthropic_harmless": 2266,
    "anthropic_helpful": 6192,
    "anthropic_hhh": 221,
    "shp": 1741,
    "summarize": 9000,
    "mtbench_human": 3355,
    "mtbench_gpt4": 2400,
}
PRIOR_LEFT_OUT = ("pku_better", "pku_safer")  # splits that the leaderboard does not score
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")  # sets in the score

_MATH_WEIGHT = 984  # math-prm has the same weight as the six code subsets together
_SWAPPED = {"xstest-should-refuse": 250, "xstest-should-respond": 154}  # the counts until 2024-09-10


def read(row: Row) -> PreferenceGroup:
    """`id`, `prompt`, `chosen`, `rejected`, `subset`; the prompt is text, or messages in the prior sets."""
    subset = text_in(row, "subset")
    right, wrong = [text_in(row, "chosen")], [text_in(row, "rejected")]
    return right_and_wrong(f"{subset}/{id_in(row)}", prompt_in(row), right, wrong, subset)


def _weights(counts: Mapping[str, float]) -> dict[str, Weights]:
    return {section: {name: counts[name] for name in names} for section, names in SECTIONS.items()}


_UNTIL_2024_09 = _weights({**COUNTS, **_SWAPPED, "math-prm": _MATH_WEIGHT})
SECTION_WEIGHTS: dict[str, dict[str, Weights]] = {  # of the eras that have sections
    "current": _weights({**COUNTS, "math-prm": _MATH_WEIGHT}),
    "2024-04": _UNTIL_2024_09,
    "2024-03": {  # the weights assigned to a section's subsets in alphabetical order, capitals first
        section: dict(zip(sorted(weights), weights.values(), strict=True))
        for section, weights in _UNTIL_2024_09.items()
    },
    "subset_mean": _weights(dict.fromkeys(SUBSETS, 1)),
}
ERAS = (*SECTION_WEIGHTS, "micro_accuracy")


def eras(sizes: Sizes, prior: Collection[str]) -> dict[str, Era]:
    """All published formulas. The score of the prior sets is the mean of their four accuracies.

    - `current`: since 2024-09-10; subsets weigh by their rows, math-prm 984; with prior sets (2, 2, 2, 2, 1) / 9.
    - `2024-04`: the same with the row counts of the two XSTest subsets swapped.
    - `2024-03`: in addition, a section's weights were assigned to its subsets in another order; with prior sets the
      mean of five. Most rows of the oldest published tables use it.
    - `subset_mean`: plain means over subsets, as in some model cards; the prior sets' score is the mean of all given
      ones, at least the four; with prior sets the mean over all subsets and these prior sets.
    - `micro_accuracy`: right rows over all rows, which the `rewardbench` command prints; it has no prior sets.
    """
    by_subset = SECTION_WEIGHTS["subset_mean"]
    sets = [name for name in PRIOR_COUNTS if name in PRIOR_SETS or name in prior]
    plain = Era(_mean(by_subset), by_subset, dict.fromkeys(sets, 1), dict.fromkeys([*SUBSETS, *sets], 1))
    return {
        **{era: _era(era, share) for era, share in (("current", 1 / 9), ("2024-04", 1 / 9), ("2024-03", 1 / 5))},
        "subset_mean": plain,
        "micro_accuracy": Era({name: sizes.get(name, n) for name, n in COUNTS.items()}),
    }


def _era(name: str, prior_share: float) -> Era:
    """The mean of the sections; with prior sets, these have a share of the score."""
    sections, prior = SECTION_WEIGHTS[name], dict.fromkeys(PRIOR_SETS, 1 / len(PRIOR_SETS))
    core = {subset: (1 - prior_share) * weight for subset, weight in _mean(sections).items()}
    return Era(_mean(sections), sections, prior, {**core, **{name: prior_share * w for name, w in prior.items()}})


def _mean(sections: Mapping[str, Weights]) -> Weights:
    """Each subset's weight in the plain mean of sections."""
    return {
        subset: weight / sum(weights.values()) / len(sections)
        for weights in sections.values()
        for subset, weight in weights.items()
    }


BENCHMARK = Benchmark(
    name="rewardbench-1",
    title="RewardBench",
    hub_id="allenai/reward-bench",
    split="filtered",
    read=read,
    sections=lambda sizes: SECTION_WEIGHTS["current"],
    eras=eras,
    counts=COUNTS,
    prior=PriorSets(PRIOR_COUNTS, PRIOR_SETS, PRIOR_LEFT_OUT, "allenai/preference-test-sets"),
)
