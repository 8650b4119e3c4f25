"""Places on this machine, kept out of what others read: the last part of a path says enough."""

import re
from collections.abc import Callable
from typing import Any


def name_only(text: str) -> str:
    """The last part of a path on this machine; other text as it is."""
    local = text.startswith(("/", "~", "./", "../", "\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if local else text


def local_name(text: str) -> str:
    """The same with `./` before it, so that it can't be taken for a hub id."""
    name = name_only(text)
    return text if name == text else f"./{name}"


def without_places(value: Any, shown: Callable[[Any], str]) -> Any:
    """Plain values, with `shown` applied to all of their text."""
    if isinstance(value, dict):
        return {shown(key): without_places(entry, shown) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry, shown) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float)) else shown(value)
