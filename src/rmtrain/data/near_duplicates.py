"""Near duplicates: rows whose prompt and answers share most of their words with an earlier row.

A text is represented by its shingles: all runs of 3 words, without case and punctuation, or the whole text if it is
shorter. The similarity of two texts is the Jaccard index of their shingles: the size of the intersection over that of
the union. A row is a near duplicate of an earlier one if the similarities of their prompts, of their preferred answers
together, and of their other answers together all reach a threshold. So a row with the same prompt but other answers is
not a near duplicate, nor is one with reversed labels.

MinHash with locality-sensitive hashing (Broder 1997, Indyk & Motwani 1998; library datasketch) with 128 permutations
finds the candidates. It misses some pairs near the threshold. Candidates are then compared exactly, so no row below the
threshold is dropped.
"""

import importlib.util
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from rmtrain.data.curation import Curation
from rmtrain.data.ngrams import words_of
from rmtrain.data.types import Conversation, PreferenceGroup
from rmtrain.errors import InputError

NEAR_DUPLICATE = "near duplicate"
NEAR_DUPLICATE_ELSEWHERE = "near duplicate of another entry"
SHINGLE = 3  # words
PERMUTATIONS = 128
_WEIGHTS = 0.1, 0.9  # weights of false positives and of false negatives for the hashing
_LARGEST = 0.95  # largest threshold of the hashing; above it, less similar rows are candidates too
_COMPARED = 10_000  # rows with cached shingles; rows of the same prompt are often neighbours

_ANY = "surrogatepass"  # texts may hold any code point

Shingles = frozenset[str]
Shingled = tuple[Shingles, Shingles, Shingles]  # for a row's prompt, its preferred answers, and its other answers


def shingles_of(group: PreferenceGroup) -> Shingled:
    """The shingles of a row with preferences."""
    answers = [_shingles(_text(completion)) for completion in group.completions]
    preferred = _joined(answers[k] for k in {pair.better for pair in group.preferences})
    others = _joined(answers[k] for k in {pair.worse for pair in group.preferences})
    return _shingles(f"{_text(group.prompt)} {group.arguments}"), preferred, others


def _joined(texts: Iterable[Shingles]) -> Shingles:
    return frozenset(chain.from_iterable(texts))


def _text(messages: Conversation) -> str:
    return "\n".join(f"{message.content} {message.calls}" for message in messages)


def _shingles(text: str) -> Shingles:
    words = words_of(text)
    return frozenset(" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1)))


def similarities(one: PreferenceGroup, other: PreferenceGroup) -> tuple[float, ...]:
    """The Jaccard indices of two rows' prompts, preferred answers and other answers, 0 to 1."""
    return tuple(_jaccards(shingles_of(one), shingles_of(other)))


def _jaccards(one: Shingled, other: Shingled) -> Iterator[float]:
    return (len(own & others) / len(own | others) for own, others in zip(one, other, strict=True))


def require_datasketch() -> None:
    """Check that the library is installed.

    Raises:
        InputError: datasketch is not installed.
    """
    if importlib.util.find_spec("datasketch") is None:
        raise InputError("data.near_duplicates needs datasketch", "install it: pip install datasketch")


def drop_near_duplicates(entries: Sequence[Curation], least: float) -> None:
    """Drop each row that is a near duplicate of an earlier kept row, of its own or an earlier entry."""
    from datasketch import MinHash, MinHashLSH

    empty, index = MinHash(PERMUTATIONS, hashfunc=zlib.crc32), MinHashLSH(min(least, _LARGEST), PERMUTATIONS, _WEIGHTS)
    kept: list[tuple[int, int]] = []  # by number in the index: the entry, and the place in it

    def group_of(number: int) -> PreferenceGroup:
        entry, place = kept[number]
        return next(entries[entry].read(np.array([place])))

    shingles = lru_cache(_COMPARED)(lambda number: shingles_of(group_of(number)))
    for entry, curation in enumerate(entries):
        places = curation.kept
        for place, group in zip(places.tolist(), curation.read(places), strict=True):
            own, hashed = shingles_of(group), empty.copy()
            hashed.update_batch(
                f"{part} {text}".encode(errors=_ANY) for part, texts in enumerate(own) for text in texts
            )
            near = (number for number in sorted(index.query(hashed)) if min(_jaccards(own, shingles(number))) >= least)
            if (first := next(near, None)) is None:
                index.insert(len(kept), hashed, check_duplication=False)
                kept.append((entry, place))
            else:
                curation.repeats[place] = group_of(first).id
                same_entry = kept[first][0] == entry
                curation.outcomes.causes[place] = NEAR_DUPLICATE if same_entry else NEAR_DUPLICATE_ELSEWHERE
