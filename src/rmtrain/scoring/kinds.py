"""The kinds of scorers that can be opened. A new kind is a class with `open` and `score`, and a line here."""

from collections.abc import Callable

from rmtrain.scoring.calibrated import CalibratedScorer
from rmtrain.scoring.ensemble import EnsembleScorer
from rmtrain.scoring.implicit import PolicyScorer
from rmtrain.scoring.reward_models import PairScorer, RewardModelScorer
from rmtrain.scoring.scorer import Scorer, ScorerRequest

# asked in this order; `open` returns None if the request is for another kind
SCORERS: list[Callable[[ScorerRequest], Scorer | None]] = [
    PolicyScorer.open,
    PairScorer.open,
    RewardModelScorer.open,
]


def open_scorer(request: ScorerRequest) -> Scorer:
    """Open the scorer that a request names, on this process's device.

    Raises:
        CheckpointError: the checkpoint is damaged, or of an unknown kind.
        InputError: this kind does not have one of the options.
    """
    if request.options.combine is not None:
        return EnsembleScorer(request, open_scorer)
    if request.options.calibrated:
        return CalibratedScorer.open(request, open_scorer)
    return next(scorer for opener in SCORERS if (scorer := opener(request)) is not None)
