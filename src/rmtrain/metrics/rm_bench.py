"""RM-Bench (arXiv 2410.16184): three right and three wrong completions a prompt, in three styles."""

import numpy as np

from rmtrain.metrics.rankings import Floats

DOMAINS = {  # section → the domains of the data that it pools, row by row
    "Chat": ("chat",),
    "Math": ("math",),
    "Code": ("code",),
    "Safety": ("safety-refuse", "safety-response"),
}
STYLES = 3  # concise, detailed, detailed with markdown


def style_accuracy(rewards: Floats) -> dict[str, float]:
    """Accuracy by whether style helps or hides the right completion; the mean of the three is that of all nine pairs.

    `hard` are the pairs whose right completion is in the plainer style, `normal` those of one style, `easy` those whose
    right completion is in the richer style.

    Args:
        rewards: [n, 6] the three right completions' rewards, then the three wrong ones'; n > 0.
    """
    # [3, 3] share of prompts on which right completion i has a strictly higher reward than wrong completion j
    wins = (rewards[:, :STYLES, None] > rewards[:, None, STYLES:]).mean(axis=0)
    return {
        "hard": float(wins[np.triu_indices(STYLES, 1)].mean()),
        "normal": float(np.diag(wins).mean()),
        "easy": float(wins[np.tril_indices(STYLES, -1)].mean()),
    }
