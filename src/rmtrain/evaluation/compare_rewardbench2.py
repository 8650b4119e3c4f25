"""Two models on RewardBench 2, whose score is no mean over rows: the Ties subset has a formula over prompts."""

from collections.abc import Sequence

import numpy as np

from rmtrain.evaluation.bench_results import ties_prompt
from rmtrain.evaluation.differences import Figures, drawn_figures, paired_figures
from rmtrain.evaluation.results import ScoredRow
from rmtrain.metrics.intervals import Strata, paired_difference_draws
from rmtrain.metrics.rankings import Floats, Labels
from rmtrain.metrics.rewardbench2 import SUBSETS, ties_difference_draws, ties_score

_OTHERS = tuple(name for name in SUBSETS if name != "Ties")


def compare_rewardbench2(
    a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow], a: Floats, b: Floats, clusters: Labels
) -> tuple[dict[str, Figures | None], Figures | None]:
    """Figures of each subset, and of the score, the mean of six; None where a subset is missing.

    The prompts of Ties are resampled by themselves: they share none with the other subsets.

    Args:
        a_rows: rows scored by A; of Ties, both forms of a prompt are a cluster.
        b_rows: the same by B.
        a: [n] credit of A's rows.
        b: [n] credit of B's rows.
        clusters: [n] label of each row's cluster.
    """
    sources = np.array([row.source for row in a_rows], dtype=object)
    of_ties = sources == "Ties"
    sections: dict[str, Figures | None] = {
        name: paired_figures(a[here], b[here], clusters[here]) if (here := sources == name).any() else None
        for name in _OTHERS
    }
    of_a, of_b = ([ties_prompt(row) for row in rows if row.source == "Ties"] for rows in (a_rows, b_rows))
    ties_a, ties_b = ties_score(of_a), ties_score(of_b)
    if ties_a.score is None or ties_b.score is None:
        return {**sections, "Ties": None}, None
    draws = ties_difference_draws(of_a, of_b, seed=1)
    ties = drawn_figures((a - b)[of_ties], clusters[of_ties], ties_a.score, ties_b.score, draws)
    known = [ties, *(figures for figures in sections.values() if figures)]
    sections["Ties"] = ties
    if len(known) < len(SUBSETS):
        return sections, None
    labels = np.array([_OTHERS.index(source) for source in sources[~of_ties]])
    strata = Strata(labels, np.full(len(_OTHERS), 1 / len(_OTHERS)))
    others = paired_difference_draws((a - b)[~of_ties], clusters[~of_ties], strata, seed=0)
    drawn = (len(_OTHERS) * others + draws) / len(SUBSETS)
    mean_a, mean_b = (float(np.mean([figures[side] for figures in known])) for side in "ab")
    return sections, drawn_figures(a - b, clusters, mean_a, mean_b, drawn)
