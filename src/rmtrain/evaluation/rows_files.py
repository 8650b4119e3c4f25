"""Rows files, which hold scored rows: those of a folder, the one that a result names, and the result beside one."""

from pathlib import Path

from rmtrain.documents import Result, sound
from rmtrain.errors import DataError
from rmtrain.json_values import read_json

ROWS_SUFFIX = ".rows.jsonl"
_PRIOR = "-prior"


def scored_rows(folder: Path) -> dict[str, Path]:
    """Rows files in a run or results folder, by split, benchmark and gap: `test` first, prior sets last."""
    files = [
        path for kind in ("eval", "rewardbench", "gap") for path in sorted((folder / kind).glob(f"*{ROWS_SUFFIX}"))
    ]
    by_name = {path.name.removesuffix(ROWS_SUFFIX): path for path in files if path.is_file()}  # skips dangling links
    return {name: by_name[name] for name in sorted(by_name, key=lambda name: (name != "test", name.endswith(_PRIOR)))}


def rows_of_result(path: Path, model: str = "policy") -> Path:
    """The rows file that a result file names; the result of a gap names one for each model.

    Raises:
        DataError: the result can't be read or names none, or the rows file does not exist.
    """
    result = read_json(path)
    if isinstance(result, list):
        raise DataError(f"{path}: holds {len(result)} results", "name the .rows.jsonl file of one of them")
    rows = result.get("rows") if isinstance(result, dict) else None
    if isinstance(rows, dict) and isinstance(rows.get("policy"), str):  # of a gap
        if model not in rows:
            raise DataError(f"{path}: no rows of {model!r}", f"it has: {', '.join(rows)}")
        rows = rows[model]
    if not isinstance(rows, str):
        raise DataError(
            f"{path}: names no rows file",
            "give a result of rmtrain eval or rewardbench, which has its path under `rows`",
        )
    # the run folder may have been moved
    for candidate in (Path(rows), path.parent / rows, path.parent / Path(rows).name):
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: its rows file {rows} does not exist", "score the checkpoint again")


def result_beside(rows: Path) -> Result:
    """The result of a rows file; empty if no result is beside it.

    Prior sets share the benchmark's result, except for its entries on the benchmark's own rows.
    """
    name = rows.name.removesuffix(ROWS_SUFFIX)
    result = _read_result(rows.with_name(f"{name}.json"))
    if not result and name.endswith(_PRIOR):
        result = _read_result(rows.with_name(f"{name.removesuffix(_PRIOR)}.json"))
        result.pop("data", None)
        result.pop("rows", None)
        if result and not result.get("prior_data"):  # the result belongs to newer rows
            result["weights_fingerprint"] = "unknown"
    return result


def _read_result(path: Path) -> Result:
    try:
        result = read_json(path)
        return sound(result, Result)[0] if isinstance(result, dict) else {}
    except DataError:
        return {}
