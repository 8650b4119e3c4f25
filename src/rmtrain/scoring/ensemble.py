"""Ensembles: rewards of several scorers, combined into one (arXiv 2310.02743), with one model in memory at a time."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rmtrain.model.weights import fingerprint_read
from rmtrain.scoring.combination import Combination
from rmtrain.scoring.scorer import GroupScore, Scorer, ScorerInfo, ScorerRequest, ScoringTask

Opener = Callable[[ScorerRequest], Scorer]


class EnsembleScorer:
    """A scorer that combines scorers, whose tokenizers and templates may differ."""

    def __init__(self, request: ScorerRequest, opener: Opener) -> None:
        """Load each member once to read its info; the last one stays in memory and scores first.

        Raises:
            InputError: a member gives no rewards, or the options do not fit it.
            CheckpointError: a member can't be loaded.
        """
        options = replace(request.options, combine=None)
        self._combination, self._opener = Combination.parse(str(request.options.combine)), opener
        self._members = [replace(request, where=where, options=options) for where in request.where.split(",")]
        self._place: int | None = None  # of the member in memory
        self._scorer: Scorer | None = None
        self._infos: list[ScorerInfo] = []
        for place in range(len(self._members)):
            self._infos.append(self._load(place).info)
            self._infos[-1].require_rewards("an ensemble")
        self.info = _describe(request, self._infos)

    def _load(self, place: int) -> Scorer:
        """Load a member in place of the previous one."""
        if self._place != place or self._scorer is None:
            self._place, self._scorer = place, None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._scorer = self._opener(self._members[place])
        return self._scorer

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """Combined rewards, with those of each member; see `Scorer`. A group is left out if a member refuses it.

        Lengths are those of the first member, and identical preferences are counted by the member with the fewest.
        """
        scores: dict[int, list[GroupScore | None]] = {}
        for place in sorted(range(len(self._members)), key=lambda place: place != self._place):
            task.display.note(f"member {place + 1} of {len(self._members)}: {self._infos[place].where}")
            scores[place] = self._load(place).score(task)
        by_group = zip(*(scores[place] for place in range(len(self._members))), strict=True)
        return [self._combined([score for score in of_group if score is not None]) for of_group in by_group]

    def _combined(self, scores: Sequence[GroupScore]) -> GroupScore | None:
        if len(scores) < len(self._members):
            return None
        rewards = tuple(score.rewards for score in scores)
        return GroupScore(
            self._combination.of(rewards),
            scores[0].lengths,
            any(score.truncated for score in scores),
            min(score.identical for score in scores),
            members=rewards,
            omitted=scores[0].omitted,
            tokens=scores[0].tokens,
        )


def _describe(request: ScorerRequest, infos: Sequence[ScorerInfo]) -> ScorerInfo:
    """What results record of an ensemble: the values of its members, and the shortest maximum length."""
    combine = str(request.options.combine)
    members = [{"ckpt": info.where, **info.record()} for info in infos]
    return ScorerInfo(
        request.where,
        fingerprint=fingerprint_read(combine, *(info.fingerprint for info in infos)),
        weights=fingerprint_read(combine, *(info.weights for info in infos)),
        dtype=", ".join(dict.fromkeys(info.dtype for info in infos)),
        max_length=min(info.max_length for info in infos),
        tokens_per_batch=min(info.tokens_per_batch for info in infos),
        rendering={info.where: info.rendering for info in infos},
        details={"ensemble": {"combine": combine, "members": members}},
        members=tuple(info.where for info in infos),
        notes=tuple(f"{info.where}: {note}" for info in infos for note in info.notes),
    )
