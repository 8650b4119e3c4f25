"""The steps from the leaderboard runner's scoring of RewardBench 1 to rmtrain's, one change after another."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rmtrain.data.benchmarks.definition import era_scores
from rmtrain.data.benchmarks.load import BenchmarkRows
from rmtrain.data.benchmarks.rewardbench1 import BENCHMARK
from rmtrain.data.prepare import tokenize_named
from rmtrain.data.types import PreferenceGroup
from rmtrain.display import Display
from rmtrain.evaluation.results import ScoredRow, gaps_of, scored_row
from rmtrain.evaluation.subsets import by_source
from rmtrain.json_values import JsonObject
from rmtrain.metrics.rankings import Floats, credits_of
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.model.reward_model import BackboneOptions
from rmtrain.scoring.run_rm import BATCH, MAX_LENGTH, RunnerScorer, remove_partials
from rmtrain.scoring.scorer import GroupScore, ScorerRequest

Precision = Literal["float16", "bfloat16", "float32", "int8"]


@dataclass(frozen=True)
class RunnerFacts:
    """Facts on how the runner treats a checkpoint and the benchmark's rows."""

    prompt: str | None
    padding_side: str
    pad_id: int
    pooling_looks_for_id: int
    rows_with_double_bos: int
    rows_cut: int
    batch: int = BATCH
    max_length: int = MAX_LENGTH


class ParityStep(NamedTuple):
    """A way of scoring, and the scored pairs of the benchmark and of the prior sets."""

    name: str
    rows: Sequence[ScoredRow]
    prior_rows: Sequence[ScoredRow] = ()


@dataclass(frozen=True)
class Parity:
    """The steps from the runner's scoring of a checkpoint to rmtrain's own."""

    precision: Precision
    facts: RunnerFacts
    steps: Sequence[ParityStep]
    partial: Path  # start of the paths of files with finished batches

    def finish(self, rows: Sequence[ScoredRow], prior_rows: Sequence[ScoredRow]) -> JsonObject:
        """Remove the files of finished batches; returns the steps as recorded in a result, the last two with rmtrain's
        own rows."""
        last = [ParityStep(name, rows, prior_rows) for name in ("own dtype, each prompt once", "a tie counts 1/2")]
        remove_partials(self.partial)
        steps = [asdict(figures) for figures in step_figures([*self.steps, *last])]
        return {"precision": self.precision, **asdict(self.facts), "ladder": steps}


def score_as_runner(
    request: ScorerRequest, precision: Precision, rows: BenchmarkRows, partial: Path, display: Display
) -> Parity:
    """Score with a reward model as the runner does, and by each further step; the model is freed at the end.

    Args:
        request: names a reward model with a decoder.
        rows: the rows of the benchmark and of the prior sets, which the runner scores separately.
        partial: beginning of the paths of files that keep finished batches, so that the scoring can be resumed.
    """
    dtype, quantization = ("float16", "int8") if precision == "int8" else (precision, "none")
    checkpoint = request.load(BackboneOptions(dtype, quantization, packing="none"))
    checkpoint.require_decoder("--parity")
    facts, steps = runner_steps(checkpoint, rows, request.options.prompt is None, partial, display)
    if facts.prompt is not None:
        display.note(f"scored as by the leaderboard's runner, with the prompt {facts.prompt}")
    return Parity(precision, facts, steps, partial)


def runner_steps(
    checkpoint: Checkpoint, rows: BenchmarkRows, own_prompt: bool, partial: Path, display: Display
) -> tuple[RunnerFacts, list[ParityStep]]:
    """The facts of the runner for a checkpoint, loaded with `packing="none"`, and each step except rmtrain's own.

    With `own_prompt`, models for which the runner has a prompt get it; otherwise all get the checkpoint's.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)

    def open_scorer(groups: Sequence[PreferenceGroup]) -> RunnerScorer:
        tokens = tokenize_named(BENCHMARK.name, groups, checkpoint.tokenization, display)
        return RunnerScorer(checkpoint, groups, tokens.groups(), own_prompt)

    scorer = open_scorer(rows.groups)
    steps = scorer.steps()
    as_run = scorer.sequences(steps[0][1])
    facts = RunnerFacts(
        prompt=scorer.prompt,
        padding_side=scorer.pads.side,
        pad_id=scorer.pads.fill,
        pooling_looks_for_id=scorer.pads.skip,
        rows_with_double_bos=sum(scorer.doubled(ids[0]) for ids in as_run),
        rows_cut=sum(max(map(len, ids)) == MAX_LENGTH for ids in as_run),
    )
    scored = _rows_by_step(scorer, rows.groups, partial, display)
    prior = [list[ScoredRow]() for _ in steps]
    if rows.prior:
        prior = _rows_by_step(open_scorer(rows.prior), rows.prior, partial, display)
    return facts, [ParityStep(name, *parts) for (name, _), *parts in zip(steps, scored, prior, strict=True)]


def _rows_by_step(
    scorer: RunnerScorer, groups: Sequence[PreferenceGroup], partial: Path, display: Display
) -> list[list[ScoredRow]]:
    rewards = scorer.score(
        [settings for _, settings in scorer.steps()],
        partial,
        lambda done, total: display.progress("score as the leaderboard's runner", done, total),
    )
    return [
        [scored_row(group, GroupScore(values, (), False)) for group, values in zip(groups, of_step, strict=True)]
        for of_step in rewards
    ]


@dataclass(frozen=True)
class StepFigures:
    """Figures of a step, and the benchmark's rows whose credit differs from the previous step."""

    rung: str  # the name of the step
    accuracy: float | None  # over rows
    mean_of_sections: float | None
    flipped: int
    to_right: int
    to_wrong: int
    ties: int
    flipped_rows: list[str]
    subsets: dict[str, float]
    prior_sets: dict[str, float] | None
    scores: dict[str, dict[str, float | None]]  # the scores by the formulas of each era


def step_figures(steps: Sequence[ParityStep]) -> list[StepFigures]:
    """Figures of steps with the same rows in the same order; in the last step a tie counts 1/2."""
    figures: list[StepFigures] = []
    before: Floats | None = None
    for place, (name, rows, prior_rows) in enumerate(steps):
        ties_half = place == len(steps) - 1
        credit, subsets, ties = _credit(rows, ties_half)
        prior = _credit(prior_rows, ties_half)[1]
        change = np.zeros(len(credit)) if before is None else credit - before
        sizes = {source: len(members) for source, members in by_source(rows).items()}
        scores = era_scores(BENCHMARK, subsets, prior, sizes)
        names = ("mean_of_sections", "with_prior_sets")
        figures.append(
            StepFigures(
                rung=name,
                accuracy=float(credit.mean()) if len(credit) else None,
                mean_of_sections=scores["current"].mean_of_sections,
                flipped=int((change != 0).sum()),
                to_right=int((change > 0).sum()),
                to_wrong=int((change < 0).sum()),
                ties=ties,
                flipped_rows=[row.id for row, moved in zip(rows, change, strict=True) if moved],
                subsets=subsets,
                prior_sets=prior or None,
                scores={era: {key: getattr(score, key) for key in names} for era, score in scores.items()},
            )
        )
        before = credit
    return figures


def _credit(rows: Sequence[ScoredRow], ties_half: bool) -> tuple[Floats, dict[str, float], int]:
    """The credit of each row, the accuracy of each source, and the number of ties."""
    gaps = gaps_of(rows).gaps
    credit = credits_of(gaps) if ties_half else (gaps > 0).astype(np.float64)
    sources = np.array([row.source for row in rows])
    return credit, {name: float(credit[sources == name].mean()) for name in by_source(rows)}, int((gaps == 0).sum())
