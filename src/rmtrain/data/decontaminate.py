"""Decontamination: find and drop training rows that share word n-grams with rows of benchmarks.

Texts are compared by their words, without case and punctuation. A row overlaps with a benchmark if
- it shares an n-gram of 13 words with a prompt of the benchmark, as in GPT-3 (arXiv 2005.14165, appendix C);
- or its prompt shares 8 words in a row, the smallest n of GPT-3's analysis, with a prompt of fewer than 13 words;
- or its prompt has the same words as a prompt of fewer than 8;
- or the n-grams of 13 words that it shares with a completion of the benchmark cover half of that completion, since a
  common phrase alone is not a copy of an answer. Tülu 3 measures the overlap of prompts in this way (arXiv 2411.15124,
  section 3.2), with n-grams of 8 tokens and more than half. Two kinds of n-grams do not count: those in rows of more
  than ten questions of a benchmark (GPT-3 omits those in more than ten training documents), and those in which fewer
  than half the words have letters.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, NamedTuple

from rmtrain.data.ngrams import NGramIndex, Owner, Shared, words_of
from rmtrain.data.types import TOKENS, Conversation, PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.json_values import JsonObject

SHORT = 8  # consecutive words that count as overlap with a prompt shorter than an n-gram
COVERED = 0.5  # of a benchmark's completion
_CHUNK = 1000  # groups whose words are in memory at once

Part = Literal["prompt", "completion"]


class Passage(NamedTuple):
    """A text of a benchmark, or of a training row."""

    row: str  # id
    part: Part
    text: str


class Compared(NamedTuple):
    """A benchmark with which training rows are compared, as manifests record it."""

    name: str  # as in data.decontaminate
    source: str
    revision: str | None
    fingerprint: str
    benchmark_rows: int


class BenchmarkTexts(NamedTuple):
    """The texts of a benchmark."""

    compared: Compared
    passages: Sequence[Passage]


@dataclass(frozen=True)
class Overlap:
    """A training row, and the benchmark text that it covers most."""

    id: str
    part: Part  # of the row
    benchmark_row: str
    benchmark_part: Part
    share: float  # of the words of the benchmark's text
    phrase: str  # the first shared n-gram
    text: str  # of the benchmark


@dataclass(frozen=True)
class Check:
    """The comparison of training rows with a benchmark, and the overlapping rows."""

    compared: Compared
    words: int  # of an n-gram
    rows: int  # of the training split
    overlaps: tuple[Overlap, ...]

    @property
    def cause(self) -> str:
        """The cause under which the ledger counts the dropped rows."""
        return f"overlap with {self.compared.name}"

    def record(self) -> JsonObject:
        """The record of the comparison for manifests, reports and rmtrain.json."""
        figures = {"words": self.words, "rows": self.rows, "overlaps": len(self.overlaps)}
        return {**self.compared._asdict(), **figures}

    def __str__(self) -> str:
        rows = f"{self.compared.benchmark_rows:,} rows of {self.compared.source}, n-grams of {self.words} words"
        return f"compared with {self.compared.name} ({rows}): {len(self.overlaps):,} of {self.rows:,} rows overlap"


def join_checks(parts: Sequence[Sequence[Check]]) -> tuple[Check, ...]:
    """The checks of a split from those of its entries, which used the same benchmarks."""
    joined = []
    for checks in zip(*parts, strict=True):
        overlaps = tuple(chain.from_iterable(check.overlaps for check in checks))
        joined.append(Check(checks[0].compared, checks[0].words, sum(check.rows for check in checks), overlaps))
    return tuple(joined)


def passages_of(row: str, prompt: Conversation, completions: Sequence[Conversation]) -> Iterator[Passage]:
    """The texts of a row: the user's messages in its prompt, then each answer. System messages are left out, since they
    are common phrases.

    Raises:
        DataError: the row holds token ids.
    """
    if any(message.role == TOKENS for part in (prompt, *completions) for message in part):
        raise DataError(f"row {row}: token ids can't be compared with texts", "leave out data.decontaminate")
    asked = [message.content for message in prompt if message.role not in ("assistant", "system")]
    yield Passage(row, "prompt", "\n".join(asked))
    answers = [message for message in prompt if message.role == "assistant"]
    for text in dict.fromkeys(message.content for message in (*answers, *chain.from_iterable(completions))):
        yield Passage(row, "completion", text)


class _Found(NamedTuple):
    """The benchmark's side of an overlap, as in `Overlap`."""

    row: str
    part: Part
    share: float
    phrase: str
    text: str


class _Indexed(NamedTuple):
    """Passages of benchmarks in an index."""

    ngrams: NGramIndex
    owners: Sequence[Owner]  # collection: the number of the benchmark
    passages: Sequence[Passage]

    def found(self, shared: Shared) -> tuple[int, _Found] | None:
        """The benchmark and its side of an overlap; None if too little of a completion is shared."""
        passage, share = self.passages[shared.other], shared.covered / self.ngrams.length(shared.other)
        if passage.part == "completion" and share < COVERED:
            return None
        phrase = " ".join(words_of(passage.text)[shared.start : shared.start + self.ngrams.n])
        found = _Found(passage.row, passage.part, share, phrase, passage.text)
        return self.owners[shared.other].collection, found


@dataclass(frozen=True)
class Finder:
    """The texts of several benchmarks: long ones and short prompts by n-grams, the shortest prompts as a whole."""

    benchmarks: Sequence[Compared]
    long: _Indexed
    short: _Indexed
    whole: dict[str, list[tuple[int, Passage]]]

    @classmethod
    def of(cls, benchmarks: Sequence[BenchmarkTexts], n: int) -> "Finder":
        """Index the texts of benchmarks, with n-grams of n words."""
        owned: list[tuple[Owner, Passage]] = []
        for number, benchmark in enumerate(benchmarks):
            questions: dict[str, int] = {}
            for passage, question in _questions(benchmark.passages):
                owned.append((Owner(number, questions.setdefault(question, len(questions))), passage))
        long, least = _indexed(owned, n), min(SHORT, n)
        short: list[tuple[Owner, Passage]] = []
        whole: dict[str, list[tuple[int, Passage]]] = {}
        for place, (owner, passage) in enumerate(owned):
            length = long.ngrams.length(place)
            if passage.part == "prompt" and least <= length < n:
                short.append((owner, passage))
            elif passage.part == "prompt" and 0 < length < least:
                whole.setdefault(" ".join(words_of(passage.text)), []).append((owner.collection, passage))
        return cls([each.compared for each in benchmarks], long, _indexed(short, least), whole)

    def check(self, groups: Iterable[PreferenceGroup]) -> list[Check]:
        """Compare the groups of a training split with each benchmark, by the rules at the top of this file."""
        best, left, count = [dict[str, Overlap]() for _ in self.benchmarks], iter(groups), 0
        while rows := list(islice(left, _CHUNK)):
            count += len(rows)
            passages = [each for group in rows for each in passages_of(group.id, group.prompt, group.completions)]
            for number, passage, found in self._find(passages):
                before = best[number].get(passage.row)
                if before is None or found.share > before.share:
                    best[number][passage.row] = Overlap(passage.row, passage.part, *found)
        n = self.long.ngrams.n
        found_in = zip(self.benchmarks, best, strict=True)
        return [Check(compared, n, count, tuple(found.values())) for compared, found in found_in]

    def _find(self, passages: Sequence[Passage]) -> Iterator[tuple[int, Passage, _Found]]:
        """All overlaps of the passages: the benchmark's number, the passage, and the benchmark's side."""
        words = [words_of(passage.text) for passage in passages]
        prompts = [place for place, passage in enumerate(passages) if passage.part == "prompt"]
        for indexed, places in ((self.long, range(len(passages))), (self.short, prompts)):
            for shared in indexed.ngrams.find([words[place] for place in places]):
                if (found := indexed.found(shared)) is not None:
                    yield found[0], passages[places[shared.text]], found[1]
        for place in prompts:
            same = " ".join(words[place])
            for number, other in self.whole.get(same, ()):
                yield number, passages[place], _Found(other.row, other.part, 1.0, same, other.text)


def _questions(passages: Iterable[Passage]) -> Iterator[tuple[Passage, str]]:
    """Each distinct passage with the prompt of its row; of equal passages, the first one."""
    seen: set[tuple[Part, str]] = set()
    prompt = ""
    for passage in passages:
        prompt = passage.text if passage.part == "prompt" else prompt
        if (passage.part, passage.text) not in seen:
            seen.add((passage.part, passage.text))
            yield passage, prompt


def _indexed(owned: Sequence[tuple[Owner, Passage]], n: int) -> _Indexed:
    owners, passages = [owner for owner, _ in owned], [passage for _, passage in owned]
    return _Indexed(NGramIndex.of((words_of(passage.text) for passage in passages), n, owners), owners, passages)
