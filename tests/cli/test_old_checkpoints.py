"""Checkpoints that version 0.1.0 wrote: they evaluate, score and export with the rewards that they gave then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rmtrain.cli.app import run

WRITTEN = Path(__file__).parents[1] / "model" / "written_by_0_1_0"  # a LoRA run and a full one, from the same base
REWARDS: dict[str, list[list[float]]] = json.loads((WRITTEN / "rewards.json").read_text())
pytestmark = pytest.mark.parametrize("kind", REWARDS)


@pytest.fixture(autouse=True)
def _copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(WRITTEN, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")  # the run's recipe and its adapter name their files from here


def rewards(file: str) -> list[list[float]]:
    return [json.loads(line)["rewards"] for line in Path(file).read_text().splitlines()]


def same(found: list[list[float]], kind: str) -> bool:
    return len(found) == len(REWARDS[kind]) and all(
        one == pytest.approx(other, abs=1e-6) for one, other in zip(found, REWARDS[kind], strict=True)
    )


def change_recipe(kind: str, change: Any) -> None:
    path = Path(kind, "final/rmtrain.json")
    sidecar = json.loads(path.read_text())
    change(sidecar["recipe"])
    path.write_text(json.dumps(sidecar))


def of_another_version(recipe: dict[str, Any]) -> None:
    recipe["model"]["engine"] = "of another version"
    recipe["data"] |= {"sieve": 3, "holdout": {"kind": "prompt", "test": 0}}
    recipe["optim"] = {"optimizer": "sofia"}
    recipe["objective"] = {"name": "bradley-terry"}
    recipe["loss"] = "gone"
    del recipe["tracking"], recipe["data"]["leaks"]


@pytest.mark.parametrize("change", [None, of_another_version], ids=["as it was", "of another version"])
def test_old_runs_give_the_rewards_they_gave(kind: str, change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if change is not None:
        change_recipe(kind, change)
    assert run(["score", "test.jsonl", "--ckpt", kind, "--output", "scored.jsonl"]) == 0
    assert same(rewards("scored.jsonl"), kind)
    assert run(["eval", "--ckpt", kind, "--split", "test", "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert (result["split"], result["groups"], result["max_length"]) == ("test", 20, 24)
    assert same(rewards(result["rows"]), kind)
    assert ("data.sieve" in said.err and "data.holdout.kind" in said.err) == (change is not None)
    assert run(["eval", "--ckpt", kind, "--data", "test.jsonl", "--json"]) == 0
    assert same(rewards(json.loads(capsys.readouterr().out)["rows"]), kind)


def test_old_runs_are_exported_with_their_rewards(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    change_recipe(kind, of_another_version)
    assert run(["export", "--ckpt", kind, "--output", "plain"]) == 0
    scoring = json.loads(Path("plain/rmtrain.json").read_text())["scoring"]
    of_kind = {"packing": "shared_prompt", "over_length": "truncate_prompt"}
    if kind == "full":
        of_kind = {"packing": "padding_free", "over_length": "truncate_completion"}
    expected = {"format": 1, "dtype": "float32", "max_length": 24, "tokens_per_batch": 300, **of_kind}
    assert expected.items() <= scoring.items()
    assert run(["score", "test.jsonl", "--ckpt", "plain", "--output", "scored.jsonl"]) == 0
    assert same(rewards("scored.jsonl"), kind)


def test_data_that_its_recipe_can_t_name_any_more_are_asked_for(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    change_recipe(kind, lambda recipe: recipe["data"].update(row_schema="of another version"))
    assert run(["eval", "--ckpt", kind, "--split", "test"]) == 2
    said = capsys.readouterr().err
    assert "data.row_schema" in said
    assert "--data SOURCE" in said
    assert run(["eval", "--ckpt", kind, "--data", "test.jsonl", "--json"]) == 0
    said = capsys.readouterr()
    assert "the checkpoint's recipe is ignored" in said.err
    assert same(rewards(json.loads(said.out)["rows"]), kind)


def test_values_that_scoring_needs_are_refused_by_name_where_they_are_damaged(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_recipe(kind, lambda recipe: recipe["data"].update(max_length="24"))
    assert run(["score", "test.jsonl", "--ckpt", kind, "--output", "scored.jsonl"]) == 2
    assert "final/rmtrain.json: can't be used for scoring (max_length: " in capsys.readouterr().err


def test_a_later_version_s_block_is_not_guessed_at(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--ckpt", kind, "--output", "plain"]) == 0
    path = Path("plain/rmtrain.json")
    sidecar = json.loads(path.read_text())
    assert run(["score", "test.jsonl", "--ckpt", "plain", "--output", "one.jsonl"]) == 0
    path.write_text(json.dumps({**sidecar, "scoring": {**sidecar["scoring"], "format": 2}}))
    assert run(["score", "test.jsonl", "--ckpt", "plain", "--output", "scored.jsonl"]) == 2
    assert "has the format 2, and this version of rmtrain reads format 1" in capsys.readouterr().err
