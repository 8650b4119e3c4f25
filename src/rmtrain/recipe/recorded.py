"""The recipe beside a checkpoint, perhaps of another version: only the part needed for evaluation is read."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rmtrain.errors import CheckpointError
from rmtrain.files import read_text
from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.faults import Source
from rmtrain.recipe.schema import EvaluationSection, RunSection
from rmtrain.recipe.yaml12 import parse_document


class Recorded(NamedTuple):
    """The part of a recorded recipe that evaluation uses."""

    data: DataSection
    seed: int
    splits: list[str]  # scored after training
    unknown: list[str]  # unknown keys of the data section, which are ignored


def read_recorded(recipe: Any, where: str) -> Recorded:
    """Read a recorded recipe; unknown keys are ignored, and their names returned.

    Raises:
        CheckpointError: its data section can't be read.
    """
    sections = recipe if isinstance(recipe, dict) else {}
    text = json.dumps(sections.get("data"))
    try:
        data = DataSection.model_validate_json(text, extra="ignore")
    except ValidationError as error:
        keys = "; ".join(f"{'.'.join(['data', *map(str, at['loc'])])}: {at['msg']}" for at in error.errors()[:5])
        raise CheckpointError(
            f"{where}: this version can't read the data section of the recorded recipe ({keys})",
            "name the data with --data SOURCE",
        ) from error
    seed, splits = _value(sections, "run", "seed"), _value(sections, "evaluation", "splits")
    names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    seed = seed if isinstance(seed, int) else RunSection().seed
    return Recorded(data, seed, names or list(EvaluationSection().splits), _unknown_keys(text))


def read_recorded_file(path: Path) -> Recorded:
    """The same for a run's `recipe.yaml`.

    Raises:
        CheckpointError: it can't be read.
    """
    document = parse_document(Source(str(path), read_text(path, error=CheckpointError)))
    return read_recorded(document.value, str(path))


def _value(sections: dict[str, Any], section: str, key: str) -> Any:
    values = sections.get(section)
    return values.get(key) if isinstance(values, dict) else None


def _unknown_keys(data: str) -> list[str]:
    """Dotted names of the keys that this version does not know."""
    try:
        DataSection.model_validate_json(data)
    except ValidationError as error:
        unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
        return [".".join(map(str, ("data", *keys))) for keys in unknown]
    return []
