"""Digests of texts in arrays: which rows have equal texts, without the texts in memory."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 16  # bytes of a digest

Digests = NDArray[np.void]  # [N], each of `SIZE` bytes


def digest(value: object) -> bytes:
    """A digest of a text, or of anything that is equal if its `repr` is."""
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=SIZE).digest()


def digests(content: Iterable[bytes] | bytearray) -> Digests:
    """Digests as an array."""
    joined = content if isinstance(content, bytearray) else b"".join(content)
    return np.frombuffer(joined, f"V{SIZE}")


def first_places(texts: Digests) -> NDArray[np.int64]:
    """For each digest, the place of the first one that is equal."""
    _, first, number = np.unique(texts, return_index=True, return_inverse=True)
    return np.asarray(first[number], dtype=np.int64)


def repeated_places(texts: Digests) -> list[int]:
    """The places of digests that occur before."""
    places: list[int] = np.flatnonzero(first_places(texts) != np.arange(len(texts))).tolist()
    return places


def renamed(repeated: Iterable[tuple[int, str]], taken: Digests) -> Mapping[int, str]:
    """Names for rows, by place, whose own name an earlier row has: it gets `#2`, `#3` and so on at its end.

    `taken` are the digests of all names.
    """
    known, last, names = np.unique(taken), dict[str, int](), dict[int, str]()
    for place, name in repeated:
        number = last.get(name, 1) + 1
        while _holds(known, f"{name}#{number}"):
            number += 1
        last[name], names[place] = number, f"{name}#{number}"
    return names


def unique_ids(wanted: Sequence[str]) -> list[str]:
    """The wanted names; see `renamed` for those that repeat another one."""
    taken = digests(map(digest, wanted))
    changed = renamed(((place, wanted[place]) for place in repeated_places(taken)), taken)
    return [changed.get(place, name) for place, name in enumerate(wanted)]


def _holds(known: Any, name: str) -> bool:
    wanted = digests([digest(name)])
    place = int(np.searchsorted(known, wanted)[0])
    return place < len(known) and bool(known[place] == wanted[0])
