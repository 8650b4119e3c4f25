"""A scorer whose rewards are calibrated by the result of `rmtrain calibrate`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rmtrain.errors import InputError, command_line
from rmtrain.model.calibration import Calibration, read_calibration
from rmtrain.model.weights import fingerprint_read, local_folder
from rmtrain.scoring.scorer import GroupScore, Scorer, ScorerInfo, ScorerRequest, ScoringTask


@dataclass(frozen=True)
class CalibratedScorer:
    """Another scorer's rewards, converted to log-odds and without the effect of the answer's length."""

    info: ScorerInfo
    scorer: Scorer
    calibration: Calibration

    @classmethod
    def open(cls, request: ScorerRequest, opener: Callable[[ScorerRequest], Scorer]) -> "CalibratedScorer":
        """Read the calibration, then open the scorer.

        Raises:
            InputError: the checkpoint has no calibration, or one by lengths as earlier versions counted them.
            CheckpointError: it can't be used, or as the opener.
        """
        calibration = read_calibration(Path(local_folder(request.where)))
        if calibration is None:
            raise InputError(
                f"{request.where} has no calibration",
                f"fit one: {command_line('calibrate', request.where, '--data', 'SOURCE')}",
            )
        if calibration.has_old_lengths:
            raise InputError(
                f"the calibration of {request.where} is of an earlier version of rmtrain, which counted the tokens of "
                "an answer after those that all answers of its group begin with; now they are counted after the prompt",
                f"fit it again: {command_line('calibrate', request.where, '--data', 'SOURCE')}, or with --no-length",
            )
        scorer = opener(replace(request, options=replace(request.options, calibrated=False)))
        scorer.info.require_rewards("--calibrated")
        block = calibration.model_dump(mode="json", exclude={"fitted", "weights"})
        info = replace(
            scorer.info,
            fingerprint=fingerprint_read(scorer.info.fingerprint, block),
            by_length=bool(calibration.lengths),
            details={**scorer.info.details, "calibration": {"temperature": calibration.temperature}},
        )
        return cls(info, scorer, calibration)

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """Calibrated rewards; see `Scorer`."""
        counted = replace(task, counts=task.counts or self.info.by_length)
        return [
            score and score._replace(rewards=self.calibration.apply(score.rewards, score.lengths))
            for score in self.scorer.score(counted)
        ]
