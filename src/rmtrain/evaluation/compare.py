"""The rows files that a comparison takes, and the results beside them."""

from pathlib import Path
from typing import Any

from rmtrain.documents import Result, read_json, sound
from rmtrain.errors import DataError

_SUFFIX, _PRIOR = ".rows.jsonl", "-prior"


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
