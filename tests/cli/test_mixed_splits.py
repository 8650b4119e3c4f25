"""`eval` and `compare` on a mixture: each entry by itself, and other rows read as any entry was."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer, write_lines
from test_compare_command import write_model

from rmtrain.cli.app import run as rmtrain
from rmtrain.data.render import Renderer
from rmtrain.evaluation.results import read_rows
from rmtrain.files import write_json
from rmtrain.recipe.schema import Recipe

pytestmark = pytest.mark.usefixtures("inside")

RENAMED = {"prompt": "q", "chosen": "answer_1", "rejected": "answer_2"}
ODD = [{"q": f"w{i}", "answer_1": f"w{i + 1} w3", "answer_2": "w4", "source": "own"} for i in range(6)]
PLAIN = [{"prompt": f"w{i}", "chosen": f"w{i + 1}", "rejected": f"w{i + 2} w5", "votes": [1, 1, 0]} for i in range(9)]


@pytest.fixture(autouse=True)
def _checkpoint(inside: None, tmp_path: Path) -> None:
    for name, rows in {"odd": ODD, "plain": PLAIN}.items():
        write_lines(tmp_path / f"{name}.jsonl", rows)
    entries = [
        {"source": "odd.jsonl", "columns": RENAMED},
        {"source": "plain.jsonl", "votes": "votes", "name": "voted"},
    ]
    recipe = Recipe.model_validate(
        {"model": {"name": "b"}, "data": {"source": {"train": "plain.jsonl", "test": entries}}}
    )
    contract = Renderer.for_tokenizer(make_tokenizer()).contract()
    for name in ("a", "b"):
        write_model(tmp_path / name, ord(name))
        values = json.loads(recipe.model_dump_json())
        write_json(tmp_path / name / "rmtrain.json", {"format": 1, "contract": contract, "recipe": values})


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = rmtrain([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_each_entry_has_its_figures_and_votes_have_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "eval", "--ckpt", "a", "--split", "test", "--json")
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    rows = read_rows(Path(result["rows"]))
    assert {row.source for row in rows} == {"odd/own", "voted"}
    for name, entry in result["by_entry"].items():
        own = [row for row in rows if row.id.startswith(f"{name}/")]
        right = [
            (row.rewards[b] > row.rewards[w]) + (row.rewards[b] == row.rewards[w]) / 2
            for row in own
            for b, w in row.preferences
        ]
        assert (entry["n"], entry["groups"]) == (len(right), len(own))
        assert entry["accuracy"] == pytest.approx(sum(right) / len(right))
        assert entry["length_baseline"] == {"odd": 1.0, "voted": 0.0}[name]
    accuracies = [entry["accuracy"] for entry in result["by_entry"].values()]
    assert result["mean_accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert (result["votes"]["n"], result["votes"]["raters"]) == (9, pytest.approx(5 / 6))
    assert [*result["data"]["entries"]] == ["odd", "voted"]
    code, out, _ = run(capsys, "eval", "--ckpt", "a", "--split", "test")
    assert code == 0
    assert "test, by entry" in out
    assert "mean over the entries" in out
    assert "test, votes of raters" in out


def test_two_checkpoints_are_compared_on_a_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert run(capsys, "eval", "--ckpt", name, "--split", "test", "--json")[0] == 0
    code, out, err = run(capsys, "compare", "a", "b", "--json")
    assert code == 0, err
    assert json.loads(out)["n"] == 15


def test_other_rows_are_read_as_the_entry_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "eval", "--ckpt", "a", "--data", "odd.jsonl", "--json")
    assert code == 0, err
    assert "read as in training, with data.columns={prompt: q, chosen: answer_1, rejected: answer_2}" in err


def test_columns_are_not_given_for_a_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "eval", "--ckpt", "a", "--split", "test", "--row-schema", "pair")
    assert code == 2
    assert "the split test is a mixture, whose entries define how their rows are read" in err
