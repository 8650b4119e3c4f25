"""From the leaderboard's way of scoring RewardBench 1 to rmtrain's, one change after another."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.evaluation.bench_figures import by_source
from rmtrain.evaluation.results import ScoredRow, gaps_of, scored_row
from rmtrain.evaluation.splits import tokenize_for
from rmtrain.metrics.rankings import Floats, credits_of
from rmtrain.metrics.rewardbench import rewardbench_scores
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.scoring.official import BATCH, MAX_LENGTH, Habits, OfficialScorer, ladder


def score_official(
    checkpoint: Checkpoint, config_pad: int | None, groups: Sequence[PreferenceGroup], display: Display
) -> tuple[dict[str, Any], list[tuple[str, list[ScoredRow]]]]:
    """The runner's settings as found, and the rows of each rung but those of rmtrain's own scoring.

    Args:
        checkpoint: loaded in the runner's precision, with `packing="none"`.
        config_pad: the pad id in its config as published.
        groups: the benchmark's pairs, in its order.
        display: of the main process.
    """
    tokenized = tokenize_for(checkpoint, "rewardbench-1", groups, display)[0].groups()
    scorer = OfficialScorer(checkpoint, config_pad, groups, tokenized)
    as_run = scorer.sequences(Habits())
    settings = {
        "batch": BATCH,
        "max_length": MAX_LENGTH,
        "padding_side": scorer.pads.side,
        "pad_id": scorer.pads.fill,
        "pooling_skips_id": scorer.pads.skip,
        "rows_with_double_bos": sum(scorer.doubled(ids[0]) for ids in as_run),
        "rows_cut": sum(max(map(len, ids)) == MAX_LENGTH for ids in as_run),
    }
    rungs = []
    for name, habits in ladder():
        rewards = scorer.score(habits, lambda done, total, name=name: display.progress(name, done, total))  # type: ignore[misc]
        rows = [scored_row(group, values, (), False) for group, values in zip(groups, rewards, strict=True)]
        rungs.append((name, rows))
    return settings, rungs


def ladder_json(rungs: Sequence[tuple[str, Sequence[ScoredRow]]]) -> list[dict[str, Any]]:
    """Accuracy of each rung, and which decisions differ from those of the rung before.

    The last two rungs have the same rows: the second of them counts a tie 1/2. A row flips when its credit changes.

    Args:
        rungs: name and scored pairs of each way of scoring, the same rows in the same order.
    """
    entries: list[dict[str, Any]] = []
    before: Floats | None = None
    for place, (name, rows) in enumerate(rungs):
        gaps = gaps_of(rows).gaps
        half = place == len(rungs) - 1
        credit = credits_of(gaps) if half else (gaps > 0).astype(np.float64)
        change = credit - credit if before is None else credit - before
        sources = np.array([row.source for row in rows])
        subsets = {source: float(credit[sources == source].mean()) for source in by_source(rows)}
        counts = {source: int((sources == source).sum()) for source in subsets}
        entries.append(
            {
                "rung": name,
                "accuracy": float(credit.mean()) if len(credit) else None,  # over rows
                "mean_of_sections": rewardbench_scores(subsets, {}, counts)["current"].mean_of_sections,
                "flipped": int((change != 0).sum()),
                "to_right": int((change > 0).sum()),
                "to_wrong": int((change < 0).sum()),
                "ties": int((gaps == 0).sum()),
                "flipped_rows": [row.id for row, moved in zip(rows, change, strict=True) if moved],
                "subsets": subsets,
            }
        )
        before = credit
    return entries


def ladder_markdown(entries: Sequence[dict[str, Any]]) -> str:
    """The ladder as a Markdown table, accuracies in %."""
    lines = ["| scored as | accuracy over rows | mean of sections | to right | to wrong | ties |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for entry in entries:
        shown = ["–" if entry[key] is None else f"{100 * entry[key]:.2f}" for key in ("accuracy", "mean_of_sections")]
        counts = [str(entry[key]) for key in ("to_right", "to_wrong", "ties")]
        lines.append(f"| {' | '.join([entry['rung'], *shown, *counts])} |")
    return "\n".join(lines) + "\n"
