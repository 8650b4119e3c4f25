"""Near duplicates: the rule against exact Jaccard indices, its order, books and examples, and the missing library."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE  # noqa: F401  (sets the environment before anything heavy is imported)
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.curation import Candidate, Curation
from rmtrain.data.digests import digests
from rmtrain.data.examples import examples_of
from rmtrain.data.load import CuratedData, load_data
from rmtrain.data.near_duplicates import NEAR_DUPLICATE, NEAR_DUPLICATE_ELSEWHERE, drop_near_duplicates
from rmtrain.data.splits import leak_key
from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.errors import InputError
from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.rules import _data_conflicts

LONG = "Please write a short story about a small green dragon who learns to swim in a cold lake in spring"


Pairs = tuple[tuple[int, int], ...]


def group(name: str, prompt: str, *answers: str, preferences: Pairs = ((0, 1),)) -> PreferenceGroup:
    said = tuple((Message("assistant", answer),) for answer in answers)
    pairs = tuple(Preference(*pair) for pair in preferences)
    return PreferenceGroup(name, (Message("user", prompt),), said, pairs)


def fates(groups: list[PreferenceGroup], least: float) -> list[tuple[str, str]]:
    made = [Candidate(row, each) for row, each in enumerate(groups)]
    curation = Curation.of(made, digests(leak_key(each.prompt) for each in groups))
    drop_near_duplicates([curation], least)
    return [(cause or "", curation.repeats.get(row, "")) for row, cause in enumerate(curation.outcomes.causes)]


def exact(groups: list[PreferenceGroup], least: float) -> list[tuple[str, str]]:
    """The rule in sets of tuples of words, each row beside all earlier ones that are kept."""

    def grams(texts: list[str]) -> set[tuple[str, ...]]:
        split = [re.findall(r"[a-z0-9]+", text.lower()) for text in texts]
        return {tuple(words[i : i + 3]) for words in split for i in range(max(1, len(words) - 2))}

    def parts(of: PreferenceGroup) -> list[set[tuple[str, ...]]]:
        answers = [completion[0].content for completion in of.completions]
        sides = [[answers[pair[side]] for pair in of.preferences] for side in (0, 1)]
        return [grams([of.prompt[0].content]), *map(grams, sides)]

    kept: list[PreferenceGroup] = []
    found = []
    for each in groups:
        own = parts(each)
        near = (k for k in kept if all(len(a & b) / len(a | b) >= least for a, b in zip(own, parts(k), strict=True)))
        first = next(near, None)
        found.append((NEAR_DUPLICATE, first.id) if first else ("", ""))
        kept += [] if first else [each]
    return found


TEXT = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=7).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=2, max_size=12), st.sampled_from([0.5, 0.8, 1.0]))
def test_no_row_is_dropped_that_exact_indices_would_keep_and_equal_shingles_always_are(
    rows: list[tuple[str, str, str]], least: float
) -> None:
    groups = [group(str(n), prompt, *answers) for n, (prompt, *answers) in enumerate(rows)]
    found = fates(groups, least)
    kept = [each for each, (cause, _) in zip(groups, found, strict=True) if not cause]
    for each, (cause, first) in zip(groups, found, strict=True):
        if cause:
            (partner,) = [other for other in kept if other.id == first]
            assert exact([partner, each], least)[1] == (NEAR_DUPLICATE, first)
            assert int(first) < int(each.id)
    assert all(fate == ("", "") for fate in exact(kept, 1.0))
    if least == 1.0:
        assert found == exact(groups, least)
    assert fates(groups, least) == found


def test_rows_with_a_few_changed_words_are_found_as_exact_indices_say() -> None:
    words = LONG.split()
    groups = []
    for changed in range(12):
        prompt = " ".join([f"x{changed}", *words[1:]]) if changed % 3 else LONG
        better = " ".join([*words[: 19 - changed], *(f"y{changed}{i}" for i in range(changed))])
        groups.append(group(str(changed), prompt, better, LONG.upper()))
    for least in (0.5, 0.7, 0.9):
        assert fates(groups, least) == exact(groups, least)


def test_the_same_prompt_with_other_answers_and_turned_labels_are_none() -> None:
    first = group("a", LONG, LONG + " and sings", "No thanks, I would much rather not")
    other = group("b", LONG, LONG + " and sings", "A story about dragons would take me too long to write")
    turned = group("c", LONG, *(c[0].content for c in reversed(first.completions)))
    again = group("d", LONG + "!", LONG + ", and sings", "no thanks; I would much rather not.")
    assert fates([first, other, turned, again], 0.8) == [("", ""), ("", ""), ("", ""), (NEAR_DUPLICATE, "a")]


def test_equal_answers_within_a_group_are_no_matter_and_chains_end_at_kept_rows() -> None:
    same = group("a", LONG, LONG, LONG + " again", LONG, preferences=((0, 1), (2, 1)))
    assert fates([same], 0.5) == [("", "")]
    words = [f"w{i}" for i in range(30)]
    prompts = [" ".join([*words[n:], *(f"v{i}" for i in range(n))]) for n in (0, 3, 6)]
    chain = [group(str(n), prompt, "yes", "no") for n, prompt in enumerate(prompts)]
    assert exact(chain, 0.75) == fates(chain, 0.75) == [("", ""), (NEAR_DUPLICATE, "0"), ("", "")]


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def loaded(**keys: Any) -> CuratedData:
        near = {"prompt": LONG, "chosen": f"{LONG} again", "rejected": f"{LONG} never"}
        rows = {
            "a": [near, {**near, "prompt": f"{LONG}, please"}, {"prompt": "p", "chosen": "x", "rejected": "y"}],
            "b": [{**near, "prompt": LONG.upper()}, {"prompt": "q", "chosen": "x", "rejected": "y"}],
        }
        for name, own in rows.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        entries = [{"source": str(tmp_path / f"{name}.jsonl")} for name in rows]
        section = DataSection(source={"train": entries, "test": str(tmp_path / "b.jsonl")}, **keys)
        return load_data(section, 0)

    return loaded


def test_the_books_of_entries_and_examples_name_the_row_that_comes_first(load: Any) -> None:
    assert not any("near" in cause for cause in load(leaks="keep").splits["train"].report.rows.dropped)
    data = load(near_duplicates=0.8, leaks="keep")
    books = {part.entry.name: dict(part.report.rows.dropped) for part in data.splits["train"].parts}
    assert books == {"a": {NEAR_DUPLICATE: 1}, "b": {NEAR_DUPLICATE_ELSEWHERE: 1}}
    assert len(data.splits["test"].groups) == 2
    (own,), (other,) = (examples_of(data.rows, cause, 2) for cause in (NEAR_DUPLICATE, NEAR_DUPLICATE_ELSEWHERE))
    assert own.why == "prompts 95% the same, preferred answers 100% the same, other answers 100% the same"
    assert other.why == "prompts 100% the same, preferred answers 100% the same, other answers 100% the same"
    for example in (own, other):
        assert example.other is not None
        assert example.other.place == f"train: {example.row.place.replace('b.jsonl', 'a.jsonl')[:-1]}1"


def test_a_missing_library_is_said_before_rows_are_read(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasketch" else found(name))
    with pytest.raises(InputError, match="needs datasketch") as refused:
        load(near_duplicates=0.8)
    assert refused.value.hint == "install it: pip install datasketch"
    load(leaks="keep")


def test_duplicates_that_are_kept_contradict_it() -> None:
    section = DataSection(source="demo", duplicates="keep", near_duplicates=0.8)
    assert [conflict.keys for conflict in _data_conflicts(section)] == [("data.near_duplicates", "data.duplicates")]
