"""`data.augment.other_prompts`: which groups get a good answer to another prompt, and what the ledgers say of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decontaminate import write

from rmtrain.data.augment import add_other_prompts
from rmtrain.data.curation import Candidate, Curation
from rmtrain.data.digests import digests
from rmtrain.data.load import load_data
from rmtrain.data.splits import leak_key
from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.errors import RecipeError
from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.load import load_recipe


def group(number: int, prompt: str, lengths: list[int], preferences: list[tuple[int, int]]) -> PreferenceGroup:
    texts = tuple((Message("assistant", f"{number}-{k}".ljust(length, "x")),) for k, length in enumerate(lengths))
    stated = tuple(Preference(better, worse, 1.0) for better, worse in preferences)
    return PreferenceGroup(f"g{number}", (Message("user", prompt),), texts, stated, scores=(0.0,) * len(texts))


def curations(groups: list[PreferenceGroup], parts: int = 1) -> list[Curation]:
    found = [Candidate(row, group) for row, group in enumerate(groups)]
    split = [found[part::parts] for part in range(parts)]
    return [Curation.of(own, digests(leak_key(each.group.prompt) for each in own)) for own in split]


def augmented(groups: list[PreferenceGroup], share: float, seed: int = 0, parts: int = 1) -> dict[str, PreferenceGroup]:
    split = curations(groups, parts)
    add_other_prompts(split, share, seed)
    return {each.id: each for curation in split for each in curation.groups}


preferences = st.sampled_from([[(0, 1)], [(1, 0)], [(0, 1), (0, 2), (1, 2)], [(2, 0), (2, 1)]])
some_groups = st.lists(st.tuples(st.sampled_from("pqrs"), preferences, st.integers(5, 60)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(some_groups, st.floats(0, 1), st.integers(0, 5))
def test_only_a_good_answer_to_another_prompt_is_added_and_it_is_worse_than_the_winners(
    made: list[Any], share: float, seed: int
) -> None:
    before = [group(i, prompt, [length] * 3, pairs) for i, (prompt, pairs, length) in enumerate(made)]
    after = augmented(before, share, seed)
    changed = [each for each in before if after[each.id] != each]
    assert len(changed) <= round(share * len(before))
    for own in changed:
        new = after[own.id]
        assert new.completions[:-1] == own.completions
        assert new.preferences[: len(own.preferences)] == own.preferences
        winners = sorted({p.better for p in own.preferences})
        assert new.preferences[len(own.preferences) :] == tuple(Preference(w, 3) for w in winners)
        assert new.scores is None
        (donor,) = [each for each in before if new.completions[-1] in each.completions]
        assert donor.prompt != own.prompt
        answer = donor.completions.index(new.completions[-1])
        assert answer in {p.better for p in donor.preferences} - {p.worse for p in donor.preferences}
    assert augmented(before, share, seed) == after  # a seed gives one result
    if len({each.prompt for each in before}) == len(before) > 1:
        assert len(changed) == round(share * len(before))


def test_another_seed_chooses_others_and_length_does_not_give_the_answer_away() -> None:
    groups = [group(i, f"p{i}", [10 + i, 10], [(0, 1)]) for i in range(400)]
    first, second = augmented(groups, 0.2), augmented(groups, 0.2, seed=1)
    marks = [{name for name, each in found.items() if len(each.completions) == 3} for found in (first, second)]
    assert [len(marked) for marked in marks] == [80, 80]
    assert marks[0] != marks[1]
    gaps = [
        abs(len(first[name].completions[2][0].content) - len(first[name].completions[0][0].content))
        for name in marks[0]
    ]
    assert sum(gaps) / len(gaps) < 40  # at random it would be about 130


def recipe(folder: Path, **data: Any) -> DataSection:
    rows = [
        {"prompt": f"question {i}", "completions": ["a " * (i % 5) + "good", "bad", "worse"], "scores": [3.0, 2.0, 1.0]}
        for i in range(50)
    ]
    source = {
        name: write(folder / f"{name}.jsonl", rows[start:stop])
        for name, start, stop in (("train", 0, 40), ("validation", 40, 45), ("test", 45, 50))
    }
    return DataSection(source=source, **data)


def test_a_recipe_counts_what_it_adds_to_training_alone(tmp_path: Path) -> None:
    plain = load_data(recipe(tmp_path), 0).splits
    found = load_data(recipe(tmp_path, augment={"other_prompts": 0.25}), 0).splits
    report = found["train"].report
    assert report.added == (10, 20)
    assert (report.rows.kept, report.completions.kept, report.preferences.kept) == (40, 130, 140)
    assert report.completions.total == 130
    assert [group for group in found["train"].groups if len(group.completions) == 3] == [
        group
        for group in plain["train"].groups
        if len(found["train"].groups[plain["train"].groups.index(group)].completions) == 3
    ]
    for name in ("validation", "test"):
        assert found[name].groups == plain[name].groups
        assert found[name].report.added == (0, 0)


@pytest.mark.parametrize("objective", ["scaled", "ordinal", "regression"])
def test_objectives_that_read_scores_are_refused(tmp_path: Path, objective: str) -> None:
    path = tmp_path / "r.yaml"
    loss = {"objective": objective, **({"grades": [1.5]} if objective == "ordinal" else {})}
    path.write_text(
        json.dumps(
            {"model": {"name": "m"}, "data": {"source": "demo", "augment": {"other_prompts": 0.1}}, "loss": loss}
        )
    )
    with pytest.raises(RecipeError, match="reads scores, and an answer to another prompt has none"):
        load_recipe(path)
