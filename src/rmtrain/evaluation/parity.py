"""From the leaderboard's way of scoring RewardBench 1 to rmtrain's, one change after another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmtrain.data.benchmarks.definition import era_scores
from rmtrain.data.benchmarks.rewardbench1 import BENCHMARK
from rmtrain.data.prepare import tokenize_named
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.evaluation.figures import by_source
from rmtrain.evaluation.results import ScoredRow, gaps_of, scored_row
from rmtrain.metrics.rankings import Floats, credits_of
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.scoring.official import BATCH, MAX_LENGTH, OfficialScorer
from rmtrain.scoring.scorer import GroupScore


class Rung(NamedTuple):
    """One way of scoring, and the scored pairs of the benchmark and of the prior sets."""

    name: str
    rows: Sequence[ScoredRow]
    prior_rows: Sequence[ScoredRow] = ()


def score_official(
    checkpoint: Checkpoint,
    groups: Sequence[PreferenceGroup],
    prior: Sequence[PreferenceGroup],
    own_prompt: bool,
    partial: Path,
    display: Display,
) -> tuple[dict[str, Any], list[Rung]]:
    """The runner's settings as found, and each rung but those of rmtrain's own scoring.

    Args:
        checkpoint: loaded in the runner's precision, with `packing="none"`.
        groups: the benchmark's pairs, in its order.
        prior: those of the prior sets, which the runner scores apart; none where they were not asked for.
        own_prompt: take the runner's prompt where the model has one of its own; else the checkpoint's throughout.
        partial: beginning of the paths to which finished batches are written; an interrupted scoring goes on from them.
        display: of the main process.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)

    def scorer_of(part: Sequence[PreferenceGroup]) -> OfficialScorer:
        rule = checkpoint.scoring.over_length
        made = tokenize_named(BENCHMARK.name, part, checkpoint.renderer, checkpoint.max_length, rule, display)
        return OfficialScorer(checkpoint, part, made.groups(), own_prompt)

    scorer = scorer_of(groups)
    ladder = scorer.ladder()
    as_run = scorer.sequences(ladder[0][1])
    settings = {
        "prompt": scorer.prompt,
        "batch": BATCH,
        "max_length": MAX_LENGTH,
        "padding_side": scorer.pads.side,
        "pad_id": scorer.pads.fill,
        "pooling_looks_for_id": scorer.pads.skip,
        "rows_with_double_bos": sum(scorer.doubled(ids[0]) for ids in as_run),
        "rows_cut": sum(max(map(len, ids)) == MAX_LENGTH for ids in as_run),
    }
    rows = _rows_by_rung(scorer, groups, partial, display)
    prior_rows = _rows_by_rung(scorer_of(prior), prior, partial, display) if prior else [[] for _ in ladder]
    return settings, [Rung(name, *of_parts) for (name, _), *of_parts in zip(ladder, rows, prior_rows, strict=True)]


def _rows_by_rung(
    scorer: OfficialScorer, groups: Sequence[PreferenceGroup], partial: Path, display: Display
) -> list[list[ScoredRow]]:
    found = scorer.score(
        [habits for _, habits in scorer.ladder()],
        partial,
        lambda done, total: display.progress("score as the leaderboard did", done, total),
    )
    return [
        [scored_row(group, GroupScore(values, (), False)) for group, values in zip(groups, rewards, strict=True)]
        for rewards in found
    ]


def ladder_json(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Figures of each rung, and which decisions on the benchmark's rows differ from those of the rung before.

    The last two rungs have the same rows: the second of them counts a tie 1/2. A row flips when its credit changes.

    Args:
        rungs: the same rows in the same order in each.
    """
    entries: list[dict[str, Any]] = []
    before: Floats | None = None
    for place, (name, rows, prior_rows) in enumerate(rungs):
        half = place == len(rungs) - 1
        credit, subsets, ties = _credit(rows, half)
        prior = _credit(prior_rows, half)[1]
        change = credit - credit if before is None else credit - before
        counts = {source: len(members) for source, members in by_source(rows).items()}
        scores = era_scores(BENCHMARK, subsets, prior, counts)
        entries.append(
            {
                "rung": name,
                "accuracy": float(credit.mean()) if len(credit) else None,  # over rows
                "mean_of_sections": scores["current"].mean_of_sections,
                "flipped": int((change != 0).sum()),
                "to_right": int((change > 0).sum()),
                "to_wrong": int((change < 0).sum()),
                "ties": ties,
                "flipped_rows": [row.id for row, moved in zip(rows, change, strict=True) if moved],
                "subsets": subsets,
                "prior_sets": prior or None,
                "scores": {
                    era: {"mean_of_sections": score.mean_of_sections, "with_prior_sets": score.with_prior_sets}
                    for era, score in scores.items()
                },
            }
        )
        before = credit
    return entries


def _credit(rows: Sequence[ScoredRow], half: bool) -> tuple[Floats, dict[str, float], int]:
    """The credit of each row, the accuracy of each of their sources, and how many are tied."""
    gaps = gaps_of(rows).gaps
    credit = credits_of(gaps) if half else (gaps > 0).astype(np.float64)
    sources = np.array([row.source for row in rows])
    return credit, {name: float(credit[sources == name].mean()) for name in by_source(rows)}, int((gaps == 0).sum())
