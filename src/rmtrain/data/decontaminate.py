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

from rmtrain.data.ngrams import NGramIndex, Owner, words_of
from rmtrain.data.types import Conversation, PreferenceGroup, holds_ids
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
    if holds_ids((prompt, *completions)):
        raise DataError(f"row {row}: token ids can't be compared with texts", "leave out data.decontaminate")
    asked = [message.content for message in prompt if message.role not in ("assistant", "system")]
    yield Passage(row, "prompt", "\n".join(asked))
    answers = [message for message in prompt if message.role == "assistant"]
    for text in dict.fromkeys(message.content for message in (*answers, *chain.from_iterable(completions))):
        yield Passage(row, "completion", text)


class _Indexed(NamedTuple):
    """Passages of benchmarks in an index."""

    ngrams: NGramIndex
    owners: Sequence[Owner]  # collection: the number of the benchmark
    passages: Sequence[Passage]

    @classmethod
    def of(cls, owned: Sequence[tuple[Owner, Passage]], n: int) -> "_Indexed":
        """Index passages with n-grams of n words."""
        owners, passages = [owner for owner, _ in owned], [passage for _, passage in owned]
        return cls(NGramIndex.of((words_of(passage.text) for passage in passages), n, owners), owners, passages)

    def overlaps(self, rows: Sequence[Passage], words: Sequence[Sequence[str]]) -> Iterator[tuple[int, Overlap]]:
        """The overlaps of passages of training rows, whose words are given; each with the number of its benchmark."""
        for shared in self.ngrams.find(words):
            passage, share = self.passages[shared.other], shared.covered / self.ngrams.length(shared.other)
            if passage.part == "prompt" or share >= COVERED:
                phrase = " ".join(words_of(passage.text)[shared.start : shared.start + self.ngrams.n])
                yield self.owners[shared.other].collection, _overlap(rows[shared.text], passage, share, phrase)


def _overlap(row: Passage, benchmark: Passage, share: float, phrase: str) -> Overlap:
    return Overlap(row.row, row.part, benchmark.row, benchmark.part, share, phrase, benchmark.text)


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
        long, least = _Indexed.of(owned, n), min(SHORT, n)
        short: list[tuple[Owner, Passage]] = []
        whole: dict[str, list[tuple[int, Passage]]] = {}
        for place, (owner, passage) in enumerate(owned):
            length = long.ngrams.length(place)
            if passage.part == "prompt" and least <= length < n:
                short.append((owner, passage))
            elif passage.part == "prompt" and 0 < length < least:
                whole.setdefault(" ".join(words_of(passage.text)), []).append((owner.collection, passage))
        return cls([each.compared for each in benchmarks], long, _Indexed.of(short, least), whole)

    def check(self, groups: Iterable[PreferenceGroup]) -> list[Check]:
        """Compare the groups of a training split with each benchmark, by the rules at the top of this file."""
        best, left, count = [dict[str, Overlap]() for _ in self.benchmarks], iter(groups), 0  # by row
        while rows := list(islice(left, _CHUNK)):
            count += len(rows)
            passages = [each for group in rows for each in passages_of(group.id, group.prompt, group.completions)]
            for number, overlap in self._find(passages):
                before = best[number].get(overlap.id)
                if before is None or overlap.share > before.share:
                    best[number][overlap.id] = overlap
        n = self.long.ngrams.n
        return [
            Check(compared, n, count, tuple(of_rows.values()))
            for compared, of_rows in zip(self.benchmarks, best, strict=True)
        ]

    def _find(self, passages: Sequence[Passage]) -> Iterator[tuple[int, Overlap]]:
        """All overlaps of the passages of training rows, each with the number of its benchmark."""
        words = [words_of(passage.text) for passage in passages]
        prompts = [place for place, passage in enumerate(passages) if passage.part == "prompt"]
        yield from self.long.overlaps(passages, words)
        yield from self.short.overlaps([passages[place] for place in prompts], [words[place] for place in prompts])
        for place in prompts:
            phrase = " ".join(words[place])
            for number, benchmark in self.whole.get(phrase, ()):
                yield number, _overlap(passages[place], benchmark, 1.0, phrase)


def _questions(passages: Iterable[Passage]) -> Iterator[tuple[Passage, str]]:
    """Each distinct passage with the prompt of its row; of equal passages, the first one."""
    seen: set[tuple[Part, str]] = set()
    prompt = ""
    for passage in passages:
        prompt = passage.text if passage.part == "prompt" else prompt
        if (passage.part, passage.text) not in seen:
            seen.add((passage.part, passage.text))
            yield passage, prompt
