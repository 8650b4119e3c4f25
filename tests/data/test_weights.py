"""Weights of preferences: from the row to the loss, which divides them by their mean, and from curation back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.judged import KEPT, Judge, Judged, Rule
from rmtrain.data.ledgers import Ledger
from rmtrain.data.load import load_data
from rmtrain.data.prepare import ReadySplit, tokenize_splits
from rmtrain.data.reader import read_source
from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization
from rmtrain.data.types import Preference
from rmtrain.display import Silent
from rmtrain.errors import DataError, RecipeError
from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.load import parse_recipe_text
from rmtrain.training.build import _require_weights
from rmtrain.training.microbatches import MicrobatchDataset
from rmtrain.training.objectives import RewardBatch, bradley_terry
from rmtrain.training.plan import plan_training

ROWS: list[dict[str, Any]] = [
    {"prompt": "w1", "completions": ["w2", "w3"], "preferences": [[0, 1]], "weights": 0.5},
    {"prompt": "w4", "completions": ["w5", "w6"], "preferences": [[1, 0]], "weights": [2]},
    {"prompt": "w7", "completions": ["w1", "w2", "w3"], "preferences": [[0, 1], [2, 1]], "weights": [0.25, 1]},
    {"prompt": "w8", "completions": ["w1", "", "w3"], "preferences": [[0, 1], [0, 2]], "weights": [0.25, 3]},
    {"prompt": "w9", "completions": ["w1", "w2", "w3"], "preferences": [[0, 1], [2, 1]], "weights": [0, 4]},
    {"prompt": "w10", "completions": ["w1", "w2"], "preferences": [[0, 1]], "weights": 0},
    {"prompt": "w11", "completions": ["w1", "w2", "w3"], "scores": [1, 2, 4], "weights": "0.75"},
]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def section(train: str, **data: Any) -> DataSection:
    return DataSection(**{"source": {"train": train}, "preference_weights": "weights", **data})


def ready(data: DataSection) -> ReadySplit:
    renderer = Renderer.for_tokenizer(make_tokenizer())
    return tokenize_splits(load_data(data, 0), Tokenization(renderer, 64, "drop"), Silent())["train"]


def test_rows_weigh_as_they_say_and_all_are_booked(tmp_path: Path) -> None:
    data = load_data(section(written(tmp_path / "w.jsonl", ROWS)), 0)
    train = data.splits["train"]
    assert [[*group.preferences] for group in train.groups] == [
        [Preference(0, 1, weight=0.5)],
        [Preference(1, 0, weight=2.0)],
        [Preference(0, 1, weight=0.25), Preference(2, 1)],
        [Preference(0, 1, weight=3.0)],
        [Preference(2, 1, weight=4.0)],
        [Preference(1, 0, 1.0, weight=0.75), Preference(2, 0, 3.0, weight=0.75), Preference(2, 1, 2.0, weight=0.75)],
    ]
    assert train.report.rows == Ledger(7, 6, {"weight 0": 1})
    assert train.report.preferences == Ledger(11, 9, {"weight 0": 2})
    mean = np.mean([0.5, 2, 0.625, 3, 4, 0.75])
    note = f"train: weights of 9 preferences: 0.25 to 4, mean over groups {mean:.4g}"
    assert any(line.startswith(note) for line in data.notes)


@pytest.mark.parametrize("value", [None, "", -0.1, "much", float(10**7), [0.5, 0.5], [None], {"a": 1}, True])
def test_other_values_are_faults_of_their_row(tmp_path: Path, value: Any) -> None:
    rows = [{**ROWS[0], "prompt": f"w{n}"} for n in range(9)]
    split = load_data(section(written(tmp_path / "w.jsonl", [*rows, {**ROWS[1], "weights": value}])), 0).splits["train"]
    assert split.report.rows.kept == 9
    assert sum(split.report.rows.dropped.values()) == 1
    assert "weights" in next(iter(split.report.examples.values()))


def test_evaluation_counts_every_preference_alike_and_needs_no_weights(tmp_path: Path) -> None:
    source, plain = written(tmp_path / "w.jsonl", ROWS), written(tmp_path / "t.jsonl", [{**ROWS[0], "prompt": "w12"}])
    bare = [{key: value for key, value in row.items() if key != "weights"} for row in ROWS]
    other = written(tmp_path / "o.jsonl", [{**row, "prompt": f"other {row['prompt']}"} for row in bare])
    for held in ({"source": {"train": source, "test": other}}, {"holdout": {"test": 3, "seed": 4}}):
        for group in load_data(section(source, **held), 0).splits["test"].groups:
            assert all(preference.weight == 1.0 for preference in group.preferences)
    read = read_source(plain, None, section(plain), evaluation=True)
    assert read.groups[0].preferences == (Preference(0, 1),)
    with pytest.raises(DataError, match="no column 'wights' with weights"):
        load_data(section(source, preference_weights="wights"), 0)
    entries = [{"source": source, "name": "a", "preference_weights": "weights"}, {"source": other, "name": "b"}]
    train = load_data(section(source, source={"train": entries}, preference_weights=None), 0).splits["train"]
    assert [p.weight for group in train.groups[-6:] for p in group.preferences] == [1.0] * 10
    limited = {"source": {"train": entries[::-1]}, "preference_weights": None, "limit": {"train": 1}}
    for seed in range(4):  # the drawn group is of either entry
        assert len(load_data(section(source, **limited), seed).splits["train"].groups) == 1
    recipe = f"{{model: {{name: x}}, data: {{source: {{train: {source}, test: {json.dumps(entries)}}}}}}}"
    with pytest.raises(RecipeError, match="applies to training rows only"):
        parse_recipe_text(recipe, "r.yaml")


def test_weights_of_one_are_as_none(tmp_path: Path) -> None:
    ones = written(tmp_path / "w.jsonl", [{**row, "weights": 1} for row in ROWS])
    with_ones, without = ready(section(ones)), ready(section(ones, preference_weights=None))
    assert with_ones.fingerprint == without.fingerprint
    assert "weights" not in with_ones.tokens.table.column_names


def step_of(split: ReadySplit, processes: int, groups: int = 1) -> list[Any]:
    """The preferences of all micro-batches of the one step."""
    sizes = [one_size(tokens) for tokens in split.tokens.groups()]
    plan = plan_training(
        sizes,
        epochs=1,
        max_steps=None,
        global_batch_size=99,
        processes=processes,
        seed=0,
        packing="shared_prompt",
        max_tokens=None,
        max_groups=groups,
        one_pass=split.one_pass(0),
    )
    return [
        batch
        for process in range(processes)
        for batch in MicrobatchDataset(split.tokens, plan, process, "shared_prompt", 0)  # type: ignore[attr-defined]
    ]


def one_size(tokens: Any) -> Any:
    from rmtrain.model.batch import GroupSize

    return GroupSize.of(tokens)


def reward(group_id: str, place: int) -> float:
    return float(np.random.default_rng([len(group_id), sum(map(ord, group_id)), place]).normal())


def loss_of(batches: list[Any], split: ReadySplit) -> float:
    """The mean over micro-batches of the objective's loss, with a reward for each suffix."""
    of_id = {tokens.id: tokens for tokens in split.tokens.groups()}
    losses = []
    for batch in batches:
        rewards = [reward(name, place) for name in batch["ids"] for place in range(len(of_id[name].suffixes))]
        seen = RewardBatch(torch.tensor(rewards), batch["preferences"], batch["completions"])
        losses.append(bradley_terry(seen).item())
    return sum(losses) / len(losses)


numbers = st.lists(st.floats(0.01, 100), min_size=2, max_size=2)


@settings(max_examples=15, deadline=None)
@given(st.lists(numbers, min_size=3, max_size=7), st.integers(1, 2), st.booleans())
def test_the_loss_is_that_of_an_independent_computation(
    tmp_path_factory: pytest.TempPathFactory, weights: list[list[float]], processes: int, mixed: bool
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    rows = [
        {"prompt": f"w{n}", "completions": ["w50", "w51 w52", "w53"], "preferences": [[0, 1], [2, 1]], "weights": own}
        for n, own in enumerate(weights)
    ]
    entries = [{"source": written(folder / "w.jsonl", rows), "name": "a", "preference_weights": "weights"}]
    if mixed:  # with an entry that has no weights, of which each weighs 1
        beside = [{"prompt": f"w{40 + n}", "chosen": "w3", "rejected": "w4 w5"} for n in range(3)]
        entries.append({"source": written(folder / "p.jsonl", beside), "name": "b"})
    split = ready(DataSection(source={"train": entries}))  # type: ignore[arg-type]
    own = {f"a/train-{n}": [(0, 1, a), (2, 1, b)] for n, (a, b) in enumerate(weights)}
    own |= {f"b/train-{n}": [(0, 1, 1.0)] for n in range(3 * mixed)}
    assert {tokens.id for tokens in split.tokens.groups()} == {*own}
    mean = np.mean([np.mean([weight for *_, weight in of_group]) for of_group in own.values()])

    def lost(name: str, better: int, worse: int) -> float:
        return float(np.log1p(np.exp(reward(name, worse) - reward(name, better))))

    means = [np.mean([w / mean * lost(name, b, o) for b, o, w in of_group]) for name, of_group in own.items()]
    assert loss_of(step_of(split, processes, 2), split) == pytest.approx(np.mean(means), rel=1e-5)


@pytest.mark.parametrize("weight", [0.3, 7.0, 1 / 3])
def test_equal_weights_are_as_none_to_the_last_bit(tmp_path: Path, weight: float) -> None:
    rows = [{**row, "weights": weight} for row in ROWS]
    split = ready(section(written(tmp_path / "w.jsonl", rows)))
    plain = ready(section(str(tmp_path / "w.jsonl"), preference_weights=None))
    assert "weights" in split.tokens.table.column_names
    for one, other in zip(step_of(split, 1, 3), step_of(plain, 1, 3), strict=True):
        assert all(map(torch.equal, one["preferences"], other["preferences"]))


def test_objectives_over_whole_groups_refuse_weights(tmp_path: Path) -> None:
    split = ready(section(written(tmp_path / "w.jsonl", ROWS)))
    for objective in ("bradley_terry", "scaled", "hinge", "norm_bt", "ordinal"):
        _require_weights(objective, split)
    for objective in ("plackett_luce", "regression"):
        with pytest.raises(DataError, match="can't use the weights"):
            _require_weights(objective, split)


def test_rejected_preferences_are_kept_with_their_weight_and_read_back(tmp_path: Path) -> None:
    groups = load_data(section(written(tmp_path / "w.jsonl", ROWS)), 0).splits["train"].groups
    rewards = {group.id: [float(place) for place in range(len(group.completions))] for group in groups}
    judged = Judged.by([Rule.of("majority")], groups, [Judge("rm", rewards)])
    source = written(tmp_path / "new.jsonl", judged.source(mark=False, weight=0.25))
    again = load_data(section(source), 0).splits["train"].groups
    before = [(group.id, preference) for group in groups for preference in group.preferences]
    after = [(group.id, preference) for group in again for preference in group.preferences]
    expected = [
        (name, preference._replace(weight=preference.weight * (1 if verdict == KEPT else 0.25)))
        for (name, preference), verdict in zip(before, judged.verdicts, strict=True)
    ]
    assert {KEPT} < {*judged.verdicts}
    assert after == expected
    assert judged.preferences().total == len(after)
    dropped = load_data(section(written(tmp_path / "kept.jsonl", judged.source(mark=False))), 0).splits["train"].groups
    assert [p for group in dropped for p in group.preferences] == [
        preference for (_, preference), verdict in zip(before, judged.verdicts, strict=True) if verdict == KEPT
    ]
