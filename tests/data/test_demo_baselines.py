"""What can be told from the completions without reading the prompt: next to nothing."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest

from rmtrain.data.demo import ROWS, demo_rows

SIZES = [("train", 600), ("validation", 100), ("test", 200), *ROWS.items()]
every_size = pytest.mark.parametrize(("split", "count"), SIZES)


class Pair(NamedTuple):
    source: str
    better: dict[str, Any]
    worse: dict[str, Any]
    better_at: int
    worse_at: int


@cache
def pairs(split: str, count: int) -> list[Pair]:
    return [pair for row in demo_rows(split, count) for pair in row_pairs(row)]


def row_pairs(row: dict[str, Any]) -> Iterator[Pair]:
    for i, better in enumerate(row["completions"]):
        for j, worse in enumerate(row["completions"]):
            if better["fine-grained_score"] > worse["fine-grained_score"]:
                yield Pair(row["source"], better, worse, i, j)


def accuracy(found: list[Pair], score: Callable[[dict[str, Any]], float]) -> float:
    """Accuracy of "the higher score wins"; a tie counts ½."""
    gaps = [score(pair.better) - score(pair.worse) for pair in found]
    return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)


def characters(completion: dict[str, Any]) -> int:
    return len(completion["response"])


def words(completion: dict[str, Any]) -> int:
    return len(completion["response"].split())


@every_size
@pytest.mark.parametrize("length", [characters, words])
def test_length_does_not_tell_the_better_one(split: str, count: int, length: Callable[[dict[str, Any]], int]) -> None:
    assert 0.45 <= accuracy(pairs(split, count), length) <= 0.55


@pytest.mark.parametrize(("split", "count"), [size for size in SIZES if size[1] >= 600])
@pytest.mark.parametrize("length", [characters, words])
def test_length_does_not_tell_the_better_one_in_any_family(
    split: str, count: int, length: Callable[[dict[str, Any]], int]
) -> None:
    found = pairs(split, count)
    figures = {
        source: accuracy([pair for pair in found if pair.source == source], length)
        for source in {pair.source for pair in found}
    }
    assert len(figures) == 6
    assert all(0.4 <= figure <= 0.6 for figure in figures.values()), figures


@every_size
def test_no_single_word_tells_the_better_one(split: str, count: int) -> None:
    found = pairs(split, count)
    balance: Counter[str] = Counter()
    for pair in found:
        better, worse = (
            set(re.findall(r"[^\W_]+(?:'\w+)?|[^\w\s]", c["response"].lower())) for c in (pair.better, pair.worse)
        )
        balance.update(better - worse)
        balance.subtract(worse - better)
    figures = {word: 0.5 + 0.5 * net / len(found) for word, net in balance.items()}
    assert all(0.42 <= figure <= 0.58 for figure in figures.values())


@every_size
def test_neither_position_nor_model_name_tells_the_better_one(split: str, count: int) -> None:
    found = pairs(split, count)
    assert 0.42 <= sum(pair.better_at < pair.worse_at for pair in found) / len(found) <= 0.58
    for position in range(4):
        ahead = sum(pair.better_at == position for pair in found) - sum(pair.worse_at == position for pair in found)
        assert abs(ahead) / len(found) <= 0.16
    for name in {pair.better["model"] for pair in found}:
        assert 0.42 <= accuracy(found, lambda completion, name=name: completion["model"] == name) <= 0.58


@every_size
@pytest.mark.parametrize("case", [str.isupper, str.islower])
def test_letter_case_does_not_tell_the_better_one(split: str, count: int, case: Callable[[str], bool]) -> None:
    assert 0.42 <= accuracy(pairs(split, count), lambda completion: case(completion["response"])) <= 0.58


def test_all_words_together_tell_little() -> None:
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = pairs("train", 600), pairs("test", 200)
    vectors = CountVectorizer(token_pattern=r"[^\W_]+|[^\w\s]", lowercase=False, binary=True, min_df=2)
    vectors.fit([completion["response"] for pair in train for completion in (pair.better, pair.worse)])

    def differences(found: list[Pair]) -> Any:
        better, worse = ([getattr(pair, side)["response"] for pair in found] for side in ("better", "worse"))
        return vectors.transform(better) - vectors.transform(worse)

    features = differences(train)
    model = LogisticRegression(C=0.03, fit_intercept=False, max_iter=500)
    model.fit(vstack([features, -features]), [1] * len(train) + [0] * len(train))
    assert model.predict(differences(test)).mean() < 0.7
