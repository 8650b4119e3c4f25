"""The settings of a sweep, ranked by validation, and whether their differences are significant."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rmtrain.errors import DataError
from rmtrain.evaluation.results import read_rows
from rmtrain.evaluation.rows_files import ROWS_SUFFIX
from rmtrain.evaluation.seeds import Metric, SeedDifference, SeedFigures, Seeds, seed_difference, seed_figures
from rmtrain.json_values import JsonObject
from rmtrain.recipe.grid import Setting

Runs = Mapping[int, Path]  # run folders by seed


@dataclass(frozen=True)
class Standing:
    """A setting with its figures, and the best setting's lead over it."""

    setting: Setting
    runs: Runs
    figures: SeedFigures
    lead: SeedDifference | None  # the best setting minus this one; None for the best itself

    def to_json(self) -> JsonObject:
        """The setting as in `sweep --json`."""
        return {
            "setting": self.setting.number,
            "label": self.setting.label,
            "overrides": list(self.setting.overrides),
            **asdict(self.figures),
            "runs": {seed: str(path) for seed, path in self.runs.items()},
            "lead": {**asdict(self.lead), "found": self.lead.found} if self.lead else None,
        }


def rank(trained: Sequence[tuple[Setting, Runs]], metric: Metric) -> list[Standing]:
    """Settings with at least one finished run, best first; the other metric breaks ties.

    Raises:
        DataError: a run has no scored rows of validation, or runs of one seed were scored on different rows.
    """
    rows = [(setting, runs, rows_by_seed(runs, "validation")) for setting, runs in trained if runs]
    figures = [seed_figures(by_seed) for _, _, by_seed in rows]
    order = sorted(range(len(rows)), key=lambda place: _key(figures[place], metric))
    standings = []
    for place in order:
        setting, runs, by_seed = rows[place]
        lead = seed_difference(rows[order[0]][2], by_seed, metric) if place != order[0] else None
        standings.append(Standing(setting, runs, figures[place], lead))
    return standings


def rows_by_seed(runs: Runs, split: str) -> Seeds:
    """The scored rows of a split for each run.

    Raises:
        DataError: a run has none.
    """
    for run in runs.values():
        if not rows_of(run, split).exists():
            raise DataError(
                f"{run}: no rows of {split} are scored",
                f"give the recipe a {split} split: in data.source, or by data.holdout.{split}",
            )
    return {seed: read_rows(rows_of(run, split)) for seed, run in runs.items()}


def rows_of(run: Path, split: str) -> Path:
    """The file with a run's scored rows of a split."""
    return run / "eval" / f"{split}{ROWS_SUFFIX}"


def _key(figures: SeedFigures, metric: Metric) -> tuple[float, float]:
    return (-figures.accuracy, figures.loss) if metric == "accuracy" else (figures.loss, -figures.accuracy)


def verdict(standings: Sequence[Standing]) -> str:
    """One sentence: from which settings the best one differs significantly."""
    if not standings:
        return "No run has finished."
    best, others = standings[0].setting, standings[1:]
    if not others:
        return "There is only one setting, so there is no comparison."
    alike = [str(standing.setting.number) for standing in others if not (standing.lead and standing.lead.found)]
    if not alike:
        return f"Setting {best.number} ({best.label}) is better than every other setting."
    which = "any other one" if len(alike) == len(others) else f"setting {', '.join(alike)}"
    return f"No difference found between setting {best.number} ({best.label}), which is ahead, and {which}."
