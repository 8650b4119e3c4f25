"""The table of published reward models on RewardBench 1, with results of one's own in place."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rmtrain.data.benchmarks.rewardbench1 import BENCHMARK, COUNTS, PRIOR_COUNTS, PRIOR_SETS, SECTION_WEIGHTS, SECTIONS
from rmtrain.documents import Result, checked, read_json
from rmtrain.errors import DataError
from rmtrain.evaluation.figures import Subset, weighted_score
from rmtrain.evaluation.flat_results import published_model, published_result, published_results

_BENCHMARK = BENCHMARK.name
_FIGURES = ("prior_sets", "mean_of_sections", "low", "high", "with_prior_sets", "with_prior_low", "with_prior_high")
_SECTION_SORTS = {section.lower().replace(" ", "-"): section for section in SECTIONS}
SORTS = ("mean", "with-prior", "published", *_SECTION_SORTS)

Entry = dict[str, Any]  # a row of the table, as `leaderboard --format json` gives it


def leaderboard(era: str, sort: str, own: Sequence[Entry]) -> dict[str, Any]:
    """The published models and one's own results as one table, the best first.

    Every row has `published` (sections, prior_sets, mean_of_sections, with_prior_sets, source) or None, and `scored`,
    the same by the era's formula, with 95 % intervals and how they were made: `clustered` by prompt from scored rows,
    `binomial` from the accuracies and sizes of subsets, each row taken as independent, `sections` the same where only
    sections are known, whose subsets are then taken as alike, or None. `length_baseline` is what "the longer wins" gets
    on one's own rows. One's own results of a published model, told by its hub id, are its `rescored`. Rows without the
    figure sorted by, or with other than all rows of what it is made of (`partial`), come last and have no rank.

    Args:
        era: of the scoring.
        sort: one of SORTS.
        own: rows of `own_entries`.
    """
    published, notes = published_entries(era)
    models = {row["ckpt"].lower(): row for row in published}
    others = []
    for entry in own:
        row = models.get(str(entry["ckpt"]).partition("@")[0].lower())
        if row is not None:
            row["rescored"].append({**entry, "partial": _is_partial(entry, sort)})
        else:
            others.append(entry)
    rows = [{**row, "partial": _is_partial(row, sort)} for row in [*published, *others]]

    def figure(row: Entry) -> float | None:
        return None if row["partial"] else sort_figure(row, sort)

    rows.sort(key=lambda row: (figure(row) is None, -(figure(row) or 0), row["model"]))
    return {
        "benchmark": _BENCHMARK,
        "era": era,
        "sort": sort,
        "rows": [{"rank": None if figure(row) is None else rank, **row} for rank, row in enumerate(rows, 1)],
        "notes": notes,
    }


def _is_partial(row: Entry, sort: str) -> bool:
    """Whether the figure sorted by is of other than all the rows that it should be of."""
    if sort == "published":
        return False
    subsets = SECTIONS[_SECTION_SORTS[sort]] if sort in _SECTION_SORTS else COUNTS
    needed = {*subsets, *(PRIOR_SETS if sort == "with-prior" else ())}
    return not needed.isdisjoint([*row["missing_subsets"], *row["incomplete_subsets"]])


def sort_figure(row: Entry, sort: str, side: str = "scored") -> float | None:
    """The figure of a row that the table is sorted by, or the same as it was published (`side`)."""
    figures = (row["published"] if sort == "published" else row[side]) or {}
    found: dict[str, float | None] = figures.get("sections", {}) if sort in _SECTION_SORTS else figures
    return found.get(_SECTION_SORTS.get(sort, "mean_of_sections" if sort == "mean" else "with_prior_sets"))


def published_entries(era: str) -> tuple[list[Entry], dict[str, str]]:
    """The published models by an era's formula, and the notes that they refer to."""
    known = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    entries = [_published_entry(model, era, known["sources"]) for model in known["models"]]
    return entries, known["notes"]


def _published_entry(model: Mapping[str, Any], era: str, sources: Mapping[str, str]) -> Entry:
    if "subsets" in model:
        published = published_model(model["id"], model, model["name"])
        scored = _scored(published_result(BENCHMARK, published).to_json(), era, "binomial", sources["subsets"])
    else:
        scored = _with_intervals(_stated(model["eras"].get(era, {}), sources), era)
    then = dict(model["published"])
    return _entry(
        model["name"],
        ckpt=model["id"],
        published=_stated({**then, "with_prior_sets": then.pop("average")}, sources),
        scored=scored,
        notes=model.get("notes", []),
    )


def _entry(model: str, *, ckpt: str | None, scored: Entry, path: str | None = None, **values: Any) -> Entry:
    own: Entry = {"published": None, "length_baseline": None, "missing_subsets": [], "incomplete_subsets": {}}
    own |= {"notes": [], "rescored": []}
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


def _with_intervals(figures: Entry, era: str) -> Entry:
    """With the intervals that the scores and sizes of sections alone allow."""
    if None in figures["sections"].values():
        return figures
    sizes = {section: _effective(weights, COUNTS) for section, weights in SECTION_WEIGHTS[era].items()}
    parts = {section: Subset(0, score, sizes[section]) for section, score in figures["sections"].items()}
    if figures["prior_sets"] is not None:
        size = _effective(dict.fromkeys(PRIOR_SETS, 1), PRIOR_COUNTS)
        parts["prior sets"] = Subset(0, figures["prior_sets"], size)
    weights = dict.fromkeys(SECTIONS, 1 if era == "2024-03" else 2)
    ends: dict[str, float | None] = {}
    for prefix, weighted in (("", weights), ("with_prior_", {**weights, "prior sets": 1})):
        if score := weighted_score(parts, weighted):
            ends |= {f"{prefix}low": score.low, f"{prefix}high": score.high}
    return {**figures, **ends, "interval": "sections"}


def _effective(weights: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """Number of equal rows whose mean varies as the weighted mean of subsets with one accuracy does (Kish 1965)."""
    return sum(weights.values()) ** 2 / sum(weight**2 / counts[name] for name, weight in weights.items())


def _scored(result: Mapping[str, Any], era: str, interval: str, source: str) -> Entry:
    score = result["scores"][era]
    return {
        "sections": {name: score.get("sections", {}).get(name) for name in SECTIONS},
        **{key: score.get(key) for key in _FIGURES},
        "interval": interval if score.get("low") is not None else None,
        "source": source,
    }


def _length_baseline(result: Mapping[str, Any], era: str) -> Entry | None:
    """What "the longer wins" gets; sections weigh their subsets as today's formula does, so only of that era."""
    score = result["scores"][era]
    if score.get("length_baseline") is None:
        return None
    parts = result["sections"] if era == "current" else {}
    return {
        "sections": {name: (parts.get(name) or {}).get("length_baseline") for name in SECTIONS},
        "prior_sets": (result["prior_sets"] or {}).get("length_baseline"),
        "mean_of_sections": score["length_baseline"],
        "with_prior_sets": score.get("with_prior_length_baseline"),
    }


def own_entries(folders: Sequence[Path], given: Sequence[Path], era: str) -> tuple[list[Entry], list[str]]:
    """The results below folders of runs or of results, then those given, each once; and what is unreadable below them.

    A result given is a file of `rmtrain rewardbench`, a folder that holds one, or a file of published accuracies.

    Raises:
        DataError: a result given can't be read, or is of another benchmark.
    """
    entries, faults, seen = [], [], set()
    for path in [path for folder in folders for path in sorted(folder.glob(f"*/rewardbench/{_BENCHMARK}.json"))]:
        seen.add(path.resolve())
        try:
            entries += _read(path, era)
        except DataError as error:
            faults.append(error.message)
    for path in given:
        path = path / "rewardbench" / f"{_BENCHMARK}.json" if path.is_dir() else path
        if path.resolve() not in seen:
            seen.add(path.resolve())
            entries += _read(path, era)
    return entries, faults


def _read(path: Path, era: str) -> list[Entry]:
    result = read_json(path, "name a result of rmtrain rewardbench")
    if not isinstance(result, dict) or "benchmark" not in result:
        return [_own_entry(one.to_json(), path, era, "binomial") for one in published_results([path], BENCHMARK)]
    result = checked(result, Result, path, "score the checkpoint again")
    if result["benchmark"] != _BENCHMARK:
        raise DataError(f"{path}: a result of {result['benchmark']}", f"the leaderboard is of {_BENCHMARK}")
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
    published = result.get("published") or {}
    for key in ("prompt", "label"):
        name += f", {key} {published[key]}" if published.get(key) is not None else ""
    for key, value in (result.get("asked") or {}).items():
        name += f", {key.replace('_', ' ')} {value}"
    return _entry(
        name,
        ckpt=result["ckpt"],
        path=str(path),
        scored=_scored(result, era, interval, str(path)),
        length_baseline=_length_baseline(result, era),
        missing_subsets=[subset for subset in result["missing_subsets"] if subset in COUNTS],
        incomplete_subsets=result["incomplete_subsets"],
    )
