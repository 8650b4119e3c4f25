"""The checkpoint that a command works on, and how it is scored."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rmtrain.cli.display import TerminalDisplay
from rmtrain.cli.processes import handed_down
from rmtrain.display import Display
from rmtrain.errors import InputError
from rmtrain.files import read_text
from rmtrain.model.weights import CALIBRATION
from rmtrain.runs import locate_model, newest_finished
from rmtrain.scoring.combination import Combination
from rmtrain.scoring.scorer import Scorer, ScorerRequest, ScoringOptions, folder_name, short_digest

if TYPE_CHECKING:
    from rmtrain.evaluation.compare import ModelRef

DEFAULTS = ScoringOptions()


class CheckpointRef(NamedTuple):
    """A checkpoint as named by the user."""

    where: str  # folder with the weights, or hub id
    run: Path | None  # the run folder it lies in
    name: str  # for folder names
    options: ScoringOptions = DEFAULTS
    verify: bool = True  # check its files against their digests

    @property
    def results(self) -> Path:
        """Folder for its results: the run folder, or one of its own under results/.

        The latter is for other models and options, and for runs that this user can't write, such as a colleague's.
        """
        own = self._own_run
        return own if own is not None and os.access(own, os.W_OK | os.X_OK) else Path("results") / self.name

    @property
    def scored(self) -> dict[str, Path]:
        """Its rows files by split, benchmark and gap, those of its run first."""
        from rmtrain.evaluation.rows_files import scored_rows

        of_run = scored_rows(self._own_run) if self._own_run is not None else {}
        return of_run | {name: path for name, path in scored_rows(self.results).items() if name not in of_run}

    @property
    def _own_run(self) -> Path | None:
        """The run whose results these would be."""
        return self.run if self.options == DEFAULTS else None

    @property
    def request(self) -> ScorerRequest:
        """The arguments of `open_scorer`."""
        return ScorerRequest(self.where, self.options, self.verify)

    @property
    def first(self) -> str:
        """The folder or hub id whose record says how data is read; for an ensemble, that of its first member."""
        return self.members[0]

    @property
    def members(self) -> list[str]:
        """The folders or hub ids of an ensemble's members, or the only one of a single checkpoint."""
        return [self.where] if self.options.combine is None else self.where.split(",")


def choose(
    ckpt: str | None, runs: Path, display: TerminalDisplay, options: ScoringOptions = DEFAULTS, verify: bool = True
) -> CheckpointRef:
    """Find the checkpoint that --ckpt names. Without --ckpt, take the newest finished run, and say so.

    Raises:
        InputError: a run that is not finished, or no run at all.
    """
    if options.combine is not None or (ckpt is not None and "," in ckpt and not Path(ckpt).exists()):
        named = _find_several(ckpt or "", options.combine)
    else:
        named = _find(ckpt, runs, display)
    named = named._replace(options=options, verify=verify)
    return named._replace(name="-".join([named.name, *options.marks, *_calibrations(named)]))


def _calibrations(ref: CheckpointRef) -> list[str]:
    """A mark of the calibrations beside the weights, so that results of earlier ones stay where they are."""
    files = [Path(where) / CALIBRATION for where in ref.members] if ref.options.calibrated else []
    fitted = [read_text(path) for path in files if path.is_file()]
    return [short_digest("".join(fitted))] if fitted else []


def _find(ckpt: str | None, runs: Path, display: TerminalDisplay) -> CheckpointRef:
    if ckpt is None:
        faults: dict[Path, str] = {}
        folder = Path(handed_down("NEWEST_RUN", lambda: str(newest_finished(runs, faults))))
        for fault in faults.values():
            display.note_once(f"passed over: {fault}")
        display.note_once(f"checkpoint: {folder} (the newest finished run under {runs}/)")
        return CheckpointRef(str(folder / "final"), folder, folder.name)
    where, run = locate_model(ckpt)
    return CheckpointRef(where, run, run.name if run is not None else folder_name(ckpt))


def _find_several(ckpts: str, combine: str | None) -> CheckpointRef:
    names = ckpts.split(",")
    if combine is None:
        raise InputError(
            f"{ckpts} names {len(names)} checkpoints", "name one, or combine the rewards of several with --combine"
        )
    if len(names) < 2 or not all(names):
        raise InputError("--combine needs at least two checkpoints", "separate them by commas, as in --ckpt A,B,C")
    Combination.parse(combine)
    wheres = [locate_model(name)[0] for name in names]
    require_distinct(names, wheres)
    where = ",".join(wheres)
    return CheckpointRef(where, None, f"{len(names)}-models-{short_digest(where)}")


def require_distinct(names: Sequence[str], wheres: Sequence[str]) -> None:
    """Refuse several checkpoints of which two are the same one, whose rewards or weights would count twice.

    Raises:
        InputError: names both.
    """
    first: dict[str, str] = {}
    for name, where in zip(names, wheres, strict=True):
        place = os.path.realpath(where) if os.path.isdir(where) else where
        if place in first:
            raise InputError(f"{first[place]} and {name} are the same checkpoint", "name each checkpoint once")
        first[place] = name


def load(ref: "ModelRef", display: Display, needs_rewards: str = "") -> Scorer:
    """Open a checkpoint as a scorer on this process's device, and show its notes.

    `needs_rewards` names work that a model which only compares completions can't do.

    Raises:
        CheckpointError: it can't be loaded.
        InputError: an option does not fit it.
    """
    from rmtrain.scoring.kinds import open_scorer

    scorer = open_scorer(ref.request)
    if needs_rewards:
        scorer.info.require_rewards(needs_rewards)
    for note in scorer.info.notes:
        display.note(note)
    return scorer
