"""`data.decontaminate` through the commands: the run folder, the checkpoint, and what `rewardbench` says of it."""

import json
from pathlib import Path

import pytest
from conftest import read_lines, write_base, write_pairs
from test_end_to_end import answer, rmtrain

pytestmark = pytest.mark.slow

RECIPE = """
model: {{name: {folder}/base, dtype: float32}}
lora: {{rank: 4, alpha: 8}}
data:
  source: {{train: {folder}/train.jsonl}}
  splits: {{train: train}}
  max_length: 64
  decontaminate: [rewardbench-1={folder}/bench.jsonl, judgebench={folder}/judge.jsonl]
optim: {{learning_rate: 3.0e-3, max_steps: 2, global_batch_size: 8}}
run: {{folder: {folder}/runs}}
"""


def test_a_run_names_the_rows_that_it_dropped_and_rewardbench_says_how_many(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    rows = [json.loads(line) for line in write_pairs(tmp_path / "train.jsonl", 40).read_text().splitlines()]
    taken = max(rows, key=lambda row: len(row["prompt"].split()))
    pair = {"prompt": taken["prompt"].upper(), "chosen": "w1 w2", "rejected": "w3", "subset": "hep-go", "id": 5}
    judge = {"pair_id": "a", "source": "mmlu-pro-law", "question": "w1 w1 w1", "label": "B>A"}
    judge |= {"response_A": "w2", "response_B": "w3"}
    for name, row in (("bench", pair), ("judge", judge)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path))

    report = answer(rmtrain("data", recipe, "--json"))["splits"]["train"]
    assert report["rows"] == {"total": 40, "kept": 39, "dropped": {"overlap with rewardbench-1": 1}}
    assert [(check["name"], check["overlaps"], check["rows"]) for check in report["checks"]] == [
        ("rewardbench-1", 1, 40),
        ("judgebench", 0, 40),
    ]
    run = Path(answer(rmtrain("train", recipe, "--json"))["run"])
    (line,) = read_lines(run / "overlaps.jsonl")
    assert (line["id"], line["benchmark"], line["benchmark_row"]) == (taken["id"], "rewardbench-1", "hep-go/5")
    assert json.loads((run / "manifest.json").read_text())["data"]["train"]["checks"] == report["checks"]
    assert json.loads((run / "final" / "rmtrain.json").read_text())["checks"] == report["checks"]

    card = (run / "final" / "README.md").read_text()
    assert "| rewardbench\\-1 | 1 | 13 | 40 | 1 |" in card or "| rewardbench-1 | 1 | 13 | 40 | 1 |" in card
    assert "compared with" in (run / "report.html").read_text()
    of_bench = rmtrain("rewardbench", "--ckpt", run, "--data", tmp_path / "bench.jsonl").stdout
    said = " ".join(of_bench.split())
    assert "Training rows that overlapped with this benchmark, by n-grams of 13 words: 1 of 40, dropped" in said
    of_rm = ("rewardbench", "--ckpt", run, "--benchmark", "rm-bench", "--data", tmp_path / "rm.json", "--json")
    styles = {"id": 1, "domain": "chat", "prompt": "w1", "chosen": ["w2"] * 3, "rejected": ["w5"] * 3}
    (tmp_path / "rm.json").write_text(json.dumps([styles]))
    assert answer(rmtrain(*of_rm))["training_check"] == {"checked": False}
