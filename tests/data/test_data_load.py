"""A recipe's data section → splits: what is loaded, held out, dropped, noted and refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.ledgers import Ledger
from rmtrain.data.load import CuratedData, load_data, recipe_splits
from rmtrain.data.reader import read_source
from rmtrain.data.types import Message, Preference
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

Row = dict[str, Any]


def pairs(start: int, stop: int) -> list[Row]:
    return [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(start, stop)]


def write(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(only: Sequence[str] | None = None, **data: Any) -> CuratedData:
    return load_data(DataSection(**data), 0, only)


TRAIN_ONLY: Any = {"splits": {"train": "train"}}


def test_a_pair_file_becomes_groups(tmp_path: Path) -> None:
    rows = [*pairs(0, 2), {"id": "own", "source": "flan", "prompt": "p", "chosen": "c", "rejected": "r"}]
    path = write(tmp_path / "x.jsonl", rows)
    train = load(source=path, **TRAIN_ONLY).splits["train"]
    assert [group.id for group in train.groups] == ["train-0", "train-1", "own"]
    assert train.groups[2].prompt == (Message("user", "p"),)
    assert train.groups[2].preferences == (Preference(0, 1, None),)
    assert train.groups[2].source == "flan"
    assert (train.source, train.revision, train.rows) == (path, None, (0, 1, 2))
    assert train.report.schema == "pair"
    assert train.report.rows == Ledger(3, 3, {})


def test_a_missing_split_names_those_there_are_and_both_ways_out(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", pairs(0, 4))
    with pytest.raises(DataError) as caught:
        load(source=path)
    assert caught.value.message == f"{path}: no split 'validation', which the recipe uses as its validation split"
    assert "it has: train" in caught.value.hint
    assert "data.splits" in caught.value.hint
    assert "data.holdout" in caught.value.hint


def test_splits_are_mapped_to_the_names_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"fit": pairs(0, 3), "filtered": pairs(3, 5)}))
    found = load(source=str(path), splits={"train": "fit", "test": "filtered"})
    assert {name: len(split.groups) for name, split in found.splits.items()} == {"train": 3, "test": 2}


def split_sizes(found: CuratedData) -> dict[str, int]:
    return {name: len(split.groups) for name, split in found.splits.items()}


def test_a_mapping_of_sources_says_which_splits_there_are(tmp_path: Path) -> None:
    source = {"train": write(tmp_path / "a.jsonl", pairs(0, 6)), "test": write(tmp_path / "b.jsonl", pairs(6, 8))}
    data = DataSection(source=source)
    assert recipe_splits(data) == ("train", "test")
    found = load_data(data, 0)
    assert split_sizes(found) == {"train": 6, "test": 2}
    assert found.splits["train"].fingerprint != found.splits["test"].fingerprint
    with pytest.raises(DataError, match="the recipe has no split 'validation'"):
        load_data(data, 0, ["validation"])


def test_holdout_draws_what_the_source_lacks(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", pairs(0, 100))
    data = DataSection(source=path, holdout={"validation": 10, "test": 0.2})
    found = load_data(data, 0)
    assert split_sizes(found) == {"train": 70, "validation": 10, "test": 20}
    assert found.splits["train"].report.rows == Ledger(100, 70, {"held out": 30})
    assert found.splits["test"].report.rows == Ledger(20, 20, {})
    assert found.leaks == []
    texts = [group.prompt[0].content for split in found.splits.values() for group in split.groups]
    assert sorted(texts) == sorted(row["prompt"] for row in pairs(0, 100))
    for name in ("validation", "test"):  # alone, a split is what it is beside the others
        assert load_data(data, 0, [name]).splits[name].groups == found.splits[name].groups


def test_holdout_keeps_rows_of_a_prompt_together(tmp_path: Path) -> None:
    rows = [{**row, "chosen": f"{row['chosen']} {k}"} for row in pairs(0, 40) for k in range(3)]
    found = load(source=write(tmp_path / "x.jsonl", rows), holdout={"validation": 10, "test": 9})
    assert split_sizes(found) == {"train": 99, "validation": 12, "test": 9}
    assert found.leaks == []


def test_holdout_of_a_split_that_the_source_has_is_noted_and_not_used(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": pairs(0, 10), "validation": pairs(10, 13), "test": pairs(13, 15)}))
    data = DataSection(source=str(path), holdout={"validation": 2})
    found = load_data(data, 0)
    assert split_sizes(found) == {"train": 10, "validation": 3, "test": 2}
    assert found.notes == ["data.holdout.validation is not used: the source has that split"]
    unnamed = DataSection(source=str(path), splits={"train": "train"}, holdout={"validation": 2})
    assert split_sizes(found := load_data(unnamed, 0)) == {"train": 8, "validation": 2}
    assert found.notes == ["data.holdout draws validation from train; splits that are not used: test, validation"]


def test_a_split_of_another_name_beside_a_holdout_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": pairs(0, 10), "val": pairs(10, 13), "test": pairs(13, 15)}))
    found = load(source=str(path), holdout={"validation": 2})
    assert split_sizes(found) == {"train": 8, "validation": 2, "test": 2}
    assert found.notes == ["data.holdout draws validation from train; splits that are not used: val"]
    named = {"train": "train", "validation": "val", "test": "test"}
    assert load(source=str(path), splits=named).notes == []


LEAKY = [*pairs(0, 4), {"prompt": "QUESTION  9", "chosen": "x", "rejected": "y"}]


@pytest.mark.parametrize(("leaks", "left", "fate"), [("drop", 4, "dropped"), ("keep", 5, "kept")])
def test_leaks_are_reported_and_dropped_from_train_alone(tmp_path: Path, leaks: Any, left: int, fate: str) -> None:
    source = {"train": write(tmp_path / "a.jsonl", LEAKY), "test": write(tmp_path / "b.jsonl", pairs(9, 11))}
    found = load(source=source, leaks=leaks)
    assert split_sizes(found) == {"train": left, "test": 2}
    assert found.leaks == [("train", "test", 1, 1, leaks == "drop")]
    assert found.splits["train"].report.rows.dropped == ({"leak": 1} if leaks == "drop" else {})
    assert found.notes == [f"prompts in both train and test: 1; rows of train with such a prompt: 1, {fate}"]
    alone = load(source=source, leaks=leaks, only=["train"])
    assert alone.splits["train"].groups == found.splits["train"].groups
    assert list(alone.splits) == ["train"]


THIN = [
    *pairs(0, 3),
    pairs(0, 1)[0],  # duplicate
    {"prompt": "c", "chosen": "a", "rejected": "b"},
    {"prompt": "c", "chosen": "b", "rejected": "a"},
    {"prompt": "t", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 3},
    {"prompt": "g", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 2.75},
    {"prompt": "i", "chosen": "a", "rejected": "a"},
    {"prompt": "e", "chosen": "a", "rejected": ""},
]


def test_training_is_thinned_and_evaluation_is_not(tmp_path: Path) -> None:
    source = {"train": write(tmp_path / "a.jsonl", THIN), "test": write(tmp_path / "b.jsonl", THIN)}
    found = load(source=source, min_gap=0.5, leaks="keep")
    unscorable = {"tie": 1, "identical completions": 1, "empty completion": 1}
    assert found.splits["train"].report.rows == Ledger(
        10, 3, {**unscorable, "duplicate": 1, "contradiction": 2, "below min_gap": 1}
    )
    assert found.splits["test"].report.rows == Ledger(10, 7, unscorable)
    assert "test: duplicates, which evaluation splits keep: 1" in found.notes
    kept = load(source=source, leaks="keep", duplicates="keep", contradictions="keep", only=["train"])
    assert kept.splits["train"].report.rows == Ledger(10, 7, unscorable)


def test_limit_draws_groups_in_source_order_by_the_run_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", pairs(0, 50))
    data = DataSection(source=path, limit={"train": 20}, splits={"train": "train"})
    first = load_data(data, 1).splits["train"]
    assert first.report.rows == Ledger(50, 20, {"limit": 30})
    assert list(first.rows) == sorted(first.rows)
    assert first.groups == load_data(data, 1).splits["train"].groups
    assert first.rows != load_data(data, 2).splits["train"].rows


def raw(prompt: str, *scores: tuple[str, float]) -> Row:
    completions = [
        {"response": f"{prompt} {k}", "overall_score": overall, "annotations": {"honesty": {"Rating": rating}}}
        for k, (rating, overall) in enumerate(scores)
    ]
    return {"instruction": prompt, "completions": completions, "source": "flan", "models": ["m"]}


def test_raw_ultrafeedback_by_either_score(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [raw("q", ("4", 8), ("4", 7), ("1", 10), ("N/A", 3))])
    by_aspects = load(source=path, **TRAIN_ONLY)
    report = by_aspects.splits["train"].report
    assert report.completions == Ledger(4, 3, {"unrated completion": 1})
    assert report.preferences == Ledger(3, 2, {"tie": 1})
    assert "a known error of the source" in by_aspects.notes[0]
    assert "kept" in by_aspects.notes[0]
    overall = load(source=path, **TRAIN_ONLY, score="overall").splits["train"]
    assert overall.report.completions == Ledger(4, 3, {"overall score of 10 with a fine-grained mean of 2 or less": 1})
    assert [(p.better, p.worse, p.gap) for p in overall.groups[0].preferences] == [
        (0, 1, 1.0),
        (0, 2, 5.0),
        (1, 2, 4.0),
    ]
    assert "left out" in overall.report.notes[0]


def test_columns_are_renamed(tmp_path: Path) -> None:
    rows = [{"question": "q", "response_a": "a", "response_b": "b", "chosen-rating": 5, "rejected-rating": 3.5}]
    columns = {
        "prompt": "question",
        "chosen": "response_a",
        "rejected": "response_b",
        "score_chosen": "chosen-rating",
        "score_rejected": "rejected-rating",
    }
    path = write(tmp_path / "x.jsonl", rows)
    assert load(source=path, **TRAIN_ONLY, columns=columns).splits["train"].groups[0].preferences[0].gap == 1.5
    with pytest.raises(DataError, match="there is no column 'nope' to rename to 'chosen'") as caught:
        load(source=path, **TRAIN_ONLY, columns={**columns, "chosen": "nope"})
    assert "question, rejected-rating, response_a" in caught.value.hint


def test_a_stated_schema_needs_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", pairs(0, 2))
    with pytest.raises(DataError, match="row schema ultrafeedback needs the columns instruction, completions"):
        load(source=path, **TRAIN_ONLY, row_schema="ultrafeedback")
    path = write(tmp_path / "y.jsonl", [{"question": "q"}])
    with pytest.raises(DataError, match=r"y\.jsonl: the columns \(question\) fit no known row schema"):
        load(source=path, **TRAIN_ONLY)


def test_a_few_malformed_rows_are_counted_and_many_are_an_error(tmp_path: Path) -> None:
    bad: list[Row] = [{"prompt": 1, "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": None, "rejected": "b"}]
    found = load(source=write(tmp_path / "x.jsonl", [*bad, *pairs(0, 8)]), **TRAIN_ONLY).splits["train"]
    assert found.report.rows == Ledger(10, 8, {"wrong type": 1, "missing value": 1})
    assert found.report.examples["missing value"].endswith("x.jsonl:2: column chosen")
    path = write(tmp_path / "y.jsonl", [*bad, {"prompt": "", "chosen": "a", "rejected": "b"}, *pairs(0, 9)])
    with pytest.raises(DataError) as caught:
        load(source=path, **TRAIN_ONLY)
    assert caught.value.message == (
        f"{path}: 3 of 12 rows are not valid pair rows: "
        f"{path}:1: wrong type: column prompt holds the number 1, expected text, or a list of messages with `role` and "
        f"`content`; {path}:2: missing value: column chosen; {path}:3: empty prompt"
    )


def test_a_split_without_any_row_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}])
    with pytest.raises(DataError, match=r"no row of the train split is left \(identical completions 1, first .*:1\)"):
        load(source=path, **TRAIN_ONLY)


def test_an_evaluation_source_drops_what_has_no_preference(tmp_path: Path) -> None:
    path = write(tmp_path / "some.pairs.jsonl", THIN)
    found = read_source(path, None, evaluation=True)
    assert found.name == "some.pairs"
    assert found.groups[0].id == "some.pairs-0"
    assert found.report.rows == Ledger(10, 7, {"tie": 1, "identical completions": 1, "empty completion": 1})


def test_a_source_for_scoring_keeps_every_row_and_completion(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completions": ["a"]},
        {"prompt": "q", "completions": ["", "", "b"]},
        {"prompt": [{"role": "user", "content": " "}], "completions": ["c", "c"], "scores": [1, None]},
    ]
    found = read_source(write(tmp_path / "x.jsonl", rows), None, evaluation=False)
    assert [len(group.completions) for group in found.groups] == [1, 3, 2]
    assert found.rows == (0, 1, 2)
    path = write(tmp_path / "y.jsonl", [*rows, {"prompt": "q", "completions": "a"}, *rows * 3])
    with pytest.raises(DataError, match=r"y\.jsonl:4: wrong type"):
        read_source(path, None, evaluation=False)


def test_a_source_is_read_with_the_recipe_s_schema(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"q": "q", "chosen": "a", "rejected": "b"}])
    data = DataSection(source="demo", columns={"prompt": "q"})
    assert read_source(path, "train", data, evaluation=True).groups[0].prompt == (Message("user", "q"),)


def test_the_demo_source_has_three_splits_without_leaks() -> None:
    data = DataSection(source="demo", demo_groups={"train": 30, "test": 10})
    found = load_data(data, 0, ["train", "test"])
    assert split_sizes(found) == {"train": 30, "test": 10}
    assert found.splits["train"].report.schema == "ultrafeedback"
    assert found.leaks == []
    assert load_data(data, 5, ["test"]).splits["test"].groups == found.splits["test"].groups


def test_processes_take_what_their_launcher_has_curated(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmtrain.data import curated_store, prepare
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.display import Silent
    from rmtrain.recipe.schema import Recipe

    path = write(tmp_path / "x.jsonl", [*pairs(0, 6), pairs(0, 1)[0]])
    recipe = Recipe.model_validate({"model": {"name": str(base)}, "data": {"source": path, **TRAIN_ONLY}})
    renderer = Renderer.for_tokenizer(load_tokenizer(str(base)))
    launcher = prepare.prepare(recipe, renderer, Silent())
    with prepare.shared_with_processes(launcher.data):
        monkeypatch.setattr(curated_store, "load_data", lambda *_: pytest.fail("the source was read again"))
        Path(path).unlink()
        process = prepare.prepare(recipe, renderer, Silent())
    assert process.data == launcher.data
    assert {name: split.fingerprint for name, split in process.splits.items()} == {
        name: split.fingerprint for name, split in launcher.splits.items()
    }
