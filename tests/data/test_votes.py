"""Votes of raters and ties: probabilities of preferences from the row to the loss, and the figures against them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from rmtrain.data.ledgers import Ledger
from rmtrain.data.load import load_data
from rmtrain.data.prepare import tokenize_splits
from rmtrain.data.render import Renderer
from rmtrain.data.schemas.votes import vote_share
from rmtrain.data.tokenize import Tokenization
from rmtrain.data.types import Preference
from rmtrain.display import Silent
from rmtrain.errors import DataError
from rmtrain.evaluation.results import ScoredRow, read_rows, summarise, write_rows
from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.load import parse_recipe_text
from rmtrain.training.build import _require_soft
from rmtrain.training.microbatches import _preferences

ROWS = [
    {"prompt": "w1", "completions": ["w2", "w3"], "votes": [1, 1, 0]},
    {"prompt": "w4", "completions": ["w5", "w6"], "votes": [2, 2, 1]},
    {"prompt": "w7", "completions": ["w8", "w9"], "votes": [0, 1, 2]},
    {"prompt": "w7", "completions": ["w1", "w2", "w3"], "preferences": [[0, 1], [2, 1]], "votes": [0.75, 0.25]},
    {"prompt": "w8", "completions": ["w1", "w2"], "votes": None},
]


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "v.jsonl")


def loaded(source: str, **data: Any) -> Any:
    section = DataSection(**{"source": {"train": source, "test": source}, "votes": "votes", "leaks": "keep", **data})
    return load_data(section, 0)


def test_the_majority_is_better_and_its_share_the_probability(source: str) -> None:
    data = loaded(source)
    for split in data.splits.values():  # ties can't be ranked, and training drops them too
        assert [[*group.preferences] for group in split.groups] == [
            [Preference(0, 1, None, 5 / 6)],
            [Preference(1, 0, None, 1 - 1 / 3)],
            [Preference(0, 1, None, 0.75), Preference(1, 2, None, 0.75)],
        ]
        assert split.report.rows == Ledger(5, 3, {"missing value": 1, "tie": 1})
    assert not any("votes" in note for note in data.notes)
    half = loaded(source, tied="half").splits
    assert half["train"].groups[2].preferences == (Preference(0, 1, None, 0.5),)
    assert half["train"].report.preferences == Ledger(5, 5, {})
    assert len(half["test"].groups) == 3


def test_ties_of_scores_are_halves_too_and_contradict_nobody(tmp_path: Path) -> None:
    rows = [
        {"prompt": "w1", "completions": ["w2", "w3", "w4"], "scores": [1, 1, 0]},
        {"prompt": "w1", "completions": ["w3", "w2"], "scores": [2, 1]},
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(source={"train": str(tmp_path / "s.jsonl")}, tied="half", min_gap=0.5)
    groups = load_data(section, 0).splits["train"].groups
    assert [(p.better, p.worse, p.gap, p.probability) for p in groups[0].preferences] == [
        (0, 1, 0.0, 0.5),
        (0, 2, 1.0, 1.0),
        (1, 2, 1.0, 1.0),
    ]
    assert len(groups[1].preferences) == 1


def test_score_gaps_are_probabilities_by_their_scale(tmp_path: Path) -> None:
    rows = [{"prompt": "w1", "completions": ["w2", "w3", "w4"], "scores": [4, 2, 2]}, ROWS[0]]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = [
        {"source": str(tmp_path / "s.jsonl"), "gap_scale": 0.5, "tied": "half", "limit": 1, "name": "a"},
        {"source": str(tmp_path / "s.jsonl"), "name": "b"},
    ]
    section = DataSection(source={"train": entries, "test": entries[:1]}, duplicates="keep", leaks="keep")
    data = load_data(section, 0)
    found = [[(p.better, p.worse, p.probability) for p in group.preferences] for group in data.splits["train"].groups]
    sure = pytest.approx(1 / (1 + np.exp(-1.0)))
    assert found == [[(0, 1, sure), (0, 2, sure), (1, 2, 0.5)], [(0, 1, 1.0), (0, 2, 1.0)]]
    assert {p.probability for p in data.splits["test"].groups[0].preferences} == {1.0}


def test_a_column_of_votes_that_is_missing_or_something_else_is_said(source: str) -> None:
    with pytest.raises(DataError, match="there is no column 'raters' with votes"):
        loaded(source, votes="raters")
    with pytest.raises(DataError, match="holds the text 'w1', expected a share of raters"):
        loaded(source, votes="prompt")


@pytest.mark.parametrize(
    ("value", "share"),
    [
        *[([1], 1.0), ([2, 0], 0.25), (0.3, 0.3), ("0.3", 0.3), ("[1, 2]", 0.5), (1, 1.0), ([], None), ([3], None)],
        *[(1.1, None), (True, None), ([1, "x"], None), ("x", None), ({}, None), ([True], None)],
    ],
)
def test_a_share_is_a_number_or_a_list_of_votes(value: object, share: float | None) -> None:
    assert vote_share(value) == share


def test_the_repr_of_a_certain_preference_is_that_of_older_versions() -> None:
    assert repr(Preference(0, 1)) == "Preference(better=0, worse=1, gap=None)"
    assert repr(Preference(0, 1, 0.5, 1.0)) == "Preference(better=0, worse=1, gap=0.5)"
    assert repr(Preference(1, 0, None, 0.75)) == "Preference(better=1, worse=0, gap=None, probability=0.75)"


def test_probabilities_reach_the_loss_and_only_tables_with_some_have_the_column(source: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "w9", "chosen": "w1", "rejected": "w2"}) + "\n")
    entries = [{"source": source, "votes": "votes", "tied": "half"}, {"source": str(tmp_path / "p.jsonl")}]
    data = load_data(DataSection(source={"train": entries}), 0)
    ready = tokenize_splits(data, Tokenization(Renderer.for_tokenizer(make_tokenizer()), 60, "drop"), Silent())["train"]
    assert ["probabilities" in part.tokens.table.column_names for part in ready.parts] == [True, False]
    groups = [*ready.tokens.groups()]
    assert [group.preferences for group in groups] == [group.preferences for group in data.splits["train"].groups]
    found = _preferences(groups, [1.0] * len(groups), 1.0)
    torch.testing.assert_close(found.probabilities, torch.tensor([5 / 6, 2 / 3, 0.5, 0.75, 0.75, 1.0]))
    _require_soft("bradley_terry", ready)
    with pytest.raises(DataError, match="hinge can't use raters' votes"):
        _require_soft("hinge", ready)
    _require_soft("hinge", ready._replace(tokens=ready.parts[1].tokens))


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0.5, 1)), min_size=1, max_size=9))
def test_figures_against_votes_are_those_of_a_few_lines(rows: list[tuple[float, float]]) -> None:
    scored = [
        ScoredRow(f"r{i}", "", (float(np.float32(gap)), 0.0), ((0, 1),), False, probabilities=(share,))
        for i, (gap, share) in enumerate(rows)
    ]
    certain = ScoredRow("certain", "", (1.0, 0.0), ((0, 1),), False)
    votes = summarise([*scored, certain]).votes
    assert votes is not None
    p, d = np.array([share for _, share in rows]), np.array([row.rewards[0] for row in scored], dtype=np.float64)
    right = 1 / (1 + np.exp(-d))
    assert votes.n == len(rows)
    assert votes.log_likelihood == pytest.approx(np.mean(p * np.log(right) + (1 - p) * np.log1p(-right)), abs=1e-9)
    assert votes.log_likelihood <= votes.log_likelihood_best + 1e-9 <= 1e-9
    assert votes.accuracy == pytest.approx(np.mean((np.sign(d) + 1) / 2))
    assert summarise([certain]).votes is None


def test_rows_files_keep_the_probabilities(tmp_path: Path) -> None:
    soft = ScoredRow("a", "", (1.0, 0.0), ((0, 1),), False, (3, 4), probabilities=(0.75,))
    sure = ScoredRow("b", "", (1.0, 0.0), ((0, 1),), False, (3, 4))
    write_rows(tmp_path / "x.rows.jsonl", [soft, sure])
    assert read_rows(tmp_path / "x.rows.jsonl") == [soft, sure]
    assert "probabilities" not in (tmp_path / "x.rows.jsonl").read_text().splitlines()[1]


def test_votes_alone_say_which_of_two_answers_is_better() -> None:
    text = "model: {name: m}\ndata: {source: d, answers: [a, b], votes: share}\n"
    assert parse_recipe_text(text, "r.yaml").recipe.data.votes == "share"
