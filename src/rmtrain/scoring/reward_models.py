"""Reward models, encoders and pair comparers as scorers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import InputError
from rmtrain.model.checkpoint import Checkpoint
from rmtrain.model.published.encoder import mark_answers
from rmtrain.model.published.layouts import ENCODER, PAIR_RM
from rmtrain.model.published.pair_rm import PairRenderer
from rmtrain.scoring.batches import Rewards, score_groups
from rmtrain.scoring.scorer import GroupScore, ScorerInfo, ScorerRequest, ScoringTask
from rmtrain.scoring.tokens import tokenize_task


def _describe(checkpoint: Checkpoint) -> ScorerInfo:
    """What results record of a reward model."""
    return ScorerInfo(
        checkpoint.where,
        fingerprint=checkpoint.fingerprint,
        weights=checkpoint.weights,
        dtype=str(checkpoint.model.module.compute_dtype).removeprefix("torch."),
        max_length=checkpoint.max_length,
        tokens_per_batch=checkpoint.scoring.tokens_per_batch,
        rendering=checkpoint.renderer.contract(),
        details={"published": checkpoint.published} if checkpoint.published else {},
        notes=checkpoint.notes,
        gives_rewards=checkpoint.layout is not PAIR_RM,
        renderer=checkpoint.renderer,
    )


@dataclass(frozen=True)
class RewardModelScorer:
    """A decoder with a score head, whose reward is read at the last token, or an encoder with a classification head."""

    info: ScorerInfo
    checkpoint: Checkpoint

    @classmethod
    def open(cls, request: ScorerRequest) -> "RewardModelScorer | None":
        """Open any checkpoint that no other kind claims; raises as `CheckpointFiles.load`."""
        checkpoint = request.load()
        return cls(_describe(checkpoint), checkpoint)

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """Rewards; see `Scorer`."""
        tokenized = tokenize_task(task, self.checkpoint.tokenization)
        tokens = tokenized.tokens
        if self.checkpoint.layout is ENCODER:
            tokens = mark_answers(tokenized.groups, tokens, self.checkpoint.tokenization)
        return tokenized.scores(_rewards(self, tokens, tokenized.fingerprint, task), task)


@dataclass(frozen=True)
class PairScorer:
    """PairRM: each preference is scored in both orders; the margin is half the difference of the two logits."""

    info: ScorerInfo
    checkpoint: Checkpoint

    @classmethod
    def open(cls, request: ScorerRequest) -> "PairScorer | None":
        """Open PairRM; raises as `CheckpointFiles.load`."""
        if request.files.layout is not PAIR_RM:
            return None
        if request.options.max_length is not None:
            raise InputError(f"{request.where} is PairRM, whose maximum lengths are fixed", "leave out --max-length")
        checkpoint = request.load()
        return cls(_describe(checkpoint), checkpoint)

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """Margins; see `Scorer`."""
        tokenized = [cast(PairRenderer, self.checkpoint.renderer).tokenize_pairs(group) for group in task.groups]
        asked = [tokens for tokens, _ in tokenized if tokens.suffixes]
        what = repr([self.info.rendering, task.groups]).encode("utf-8", "surrogatepass")
        answers = iter(_rewards(self, asked, hashlib.sha256(what).hexdigest(), task))
        scores: list[GroupScore | None] = []
        for tokens, lengths in tokenized:
            logits = next(answers) if tokens.suffixes else ()
            margins = tuple((first - second) / 2 for first, second in zip(logits[::2], logits[1::2], strict=True))
            places = tokens.suffix_of
            identical = sum(first == second for first, second in zip(places[::2], places[1::2], strict=True))
            scores.append(GroupScore((), tuple(lengths), tokens.truncated, identical, margins))
        return scores


def _rewards(
    scorer: "RewardModelScorer | PairScorer", tokens: Sequence[TokenizedGroup], fingerprint: str, task: ScoringTask
) -> list[Rewards]:
    """One output of the model for each completion."""
    partial = task.partial(fingerprint, scorer.info.fingerprint)
    return score_groups(
        scorer.checkpoint.model,
        tokens,
        scorer.checkpoint.renderer.pad_id,
        task.tokens_per_batch,
        partial,
        task.progress,
        task.display.note,
        alone=task.alone,
    )
