"""Ensembles: rewards of several scorers, combined into one (arXiv 2310.02743), with one model in memory at a time."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from rmtrain.model.weights import fingerprint_read
from rmtrain.scoring.combination import Combination
from rmtrain.scoring.scorer import GroupScore, Scorer, ScorerInfo, ScorerRequest, ScoringTask

Opener = Callable[[ScorerRequest], Scorer]


@dataclass
class _Loaded:
    """The member in memory, if any."""

    place: int | None = None
    scorer: Scorer | None = None


@dataclass(frozen=True)
class EnsembleScorer:
    """A scorer that combines scorers, whose tokenizers and templates may differ."""

    info: ScorerInfo
    members: tuple[ScorerRequest, ...]
    infos: tuple[ScorerInfo, ...]
    combination: Combination
    opener: Opener
    _loaded: _Loaded = field(default_factory=_Loaded)

    @classmethod
    def open(cls, request: ScorerRequest, opener: Opener) -> "EnsembleScorer":
        """Load each member once to read its info; the last one stays in memory and scores first.

        Raises:
            InputError: a member gives no rewards, or the options do not fit it.
            CheckpointError: a member can't be loaded.
        """
        options = request.options
        combination = Combination.parse(str(options.combine))
        members = tuple(
            replace(request, where=where, options=replace(options, combine=None)) for where in request.where.split(",")
        )
        loaded, infos = _Loaded(), []
        for place in range(len(members)):
            infos.append(_open(loaded, place, members, opener).info)
            infos[-1].require_rewards("an ensemble")
        return cls(_describe(request, infos), members, tuple(infos), combination, opener, loaded)

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """Combined rewards, with those of each member; see `Scorer`. A group is left out if a member refuses it.

        Lengths are those of the first member; a preference counts as identical if it is identical for every member.
        """
        scores: dict[int, list[GroupScore | None]] = {}
        for place in sorted(range(len(self.members)), key=lambda place: place != self._loaded.place):
            task.display.note(f"member {place + 1} of {len(self.members)}: {self.infos[place].where}")
            scores[place] = _open(self._loaded, place, self.members, self.opener).score(task)
        in_order = (scores[place] for place in range(len(self.members)))
        return [self._combined([each for each in of if each is not None]) for of in zip(*in_order, strict=True)]

    def _combined(self, scores: Sequence[GroupScore]) -> GroupScore | None:
        if len(scores) < len(self.members):
            return None
        rewards = tuple(score.rewards for score in scores)
        return GroupScore(
            self.combination.of(rewards),
            scores[0].lengths,
            any(score.truncated for score in scores),
            min(score.identical for score in scores),
            members=rewards,
            omitted=scores[0].omitted,
            tokens=scores[0].tokens,
        )


def _open(loaded: _Loaded, place: int, members: Sequence[ScorerRequest], opener: Opener) -> Scorer:
    """Load a member in place of the previous one."""
    if loaded.place != place or loaded.scorer is None:
        loaded.place, loaded.scorer = place, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        loaded.scorer = opener(members[place])
    return loaded.scorer


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
