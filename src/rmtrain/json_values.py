"""JSON: the types of its values, and reading it with limits on its numbers and its depth."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rmtrain.errors import DataError, InputError
from rmtrain.files import read_text

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
JsonObject: TypeAlias = dict[str, Json]

DIGITS, _DEPTH = 18, 50  # digits of a whole number, as in 64-bit integers; levels of nesting


def parse_json(text: str, odd: Callable[[str], Any] = lambda number: None) -> Any:
    """A value from JSON; `odd` converts numbers that are not finite or have too many digits, by default to None.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.
    """

    def whole(digits: str) -> Any:
        return int(digits) if len(digits) <= DIGITS else odd(digits)

    def fraction(number: str) -> Any:
        return value if math.isfinite(value := float(number)) else odd(number)

    try:
        value = json.loads(text, parse_int=whole, parse_float=fraction, parse_constant=fraction)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level := [part for outer in level for part in _items(outer)]:
        depth += 1
        if depth > _DEPTH:
            raise ValueError("it is nested too deeply")
    return value


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_json(
    path: Path, hint: str = "", error: type[InputError] = DataError, odd: Callable[[str], Any] = lambda number: None
) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: of class `error`, if the file can't be read or `parse_json` refuses it.
    """
    try:
        return parse_json(read_text(path, error=error), odd)
    except ValueError as fault:
        raise error(f"{path}: can't be read as JSON: {fault}", hint) from None
