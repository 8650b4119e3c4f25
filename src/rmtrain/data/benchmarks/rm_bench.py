"""RM-Bench (arXiv 2410.16184): three right and three wrong completions per prompt, in three styles."""

from collections.abc import Collection, Mapping

import numpy as np

from rmtrain.data.benchmarks.definition import Benchmark, Era, Sizes, Weights
from rmtrain.data.benchmarks.fields import id_in, prompt_in, right_and_wrong, text_in, texts_in
from rmtrain.data.types import PreferenceGroup, Row
from rmtrain.metrics.rankings import Floats

DOMAINS = {  # section → the domains that it pools, row by row
    "Chat": ("chat",),
    "Math": ("math",),
    "Code": ("code",),
    "Safety": ("safety-refuse", "safety-response"),
}
STYLES = 3  # concise, detailed, detailed with markdown


def read(row: Row) -> PreferenceGroup:
    """`id`, `prompt`, `chosen` [3] and `rejected` [3], both ordered by style, and `domain`."""
    domain, right, wrong = text_in(row, "domain"), texts_in(row, "chosen"), texts_in(row, "rejected")
    if not len(right) == len(wrong) == STYLES:
        raise ValueError(f"chosen and rejected hold {len(right)} and {len(wrong)} completions, expected 3 and 3")
    return right_and_wrong(f"{domain}/{id_in(row)}", prompt_in(row), right, wrong, domain)


def sections(sizes: Sizes) -> dict[str, Weights]:
    """Domains weigh by their number of rows."""
    return {section: {domain: sizes.get(domain, 1) for domain in domains} for section, domains in DOMAINS.items()}


def eras(sizes: Sizes, prior: Collection[str]) -> Mapping[str, Era]:
    """The mean of the four sections."""
    parts = sections(sizes).values()
    return {"current": Era({domain: n / sum(part.values()) for part in parts for domain, n in part.items()})}


def style_accuracy(rewards: Floats) -> dict[str, float]:
    """Accuracy by whether style helps or hides the right completion; their mean is the accuracy over all nine pairs.

    `hard` is over the pairs whose right completion has the plainer style, `normal` over those of one style, `easy` over
    those whose right completion has the richer style. The [n, 6] rewards, n > 0, are of three right completions, then
    of three wrong ones.
    """
    # [3, 3] share of prompts on which right completion i has a strictly higher reward than wrong completion j
    wins = (rewards[:, :STYLES, None] > rewards[:, None, STYLES:]).mean(axis=0)
    return {
        "hard": float(wins[np.triu_indices(STYLES, 1)].mean()),
        "normal": float(np.diag(wins).mean()),
        "easy": float(wins[np.tril_indices(STYLES, -1)].mean()),
    }


BENCHMARK = Benchmark(
    name="rm-bench",
    title="RM-Bench",
    hub_id="THU-KEG/RM-Bench",
    split="train",
    read=read,
    sections=sections,
    eras=eras,
    split_sizes=(1327,),
    needs_rewards=True,
    details=style_accuracy,
    detail_names=("hard", "normal", "easy"),
)
