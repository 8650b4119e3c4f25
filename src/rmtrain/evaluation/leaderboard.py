"""The table of published reward models on RewardBench 1, with results of one's own in place."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rmtrain.errors import DataError
from rmtrain.evaluation.bench_figures import published_subset, weighted_figures
from rmtrain.evaluation.bench_published import results_from_published
from rmtrain.evaluation.bench_rewardbench1 import figures_of_subsets
from rmtrain.metrics.rewardbench import COUNTS, PRIOR_COUNTS, PRIOR_SETS, SECTION_WEIGHTS, SECTIONS

BENCHMARK = "rewardbench-1"
_FIGURES = ("prior_sets", "mean_of_sections", "low", "high", "with_prior_sets", "with_prior_low", "with_prior_high")
SORTS = ("mean", "with-prior", "published", *(section.lower().replace(" ", "-") for section in SECTIONS))

Entry = dict[str, Any]  # a row of the table, as `leaderboard --format json` gives it


def leaderboard(era: str, sort: str, own: Sequence[Entry]) -> dict[str, Any]:
    """The published models and one's own results as one table, the best first.

    Every row has `published` (sections, prior_sets, mean_of_sections, with_prior_sets, source) or None, and `scored`,
    the same by the era's formula, with 95 % intervals and how they were made: `clustered` by prompt from scored rows,
    `binomial` from the accuracies and sizes of subsets, each row taken as independent, or None. Rows without the figure
    sorted by, and partial ones, come last and have no rank.

    Args:
        era: of the scoring.
        sort: one of SORTS.
        own: rows of `own_entries`.
    """
    published, notes = published_entries(era)
    rows = sorted([*published, *own], key=lambda row: row["model"])
    ranked = [row for row in rows if sort_figure(row, sort) is not None and not row["partial"]]
    ranked.sort(key=lambda row: -float(sort_figure(row, sort) or 0))
    rest = [row for row in rows if row not in ranked]
    return {
        "benchmark": BENCHMARK,
        "era": era,
        "sort": sort,
        "rows": [{"rank": rank, **row} for rank, row in enumerate(ranked, 1)] + [{"rank": None, **row} for row in rest],
        "notes": notes,
    }


def sort_figure(row: Entry, sort: str, side: str = "scored") -> float | None:
    """The figure of a row that the table is sorted by, or the same as it was published (`side`)."""
    figures = (row["published"] if sort == "published" else row[side]) or {}
    if sort in ("with-prior", "published"):
        return figures.get("with_prior_sets")
    by_section = {name.lower().replace(" ", "-"): score for name, score in figures.get("sections", {}).items()}
    return figures.get("mean_of_sections") if sort == "mean" else by_section.get(sort)


def published_entries(era: str) -> tuple[list[Entry], dict[str, str]]:
    """The published models by an era's formula, and the notes that they refer to."""
    known = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    entries = [_published_entry(model, era, known["sources"]) for model in known["models"]]
    return entries, known["notes"]


def _published_entry(model: Mapping[str, Any], era: str, sources: Mapping[str, str]) -> Entry:
    if "subsets" in model:
        figures = figures_of_subsets(
            {name: published_subset(accuracy, COUNTS[name]) for name, accuracy in model["subsets"].items()},
            {name: published_subset(accuracy, PRIOR_COUNTS[name]) for name, accuracy in model["prior_sets"].items()},
        )
        scored = _scored(figures, era, "binomial", sources["subsets"])
    else:
        scored = _stated(model["eras"].get(era, {}), sources)
    then = dict(model["published"])
    return _entry(
        model["name"],
        ckpt=model["id"],
        published=_stated({**then, "with_prior_sets": then.pop("average")}, sources),
        scored=scored,
        notes=model.get("notes", []),
    )


def _entry(model: str, *, ckpt: str | None, scored: Entry, path: str | None = None, **values: Any) -> Entry:
    own: Entry = {"published": None, "missing_subsets": [], "incomplete_subsets": {}, "partial": False, "notes": []}
    return {"model": model, "ckpt": ckpt, "path": path, **own, **values, "scored": scored}


def _stated(figures: Mapping[str, Any], sources: Mapping[str, str]) -> Entry:
    """Figures in per cent as a source states them → fractions; what it does not state is None."""

    def fraction(value: float | None) -> float | None:
        return None if value is None else round(value / 100, 10)

    sections = figures.get("sections")
    mean = figures.get("mean_of_sections", sum(sections) / len(sections) if sections else None)
    return {
        "sections": dict(zip(SECTIONS, map(fraction, sections or [None] * len(SECTIONS)), strict=True)),
        **{key: fraction({**figures, "mean_of_sections": mean}.get(key)) for key in _FIGURES},
        "interval": None,
        "source": sources[figures["source"]] if figures else None,
    }


def _scored(result: Mapping[str, Any], era: str, interval: str, source: str) -> Entry:
    score = dict(result["scores"][era])
    if score["with_prior_sets"] is not None and interval == "binomial":
        score |= _prior_interval(result, era)
    return {
        "sections": {name: score.get("sections", {}).get(name) for name in SECTIONS},
        **{key: score.get(key) for key in _FIGURES},
        "interval": interval if score.get("low") is not None else None,
        "source": source,
    }


def _prior_interval(result: Mapping[str, Any], era: str) -> dict[str, float | None]:
    """The binomial interval of the score with prior sets, in which every subset has its share."""
    parts = {**result["subsets"], **result["prior_sets"]["subsets"]}
    subsets = {name: published_subset(part["accuracy"], part["n"]) for name, part in parts.items()}
    weights: dict[str, float] = dict.fromkeys(subsets, 1.0)
    if era != "subset_mean":
        section = 1 if era == "2024-03" else 2  # its weight where the prior sets have 1
        weights = dict.fromkeys(PRIOR_SETS, 1 / len(PRIOR_SETS))
        for shares in SECTION_WEIGHTS[era].values():
            weights |= {name: section * share / sum(shares.values()) for name, share in shares.items()}
    figures = weighted_figures(subsets, weights)
    assert figures is not None
    return {"with_prior_low": figures["low"], "with_prior_high": figures["high"]}


def own_entries(runs: Path, given: Sequence[Path], era: str) -> tuple[list[Entry], list[str]]:
    """The results of the run folders below `runs`, then those given, each once; and what is unreadable below `runs`.

    A result given is a file of `rmtrain rewardbench`, a folder that holds one, or a file of published accuracies.

    Raises:
        DataError: a result given can't be read, or is of another benchmark.
    """
    entries, faults, seen = [], [], set()
    for path in sorted(runs.glob(f"*/rewardbench/{BENCHMARK}.json")):
        seen.add(path.resolve())
        try:
            entries += _read(path, era)
        except DataError as error:
            faults.append(error.message)
    for path in given:
        path = path / "rewardbench" / f"{BENCHMARK}.json" if path.is_dir() else path
        if path.resolve() not in seen:
            seen.add(path.resolve())
            entries += _read(path, era)
    return entries, faults


def _read(path: Path, era: str) -> list[Entry]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as JSON: {error}", "name a result of rmtrain rewardbench") from error
    if not isinstance(result, dict) or "benchmark" not in result:
        return [_own_entry(one, path, era, "binomial") for one in results_from_published(path)]
    if result["benchmark"] != BENCHMARK:
        raise DataError(f"{path}: a result of {result['benchmark']}", f"the leaderboard is of {BENCHMARK}")
    try:
        return [_own_entry(result, path, era, "clustered" if result.get("rows") else "binomial")]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: no scores of the era {era} in it ({error!r})", "score the checkpoint again"
        ) from error


def _own_entry(result: Mapping[str, Any], path: Path, era: str, interval: str) -> Entry:
    where = Path(str(result["ckpt"] or path.name))
    name = where.parent.name if where.name == "final" else str(where)
    if policy := result.get("policy"):
        name += f" against {policy['reference']}" if policy.get("reference") else f", {policy['log_probabilities']}"
    missing = [subset for subset in result["missing_subsets"] if subset in COUNTS]
    return _entry(
        name,
        ckpt=result["ckpt"],
        path=str(path),
        scored=_scored(result, era, interval, str(path)),
        missing_subsets=missing,
        incomplete_subsets=result["incomplete_subsets"],
        partial=bool(missing or result["incomplete_subsets"]),
    )
