"""A benchmark in a module of its own, with a line in the registry, goes the whole way from rows to a comparison."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_cases import answer
from conftest import read_lines, write_lines

from rmtrain.cli.compare import compare
from rmtrain.cli.rewardbench import rewardbench
from rmtrain.data.benchmarks import BENCHMARKS
from rmtrain.errors import DataError

KINDS = ("dates", "dates", "places", "style", "style")


@pytest.fixture(autouse=True)
def _registered(inside: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BENCHMARKS, "toy", "toy_benchmark")
    rows = [{"prompt": f"w{i}", "good": f"w{i + 9} w3", "bad": "w4", "kind": k, "id": i} for i, k in enumerate(KINDS)]
    write_lines(tmp_path / "toy.jsonl", rows)


def test_its_rows_become_a_result_and_a_table(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"ckpt": str(models / "rm"), "benchmark": "toy", "data": "toy.jsonl"}
    result = answer(capsys, **options)
    accuracy = {name: part["accuracy"] for name, part in result["subsets"].items()}
    rows = read_lines(result["rows"])
    for kind in set(KINDS):
        right = [row["rewards"][0] > row["rewards"][1] for row in rows if row["source"] == kind]
        assert accuracy[kind] == sum(right) / len(right)
    facts = (accuracy["dates"] + accuracy["places"]) / 2
    assert result["sections"]["Facts"]["score"] == pytest.approx(facts)
    assert result["scores"]["current"]["mean_of_sections"] == pytest.approx((facts + accuracy["style"]) / 2)
    assert result["incomplete_subsets"] == {"style": {"n": 2, "expected": 1}}
    rewardbench(**options)
    table = capsys.readouterr().out
    assert "Toy Benchmark sections" in table
    sizes = {line.split()[0]: line.split()[-3] for line in table.splitlines() if line.startswith(("Facts", "Style"))}
    assert sizes == {"Facts": "3", "Style": "2"}


def test_its_flat_form_gives_its_scores_back(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored = answer(capsys, ckpt=str(models / "rm"), benchmark="toy", data="toy.jsonl", output=Path("flat.json"))
    again = answer(capsys, results=[Path("flat.json")], benchmark="toy")
    for key, figure in (("subsets", "accuracy"), ("sections", "score"), ("scores", "mean_of_sections")):
        assert {name: part[figure] for name, part in again[key].items()} == {
            name: pytest.approx(part[figure]) for name, part in scored[key].items()
        }


def test_two_models_are_compared_on_it(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward_model, policy = str(models / "rm"), str(models / "policy")
    compare(reward_model, policy, benchmark="toy", data="toy.jsonl", reference_free_b="avg", json=True)
    compared = json.loads(capsys.readouterr().out)
    of_each = [
        answer(capsys, ckpt=reward_model, benchmark="toy", data="toy.jsonl"),
        answer(capsys, ckpt=policy, benchmark="toy", data="toy.jsonl", reference_free="avg"),
    ]
    assert (compared["benchmark"], compared["n"], list(compared["sections"])) == ("toy", 5, ["Facts", "Style"])
    for side, result in zip("ab", of_each, strict=True):
        assert compared["score"][side] == pytest.approx(result["scores"]["current"]["mean_of_sections"])
        for name, figures in compared["sections"].items():
            assert figures[side] == pytest.approx(result["sections"][name]["score"])


def test_a_row_that_lacks_a_field_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w1", "good": "w2", "kind": "style", "id": 1}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: no bad; the row has: prompt, good, kind, id"):
        rewardbench(ckpt=str(models / "rm"), benchmark="toy", data="bad.jsonl")
