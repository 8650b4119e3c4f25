"""Paths of this machine, shortened to their last part in published files."""

import re
from collections.abc import Callable
from typing import Any


def name_only(text: str) -> str:
    """The last part of a local path; other text is unchanged."""
    local = text.startswith(("/", "~", "./", "../", "\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if local else text


def local_name(text: str) -> str:
    """The same with `./` before a shortened path, to distinguish it from a hub id."""
    name = name_only(text)
    return text if name == text else f"./{name}"


def without_places(value: Any, shown: Callable[[Any], str]) -> Any:
    """Plain values with `shown` applied to every text."""
    if isinstance(value, dict):
        return {shown(key): without_places(entry, shown) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry, shown) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float)) else shown(value)
