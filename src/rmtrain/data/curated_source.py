"""Sources that `rmtrain curate` wrote: rows, and a record of the judges and rules beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmtrain.data.types import Row
from rmtrain.errors import DataError
from rmtrain.files import sha256_file, write_atomic, write_json
from rmtrain.json_values import JsonObject

_RECORDED = ("rules", "marked", "weight", "judges", "data")  # in manifests


def record_path(rows: Path) -> Path:
    """The record beside a source."""
    return rows.with_name(f"{rows.name.removesuffix('.jsonl')}.curation.json")


def write_curated(path: Path, rows: Sequence[Row], record: Mapping[str, Any]) -> None:
    """Write the rows, and a record with their digest.

    Raises:
        DataError: no row is left.
    """
    if not rows:
        raise DataError("the rules reject every row", "choose other rules, or keep all rows with --mark")
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(record_path(path), {**record, "sha256": sha256_file(path)})


def curation_of(origin: Mapping[str, Any]) -> JsonObject | None:
    """How the rows of a local file were curated, for manifests; None for other rows, and for rows changed since.

    `origin` is what results record of the rows.
    """
    location = origin.get("location")
    path = Path(location) if isinstance(location, str) else None
    if path is None or not path.is_file() or not record_path(path).is_file():
        return None
    try:
        record = json.loads(record_path(path).read_bytes())
        current = record["sha256"] == sha256_file(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {name: record.get(name) for name in _RECORDED} if current else None
