"""The table of published reward models on RewardBench 1, together with the user's own results."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from rmtrain.data.benchmarks.rewardbench1 import BENCHMARK, COUNTS, PRIOR_COUNTS, PRIOR_SETS, SECTION_WEIGHTS, SECTIONS
from rmtrain.documents import Result, checked
from rmtrain.errors import DataError
from rmtrain.evaluation.flat_results import published_model, published_result, published_results
from rmtrain.evaluation.subsets import Subset, weighted_score
from rmtrain.json_values import JsonObject, read_json

_SECTION_SORTS = {section.lower().replace(" ", "-"): section for section in SECTIONS}
SORTS = ("mean", "with-prior", "published", *_SECTION_SORTS)


@dataclass(frozen=True)
class Figures:
    """A model's scores as fractions; None if unknown.

    `interval` says how intervals were computed: `clustered` by prompt from scored rows; `binomial` from the accuracies
    and sizes of subsets, with independent rows; `sections` likewise from sections, with equal accuracy in their
    subsets.
    """

    sections: Mapping[str, float | None]
    prior_sets: float | None = None
    mean_of_sections: float | None = None
    low: float | None = None
    high: float | None = None
    with_prior_sets: float | None = None
    with_prior_low: float | None = None
    with_prior_high: float | None = None
    interval: str | None = None
    source: str | None = None  # where the figures are from

    def by(self, sort: str) -> float | None:
        """The figure by which this sort orders the table."""
        if sort in _SECTION_SORTS:
            return self.sections[_SECTION_SORTS[sort]]
        return self.mean_of_sections if sort == "mean" else self.with_prior_sets


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    model: str
    ckpt: str | None  # hub id or folder
    scored: Figures  # by the formulas of the table's era
    published: Figures | None = None  # the published figures of a published model
    path: str | None = None  # file of a user's own result
    length_baseline: Figures | None = None  # scores of preferring the longer completion on the same rows
    missing_subsets: Sequence[str] = ()
    incomplete_subsets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: Sequence[str] = ()  # keys of the table's notes
    rescored: Sequence["Entry"] = ()  # the user's own results of this published model
    partial: bool = False  # the sorted figure lacks some of its rows, so the row has no rank
    rank: int | None = None  # from 1; None without the sorted figure

    def figure(self, sort: str) -> float | None:
        """The figure by which the table is sorted."""
        figures = self.published if sort == "published" else self.scored
        return figures.by(sort) if figures else None

    def marked(self, sort: str) -> "Entry":
        """The entry with `partial` set for a sort."""
        subsets = SECTIONS[_SECTION_SORTS[sort]] if sort in _SECTION_SORTS else COUNTS
        needed = {*subsets, *(PRIOR_SETS if sort == "with-prior" else ())}
        partial = sort != "published" and not needed.isdisjoint([*self.missing_subsets, *self.incomplete_subsets])
        return replace(self, partial=partial)


@dataclass(frozen=True)
class Board:
    """The table, best model first; rows without a rank come last."""

    era: str
    sort: str
    rows: Sequence[Entry]
    notes: Mapping[str, str]

    def to_json(self) -> JsonObject:
        """The table as in `leaderboard --format json`."""
        return {"benchmark": BENCHMARK.name, **asdict(self)}


def leaderboard(era: str, sort: str, own: Sequence[Entry]) -> Board:
    """Published models and the user's own results in one table.

    An own result of a published model, recognised by its hub id, goes into that model's `rescored`.
    """
    known = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    published = [_published_entry(model, era, known["sources"]) for model in known["models"]]
    ids = {str(entry.ckpt).lower() for entry in published}
    others = [entry for entry in own if _hub_id(entry) not in ids]
    rows = [
        replace(entry, rescored=[each.marked(sort) for each in own if _hub_id(each) == str(entry.ckpt).lower()])
        for entry in published
    ]
    rows = [entry.marked(sort) for entry in [*rows, *others]]
    figures = {id(entry): None if entry.partial else entry.figure(sort) for entry in rows}
    rows.sort(key=lambda entry: (figures[id(entry)] is None, -(figures[id(entry)] or 0), entry.model))
    ranked = [
        replace(entry, rank=None if figures[id(entry)] is None else place) for place, entry in enumerate(rows, start=1)
    ]
    return Board(era, sort, ranked, known["notes"])


def _hub_id(entry: Entry) -> str:
    return str(entry.ckpt).partition("@")[0].lower()


def _published_entry(model: Mapping[str, Any], era: str, sources: Mapping[str, str]) -> Entry:
    if "subsets" in model:
        result = published_result(BENCHMARK, published_model(model["id"], model, model["name"])).to_json()
        scored = _scored(result, era, "binomial", sources["subsets"])
    else:
        scored = _with_intervals(_stated(model["eras"].get(era), sources), era)
    published = {**model["published"], "with_prior_sets": model["published"]["average"]}
    return Entry(model["name"], model["id"], scored, _stated(published, sources), notes=model.get("notes", []))


def _stated(figures: Mapping[str, Any] | None, sources: Mapping[str, str]) -> Figures:
    """Figures in per cent, as a source states them, as fractions."""
    if figures is None:
        return Figures(dict.fromkeys(SECTIONS))
    sections = dict(zip(SECTIONS, figures["sections"], strict=True))
    stated = {"mean_of_sections": sum(sections.values()) / len(sections), **figures}
    return Figures(
        {name: round(value / 100, 10) for name, value in sections.items()},
        **{key: round(stated[key] / 100, 10) for key in ("prior_sets", "mean_of_sections", "with_prior_sets")},
        source=sources[figures["source"]],
    )


def _with_intervals(figures: Figures, era: str) -> Figures:
    """The figures with intervals computed from the scores and sizes of sections."""
    parts = {
        section: Subset(0, score, _effective_size(SECTION_WEIGHTS[era][section], COUNTS))
        for section, score in figures.sections.items()
        if score is not None
    }
    if len(parts) < len(SECTIONS):
        return figures
    if figures.prior_sets is not None:
        size = _effective_size(dict.fromkeys(PRIOR_SETS, 1), PRIOR_COUNTS)
        parts["prior sets"] = Subset(0, figures.prior_sets, size)
    weights = dict.fromkeys(SECTIONS, 1 if era == "2024-03" else 2)
    mean, with_prior = weighted_score(parts, weights), weighted_score(parts, {**weights, "prior sets": 1})
    if mean:
        figures = replace(figures, low=mean.low, high=mean.high)
    if with_prior:
        figures = replace(figures, with_prior_low=with_prior.low, with_prior_high=with_prior.high)
    return replace(figures, interval="sections")


def _effective_size(weights: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """Number of rows whose plain mean has the variance of the weighted mean of subsets with equal accuracy (Kish
    1965)."""
    return sum(weights.values()) ** 2 / sum(weight**2 / counts[name] for name, weight in weights.items())


def _scored(result: Mapping[str, Any], era: str, interval: str, source: str) -> Figures:
    """A result's figures by the formulas of an era."""
    score = result["scores"][era]
    names = ("prior_sets", "mean_of_sections", "low", "high", "with_prior_sets", "with_prior_low", "with_prior_high")
    return Figures(
        {name: score.get("sections", {}).get(name) for name in SECTIONS},
        **{name: score.get(name) for name in names},
        interval=interval if score.get("low") is not None else None,
        source=source,
    )


def _length_baseline(result: Mapping[str, Any], era: str) -> Figures | None:
    """The scores of preferring the longer completion; section scores only for the current era, whose weights they
    have."""
    score = result["scores"][era]
    if score.get("length_baseline") is None:
        return None
    parts = result["sections"] if era == "current" else {}
    return Figures(
        {name: (parts.get(name) or {}).get("length_baseline") for name in SECTIONS},
        prior_sets=(result["prior_sets"] or {}).get("length_baseline"),
        mean_of_sections=score["length_baseline"],
        with_prior_sets=score.get("with_prior_length_baseline"),
    )


def own_entries(folders: Sequence[Path], given: Sequence[Path], era: str) -> tuple[list[Entry], list[str]]:
    """The results in folders of runs or results, then the given ones, each once; and the faults of unreadable ones.

    A given result is a file of `rmtrain rewardbench`, a folder that holds one, or a file of published accuracies.

    Raises:
        DataError: a given result can't be read, or is of another benchmark.
    """
    name = f"rewardbench/{BENCHMARK.name}.json"
    paths = [path for folder in folders for path in sorted(folder.glob(f"*/{name}"))]
    entries, faults, seen = list[Entry](), list[str](), {path.resolve() for path in paths}
    for path in paths:
        try:
            entries += _read(path, era)
        except DataError as error:
            faults.append(error.message)
    for path in given:
        path = path / name if path.is_dir() else path
        if path.resolve() not in seen:
            seen.add(path.resolve())
            entries += _read(path, era)
    return entries, faults


def _read(path: Path, era: str) -> list[Entry]:
    result = read_json(path, "name a result of rmtrain rewardbench")
    if not isinstance(result, dict) or "benchmark" not in result:
        return [_own_entry(model.to_json(), path, era, "binomial") for model in published_results([path], BENCHMARK)]
    result = checked(result, Result, path, "score the checkpoint again")
    if result["benchmark"] != BENCHMARK.name:
        raise DataError(
            f"{path}: a result of {result['benchmark']}", f"the leaderboard takes results of {BENCHMARK.name} only"
        )
    try:
        return [_own_entry(result, path, era, "clustered" if result.get("rows") else "binomial")]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: holds no scores of the era {era} ({error!r})", "score the checkpoint again"
        ) from error


def _own_entry(result: Mapping[str, Any], path: Path, era: str, interval: str) -> Entry:
    return Entry(
        _own_name(result, path),
        result["ckpt"],
        _scored(result, era, interval, str(path)),
        path=str(path),
        length_baseline=_length_baseline(result, era),
        missing_subsets=[subset for subset in result["missing_subsets"] if subset in COUNTS],
        incomplete_subsets=result["incomplete_subsets"],
    )


def _own_name(result: Mapping[str, Any], path: Path) -> str:
    """The checkpoint's name with its scoring options."""
    where = Path(str(result["ckpt"] or path.name))
    name = where.parent.name if where.name == "final" else str(where)
    if policy := result.get("policy"):
        name += f" against {policy['reference']}" if policy.get("reference") else f", {policy['log_probabilities']}"
    published, asked = result.get("published") or {}, result.get("asked") or {}
    options = {key: published[key] for key in ("prompt", "label") if published.get(key) is not None} | asked
    return name + "".join(f", {key.replace('_', ' ')} {value}" for key, value in options.items())
