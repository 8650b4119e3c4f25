"""An index of word n-grams, which finds texts that share n-grams with other texts."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]

COMMON = 10  # n-grams with more owners are common phrases, and no sign of a copy

_LONE = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters: written without spaces, so each counts as a word
_WORD = re.compile(rf"[{_LONE}]|[^\W_{_LONE}]+")
_BLANKS = {code: " " for code in range(128) if not chr(code).isalnum()}  # the same for ASCII, but several times as fast
_MARKS = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u2022\u00a0"  # common in English texts
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, for arithmetic modulo 2^64
_LARGEST_FILTER = 27  # bits: 128 MiB


def words_of(text: str) -> list[str]:
    """The words of a text: letters and digits, without case and punctuation."""
    if not text.isascii():
        for mark in _MARKS:
            text = text.replace(mark, " ")
    return text.lower().translate(_BLANKS).split() if text.isascii() else _WORD.findall(text.casefold())


class Owner(NamedTuple):
    """The owner of a text in an index."""

    collection: int
    member: int  # of the collection


class Shared(NamedTuple):
    """The n-grams that a text shares with a text of an index."""

    text: int  # number of the text
    other: int  # number of the text of the index
    covered: int  # words of the other text that are in n-grams of the text
    start: int  # of the first shared n-gram among the words of the other text


@dataclass(frozen=True)
class NGramIndex:
    """The n-grams of T texts with W words in all, by hash; hits are verified word by word."""

    n: int
    numbers: dict[str, int]  # of the words, from 1
    words: Numbers  # [W] of all texts, by number
    starts: Numbers  # [T + 1] of the texts among the words
    hashes: Hashes  # [G] ascending
    places: Numbers  # [G] where each n-gram starts among the words
    seen: NDArray[np.bool_]  # by the first bits of a hash, whether any n-gram has them

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], n: int, owners: Sequence[Owner]) -> "NGramIndex":
        """Index T texts of T owners, each given as its words.

        N-grams are left out if fewer than half their words have letters (rows of digits, for example), or if they have
        more than `COMMON` owners in a collection.
        """
        numbers: defaultdict[str, int] = defaultdict(count(1).__next__)
        numbered = [np.fromiter(map(numbers.__getitem__, words), np.int64, len(words)) for words in texts]
        lengths = np.array([len(each) for each in numbered], dtype=np.int64)
        words = np.concatenate([np.empty(0, np.int64), *numbered])
        text = np.repeat(np.arange(len(numbered)), lengths)
        has_letter = np.array([False, *(any(map(str.isalpha, word)) for word in numbers)])
        places = np.flatnonzero(_whole(text, n) & (_sums(has_letter[words], n) * 2 >= n))
        hashes = _hashes(words, n)[places]
        order = np.argsort(hashes)
        hashes, places = hashes[order], places[order]
        rare = _rare(hashes, np.array(owners, np.int64).reshape(-1, 2)[text[places]])
        hashes, places = hashes[rare], places[rare]
        bits = min(_LARGEST_FILTER, max(8, (8 * len(hashes)).bit_length()))
        seen = np.zeros(1 << bits, dtype=np.bool_)
        seen[hashes >> np.uint64(64 - bits)] = True
        return cls(n, dict(numbers), words, np.concatenate([[0], np.cumsum(lengths)]), hashes, places, seen)

    def length(self, other: int) -> int:
        """Words of a text of the index."""
        return int(self.starts[other + 1] - self.starts[other])

    def find(self, texts: Sequence[Sequence[str]]) -> Iterator[Shared]:
        """The n-grams that each text, given as its words, shares with each text of the index, in the order of both."""
        lengths = [len(words) for words in texts]
        words = np.fromiter(map(self.numbers.get, chain.from_iterable(texts), repeat(0)), np.int64, sum(lengths))
        owner = np.repeat(np.arange(len(texts)), lengths)
        hashes = _hashes(words, self.n)
        whole = _whole(owner, self.n) & (_sums(words == 0, self.n) == 0)
        bits = self.seen.size.bit_length() - 1
        position = np.flatnonzero(whole & self.seen[hashes >> np.uint64(64 - bits)])
        first, last = (np.searchsorted(self.hashes, hashes[position], side) for side in ("left", "right"))
        counts = last - first
        position = np.repeat(position, counts)
        indexed = self.places[np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts - first, counts)]
        equal = np.ones(len(position), dtype=np.bool_)
        for k in range(self.n):
            equal &= words[position + k] == self.words[indexed + k]
        yield from self._pairs(owner[position[equal]], indexed[equal])

    def _pairs(self, text: Numbers, place: Numbers) -> Iterator[Shared]:
        """Join the n-grams that a text shares with one text of the index."""
        other = np.searchsorted(self.starts, place, "right") - 1
        order = np.lexsort((place, text))  # places ascend with the other text
        text, other, place = text[order], other[order], place[order]
        new = np.ones(len(text), dtype=np.bool_)
        new[1:] = (text[1:] != text[:-1]) | (other[1:] != other[:-1])
        added = np.full(len(text), self.n)
        added[:-1] = np.where(new[1:], self.n, np.minimum(self.n, np.diff(place)))
        heads = np.flatnonzero(new)
        covered = np.add.reduceat(added, heads) if len(heads) else heads
        for head, words in zip(heads, covered, strict=True):
            yield Shared(int(text[head]), int(other[head]), int(words), int(place[head] - self.starts[other[head]]))


def _hashes(words: Numbers, n: int) -> Hashes:
    """The hash of the n-gram that starts at each word; empty if there is none."""
    values = words.astype(np.uint64)
    hashes = np.zeros(max(0, len(words) - n + 1), dtype=np.uint64)
    for k in range(n):
        hashes *= _BASE
        hashes += values[k : k + len(hashes)]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    return hashes


def _sums(flags: NDArray[np.bool_], n: int) -> Numbers:
    """How many of each n consecutive values are set."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    inside: Numbers = sums[n:] - sums[: max(0, len(sums) - n)]
    return inside


def _whole(owner: Numbers, n: int) -> NDArray[np.bool_]:
    """Whether the n-gram that starts at each word lies within one text."""
    count = max(0, len(owner) - n + 1)
    whole: NDArray[np.bool_] = owner[:count] == owner[n - 1 : n - 1 + count]
    return whole


def _rare(hashes: Hashes, owners: Numbers) -> NDArray[np.bool_]:
    """Whether each of G sorted hashes has at most `COMMON` of the [G, 2] owners in its collection."""
    rare = np.ones(len(hashes), dtype=np.bool_)
    heads = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)])
    sizes = np.diff(heads, append=len(hashes))
    for head, size in zip(heads[sizes > COMMON], sizes[sizes > COMMON], strict=True):
        end = head + size
        collections, counts = np.unique(np.unique(owners[head:end], axis=0)[:, 0], return_counts=True)
        rare[head:end] = ~np.isin(owners[head:end, 0], collections[counts > COMMON])
    return rare
