"""Two models on the same rows: whether they differ, and by how much they would have to."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmtrain.documents import Result, read_json, sound
from rmtrain.errors import DataError
from rmtrain.evaluation.bench_rows import ties_id
from rmtrain.evaluation.benchmarks import BENCHMARKS
from rmtrain.evaluation.differences import paired_figures, rewardbench2_differences
from rmtrain.evaluation.results import NO_SOURCE, ScoredRow, clusters_of, gaps_of
from rmtrain.metrics import rewardbench, rewardbench2, rm_bench
from rmtrain.metrics.rankings import Floats, Ints, credits_of

_SUFFIX, _PRIOR = ".rows.jsonl", "-prior"


def compare(a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow], benchmark: str | None = None) -> dict[str, Any]:
    """The accuracy of A less that of B on the rows that both have, as `compare --json` gives it.

    The interval is a paired bootstrap over prompts. The exact McNemar test counts prompts on which one model is right
    more often than the other, since the preferences of one prompt are not independent; with one preference a prompt and
    no ties it is the usual test. `detectable` is the least true difference that a comparison of this size and
    disagreement shows four times in five. A difference is `within_noise` unless interval and test agree that it is not.
    Figures of no preferences are None.

    A tie counts 1/2; on the rows of a benchmark its own rule decides: a tie is wrong, and a row of RewardBench 2 is
    right if the right completion is the best. Where subsets make up sections, `sections` and `score`, the sections'
    mean, have the same figures; None where a subset is missing. The formula of RewardBench 2's Ties has no figure for a
    row: it is bootstrapped whole, and its test asks on which prompts all right completions beat all wrong ones, as does
    the figure of all rows.

    Args:
        a_rows: rows scored by A.
        b_rows: rows scored by B, in any order.
        benchmark: whose rows they are.

    Raises:
        DataError: no row is in both, or they lack rewards that the benchmark needs.
    """
    a_rows, b_rows, unmatched = _matched(a_rows, b_rows)
    if benchmark is not None and BENCHMARKS[benchmark].needs_rewards and any(row.margins for row in a_rows + b_rows):
        raise DataError(f"rows of a model that only compares: {benchmark} needs rewards", "compare reward models on it")
    if benchmark == "rewardbench-2":
        a_rows, b_rows = ([_by_ties_prompt(row) for row in rows] for rows in (a_rows, b_rows))
    (a, groups), (b, _) = _credits(a_rows, benchmark), _credits(b_rows, benchmark)
    clusters = clusters_of(a_rows)[groups]
    labels = np.array([row.source or NO_SOURCE for row in a_rows], dtype=object)[groups]

    def figures_of(weights: Mapping[str, float]) -> dict[str, Any] | None:
        """Of a weighted mean of subsets; None if one of them is missing."""
        names = list(weights)
        if not names or not set(names) <= set(labels):
            return None
        here, shares = np.isin(labels, names), np.array(list(weights.values()), dtype=np.float64)
        strata = np.array([names.index(name) for name in labels[here]])
        return paired_figures(a[here], b[here], clusters[here], strata, shares / shares.sum())

    overall = paired_figures(a, b, clusters)
    sections = _sections(benchmark, labels)
    shares = {n: w / sum(part.values()) for part in sections.values() for n, w in part.items()}
    score = figures_of(shares)
    found = {name: figures_of(weights) for name, weights in sections.items()}
    if benchmark == "rewardbench-2":
        found, score = rewardbench2_differences(a_rows, b_rows, a, b, clusters)
    return {
        **overall,
        "groups": len(a_rows),
        "verdict": _verdict(overall),
        **unmatched,
        "benchmark": benchmark,
        "score": {**score, "verdict": _verdict(score)} if score else None,
        "sections": found,
        "by_source": {source: figures_of({source: 1}) for source in sorted(set(labels))},
    }


def _by_ties_prompt(row: ScoredRow) -> ScoredRow:
    """Both forms of a prompt of the Ties subset are one cluster."""
    return row._replace(cluster=f"Ties {ties_id(row.id)[1]}") if row.source == "Ties" else row


def _sections(benchmark: str | None, labels: Iterable[str]) -> Mapping[str, Mapping[str, float]]:
    """Section → subset → weight, of the benchmarks whose sections pool subsets."""
    if benchmark == "rewardbench-1":
        return rewardbench.SECTION_WEIGHTS["current"]
    if benchmark == "rm-bench":  # by their rows
        sizes = Counter(labels)
        return {section: {name: sizes[name] or 1 for name in names} for section, names in rm_bench.DOMAINS.items()}
    return {}


def _credits(rows: Sequence[ScoredRow], benchmark: str | None) -> tuple[Floats, Ints]:
    """What each preference counts, or each row in RewardBench 2, and the row that it is of."""
    if benchmark == "rewardbench-2":
        credit = [
            float(all(row.rewards[better] > row.rewards[worse] for better, worse in row.preferences))
            if row.source == "Ties"
            else rewardbench2.best_of_credit(row.rewards)
            for row in rows
        ]
        return np.array(credit), np.arange(len(rows))
    gaps = gaps_of(rows)
    return (gaps.gaps > 0).astype(np.float64) if benchmark else credits_of(gaps.gaps), gaps.groups


def _matched(
    a_rows: Sequence[ScoredRow], b_rows: Sequence[ScoredRow]
) -> tuple[list[ScoredRow], list[ScoredRow], dict[str, int]]:
    """The rows that both have, in A's order, and how many others there are: in one alone, or not alike in both."""
    by_id = {row.id: row for row in b_rows}
    shared = [(row, by_id[row.id]) for row in a_rows if row.id in by_id]
    alike = [(a, _in_order_of(a, b)) for a, b in shared if _alike(a, b)]
    unmatched = {
        "only_a": len(a_rows) - len(shared),
        "only_b": len(b_rows) - len(shared),
        "not_alike": len(shared) - len(alike),
    }
    if not alike and (a_rows or b_rows):
        raise DataError(
            f"A and B have no row in common: {unmatched['only_a']} are in A alone, {unmatched['only_b']} in B alone, "
            f"and {len(shared)} have the same id but other prompts or preferences",
            "score both on the same data: rmtrain compare A B --data SOURCE",
        )
    return [a for a, _ in alike], [b for _, b in alike], unmatched


def _in_order_of(a: ScoredRow, b: ScoredRow) -> ScoredRow:
    """B with its preferences, and their margins if it has them, in A's order."""
    margins = dict(zip(b.preferences, b.margins, strict=bool(b.margins)))
    return b._replace(preferences=a.preferences, margins=tuple(margins[p] for p in a.preferences if margins))


def _alike(a: ScoredRow, b: ScoredRow) -> bool:
    return set(a.preferences) == set(b.preferences) and (a.cluster == b.cluster or not (a.cluster and b.cluster))


def _verdict(figures: Mapping[str, Any]) -> str:
    """One sentence: a difference is claimed only where the interval and the test agree."""
    if figures["n"] == 0:
        return "There are no preferences to compare on."
    if figures["a_better"] == figures["b_better"] == 0:
        return f"A and B do equally well on each of {figures['prompts']} prompts."
    better, points = ("A" if figures["difference"] > 0 else "B"), 100 * abs(figures["difference"])
    if not figures["within_noise"]:
        return f"{better} is better, by {points:.2f} points (p = {figures['mcnemar_p']:.2g})."
    found = f"{better} is ahead by {points:.2f} points" if points else "the accuracies are equal"
    least = f"; here {100 * figures['detectable']:.2f} would show four times in five" if figures["detectable"] else ""
    return f"Within noise: {found} (p = {figures['mcnemar_p']:.2g}){least}."


def scored_rows(folder: Path) -> dict[str, Path]:
    """Rows files in a run folder or a folder of results, by split, then by benchmark: `test` first, prior sets last."""
    files = [*sorted((folder / "eval").glob(f"*{_SUFFIX}")), *sorted((folder / "rewardbench").glob(f"*{_SUFFIX}"))]
    found = {path.name.removesuffix(_SUFFIX): path for path in files if path.is_file()}  # a link may lead nowhere
    return {name: found[name] for name in sorted(found, key=lambda name: (name != "test", name.endswith(_PRIOR)))}


def rows_of_result(path: Path) -> Path:
    """The rows file that a result file names.

    Raises:
        DataError: the result can't be read or names none, or its rows are gone.
    """
    result = read_json(path)
    if isinstance(result, list):
        raise DataError(f"{path}: holds {len(result)} results", "name the .rows.jsonl file of one of them")
    rows = result.get("rows") if isinstance(result, dict) else None
    if not isinstance(rows, str):
        raise DataError(f"{path}: names no rows file", "a result of rmtrain eval or rewardbench does, under `rows`")
    # a run folder may have been moved since
    for candidate in (Path(rows), path.parent / rows, path.parent / Path(rows).name):
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: its rows file {rows} is gone", "score the checkpoint again")


def result_beside(rows: Path) -> dict[str, Any]:
    """The result that a rows file is of; empty where none lies beside it.

    That of prior sets is their benchmark's, without what it says of the benchmark's own rows.
    """
    name = rows.name.removesuffix(_SUFFIX)
    result = _read_result(rows.with_name(f"{name}.json"))
    if not result and name.endswith(_PRIOR):
        result = _read_result(rows.with_name(f"{name.removesuffix(_PRIOR)}.json"))
        result = {key: value for key, value in result.items() if key not in ("data", "rows")}
        if result and not result.get("prior_data"):  # written later, and without them
            result["weights_fingerprint"] = "not known"
    return result


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = read_json(path)
        return dict(sound(result, Result)[0]) if isinstance(result, dict) else {}
    except DataError:
        return {}
