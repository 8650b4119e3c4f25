"""Training rows that overlap with benchmarks: the rules, an independent computation of them, and a recipe's flow."""

import json
import re
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.benchmarks.texts import read_benchmark_texts
from rmtrain.data.decontaminate import BenchmarkTexts, Check, Compared, Finder, passages_of
from rmtrain.data.load import load_data
from rmtrain.data.ngrams import words_of
from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

Row = tuple[str, list[str]]  # a prompt, and its completions


def benchmark(name: str, rows: list[Row]) -> BenchmarkTexts:
    passages = [
        passage
        for number, (prompt, answers) in enumerate(rows)
        for passage in passages_of(str(number), (Message("user", prompt),), said(answers))
    ]
    return BenchmarkTexts(Compared(name, "somewhere", None, "digest", len(rows)), passages)


def said(answers: list[str]) -> tuple[tuple[Message, ...], ...]:
    return tuple((Message("assistant", answer),) for answer in answers)


def groups(rows: list[Row]) -> list[PreferenceGroup]:
    better = (Preference(0, 1),)
    return [PreferenceGroup(str(n), (Message("user", p),), said(cs), better) for n, (p, cs) in enumerate(rows)]


def overlaps(train: list[Row], *of_benchmarks: list[Row], n: int = 13) -> list[dict[str, float]]:
    """For each benchmark, the share by row."""
    finder = Finder.of([benchmark(str(i), rows) for i, rows in enumerate(of_benchmarks)], n)
    return [{o.id: o.share for o in check.overlaps} for check in finder.check(groups(train))]


def naive(train: list[Row], rows: list[Row], n: int) -> dict[str, float]:
    """The rules in sets of tuples, a text at a time."""

    def split(text: str) -> list[str]:
        return [word for word in re.split(r"[\W_]+", text.lower()) if word]

    def grams(words: list[str], size: int) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]

    short, found = min(8, n), dict[str, float]()
    asked: dict[tuple[str, ...], set[str]] = defaultdict(set)
    asked_short: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for prompt, answers in rows:
        for text in (prompt, *answers):
            for gram in grams(split(text), n):
                asked[gram].add(prompt)
        if len(split(prompt)) < n:
            for gram in grams(split(prompt), short):
                asked_short[gram].add(prompt)

    def counts(gram: tuple[str, ...], of: dict[tuple[str, ...], set[str]]) -> bool:
        return 1 <= len(of[gram]) <= 10 and 2 * sum(any(map(str.isalpha, word)) for word in gram) >= len(gram)

    for number, (own_prompt, own_answers) in enumerate(train):
        for mine in (own_prompt, *own_answers):
            for prompt, answers in rows:
                for theirs in (prompt, *answers):
                    words, covered = split(theirs), set[int]()
                    long = len(words) >= n
                    size, index = (n, asked) if long else (short, asked_short)
                    if not long and (mine is not own_prompt or theirs is not prompt):
                        continue
                    shared = set(grams(split(mine), size))
                    for place, gram in enumerate(grams(words, size)):
                        if gram in shared and counts(gram, index):
                            covered |= {*range(place, place + size)}
                    share = len(covered) / max(1, len(words))
                    if 0 < len(words) < short and split(mine) == words:
                        share = 1.0
                    if share and (theirs is prompt or share >= 0.5):
                        found[str(number)] = max(share, found.get(str(number), 0))
    return found


words = st.lists(st.sampled_from(["a", "b", "1"]), max_size=14).map(" ".join)
some_rows = st.lists(st.tuples(words, st.lists(words, min_size=2, max_size=2)), max_size=14)


@settings(max_examples=100, deadline=None)
@given(some_rows, some_rows, st.sampled_from([3, 5, 9]))
def test_it_finds_what_a_naive_comparison_finds(train: list[Row], rows: list[Row], n: int) -> None:
    # texts of their own objects, so that `is` tells a prompt from an equal answer
    train, rows = ([(f"{p} ", [f"{c}  " for c in cs]) for p, cs in each] for each in (train, rows))
    assert overlaps(train, rows, n=n) == [pytest.approx(naive(train, rows, n))]


LONG = "Write a function that returns the sum of all even numbers in a list, please."  # 15 words
ANSWER = "def f(xs): return sum(x for x in xs if x % 2 == 0) # the even ones alone are added"


def test_one_ngram_of_a_prompt_is_an_overlap_whatever_its_case_and_punctuation() -> None:
    copied = "note: WRITE A FUNCTION that returns the sum -- of all even numbers in a list"
    other = "Write a function that returns the sum of all even numbers. Now sort them."
    (found,) = overlaps([(copied, ["x", "y"]), (other, ["x", "y"]), ("q", [copied, "y"])], [(LONG, ["a", "b"])])
    assert found == {"0": pytest.approx(14 / 15), "2": pytest.approx(14 / 15)}


def test_an_answer_must_be_half_covered() -> None:
    phrase = "If you have any further questions or concerns please do not hesitate to ask me."
    answer = f"{phrase} " + " ".join(f"word{i}" for i in range(20))
    (found,) = overlaps([("q", [phrase, "y"]), ("q", [answer[:-10], "y"])], [("p", [answer, "b"])])
    assert set(found) == {"1"}


def test_short_prompts_are_compared_with_prompts_alone() -> None:
    nine, three = "How do I kill a Python process for good?", "kill the lights"
    train = [("Tell me, how do I kill a Python process for ever", ["a", "b"]), ("x", [nine, "b"])]
    train += [("Kill the lights!", ["a", "b"]), ("Kill the lights now", ["a", "b"]), ("x", [three, "b"])]
    (found,) = overlaps(train, [(nine, ["a", "b"]), (three, ["c", "d"])])
    assert set(found) == {"0", "2"}


def test_set_phrases_of_one_benchmark_do_not_count_and_those_of_others_do() -> None:
    form = "Answer with the letter of the right choice and repeat it five times in a row:"
    many, one = [(f"{form} question {i}", ["a", "b"]) for i in range(11)], [(form, ["a", "b"])]
    assert overlaps([(form, ["x", "y"])], many, one) == [{}, {"0": 1.0}]
    assert [set(found) for found in overlaps([(form, ["x", "y"])], many[:10])] == [{"0"}]


@given(st.text(alphabet=st.sampled_from("aZé_1 ’—字か.ß\n"), max_size=30))
def test_words_are_runs_of_letters_and_digits(text: str) -> None:
    lone = re.sub("([字か])", r" \1 ", text.casefold())
    assert words_of(text) == [word for word in re.split(r"[\W_]+", lone) if word]


def test_rows_of_digits_do_not_count_and_chinese_is_compared_by_character() -> None:
    digits = " ".join("01" * 20)
    chinese = "请写一个函数返回列表中所有偶数的和"
    assert overlaps([(digits, ["a", "b"])], [(digits, ["a", "b"])]) == [{}]
    assert overlaps([(f"好的。{chinese}", ["a", "b"])], [(chinese, ["a", "b"])]) == [{"0": 1.0}]


def test_token_ids_are_refused_rather_than_passed() -> None:
    group = PreferenceGroup("7", (), ((Message("tokens", "[1, 2]"),),), ())
    with pytest.raises(DataError, match="row 7: token ids can't be compared with texts"):
        Finder.of([benchmark("x", [(LONG, ["a", "b"])])], 13).check([group])


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "good", "rejected": "bad", **more}


def test_a_recipe_drops_overlaps_from_training_alone_and_books_them_by_benchmark(tmp_path: Path) -> None:
    bench = write(tmp_path / "bench.jsonl", [pair(LONG, subset="hep-go", id=3)])
    odd = write(tmp_path / "odd.jsonl", [{"question_text": "Which river flows through Vienna and Budapest?", "n": 4}])
    rows = [pair("one"), pair(f"Hello. {LONG}"), pair("Which river flows through Vienna and Budapest"), pair("two")]
    source = {"train": write(tmp_path / "train.jsonl", rows), "test": write(tmp_path / "test.jsonl", [pair(LONG)])}
    data = DataSection(source=source, decontaminate=[f"rewardbench-1={bench}", odd])
    found = load_data(data, 0)
    report = found.splits["train"].report
    assert dict(report.rows.dropped) == {"overlap with rewardbench-1": 1, "overlap with odd.jsonl": 1}
    assert report.examples["overlap with rewardbench-1"].endswith("train.jsonl:2")
    assert [(check.compared.name, len(check.overlaps)) for check in report.checks] == [
        ("rewardbench-1", 1),
        ("odd.jsonl", 1),
    ]
    (overlap,) = report.checks[0].overlaps
    assert (overlap.id, overlap.part, overlap.benchmark_row) == ("train-1", "prompt", "hep-go/3")
    assert overlap.phrase == "write a function that returns the sum of all even numbers in a"
    assert (len(found.splits["test"].groups), found.splits["test"].report.checks) == (1, ())
    noted = f"train: compared with rewardbench-1 (1 rows of {bench}, n-grams of 13 words): 1 of 4 rows overlap"
    assert noted in found.notes
    plain = load_data(DataSection(source=source), 0)
    assert plain.splits["train"].report.checks == ()
    assert load_data(data, 0, ["test"]).splits["test"].groups == plain.splits["test"].groups


def test_the_entries_of_a_mixture_are_compared_together(tmp_path: Path) -> None:
    bench = write(tmp_path / "bench.jsonl", [pair(LONG)])
    paths = [write(tmp_path / f"{name}.jsonl", [pair(name), pair(f"{name}: {LONG}")]) for name in "ab"]
    source = {"train": [{"source": path} for path in paths]}
    found = load_data(DataSection(source=source, splits={"train": "train"}, decontaminate=[bench]), 0)
    train = found.splits["train"]
    (check,) = train.report.checks
    assert (check.rows, [overlap.id for overlap in check.overlaps]) == (4, ["a/train-1", "b/train-1"])
    assert [note for note in found.notes if "compared" in note] == [f"train: {check}"]  # not one for each entry
    assert dict(train.report.rows.dropped) == {check.cause: 2}


def test_names_sources_and_faults_of_the_list(tmp_path: Path) -> None:
    splits = {"train": [pair("a b c")], "dev": [pair("d e f")], "test": [pair("g h i"), pair("j k l")]}
    (tmp_path / "all.json").write_text(json.dumps(splits))
    notes: list[str] = []
    texts = read_benchmark_texts(str(tmp_path / "all.json"), notes.append)
    assert [passage.text for passage in texts.passages if passage.part == "prompt"] == ["d e f", "g h i", "j k l"]
    assert texts.compared.benchmark_rows == 3
    assert notes == ["data.decontaminate: only the splits dev, test of all.json are compared"]
    prior = write(tmp_path / "shp.jsonl", [pair("a b", subset="x", id=1)])
    assert read_benchmark_texts(f"prior-sets=shp={prior}", notes.append).compared.name == "prior-sets"
    with pytest.raises(DataError, match=r"data\.decontaminate: 'rewardbench1' is not a source") as caught:
        read_benchmark_texts("rewardbench1", notes.append)
    assert "benchmarks are rewardbench-1, rewardbench-2, rm-bench, judgebench, prior-sets" in caught.value.hint


def test_a_check_is_recorded_without_texts() -> None:
    (check,) = Finder.of([benchmark("x", [(LONG, [ANSWER, "b"])])], 13).check(groups([("q", [ANSWER, "y"])]))
    assert isinstance(check, Check)
    assert check.cause == "overlap with x"
    known = {"name": "x", "source": "somewhere", "revision": None, "fingerprint": "digest", "benchmark_rows": 1}
    assert check.record() == {**known, "words": 13, "rows": 1, "overlaps": 1}
    assert LONG not in " ".join(chain.from_iterable((o.text, o.phrase) for o in check.overlaps))
