"""scripts/dpo_policy.py: a policy tuned by TRL, whose log-probabilities are those that `rmtrain gap` reads."""

import json
import sys
from pathlib import Path
from typing import Any

import dpo_policy
import numpy as np
import pytest
from conftest import make_groups

from rmtrain.cli.app import run as rmtrain
from rmtrain.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("inside")


def write(path: str, count: int, seed: int) -> None:
    rows = []
    for number, group in enumerate(make_groups(count, seed=seed, k=2)):
        texts = [completion[0].content for completion in group.completions]
        better, worse = (texts[i] for i in (group.preferences[0].better, group.preferences[0].worse))
        rows.append({"id": str(number), "prompt": group.prompt[0].content, "chosen": better, "rejected": worse})
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_trl_and_gap_read_the_same_log_probabilities(
    models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("train.jsonl", 30, 0)
    write("test.jsonl", 8, 1)
    arguments = ["train.jsonl", "test.jsonl", "--model", str(models / "sft"), "--output", "dpo", "--pairs", "16"]
    monkeypatch.setattr(sys, "argv", ["dpo_policy.py", *arguments, "--test-pairs", "6", "--max-length", "30"])
    dpo_policy.main()
    made = json.loads(Path("dpo/dpo.json").read_text())
    rows = made["rows"]
    assert rows["read"] == rows["kept"] + rows["too_long"]
    assert rows["kept"] == 16
    assert rows["too_long"] > 0
    capsys.readouterr()
    arguments = ["--policy", "dpo/policy", "--reference", str(models / "sft"), "--json"]
    assert rmtrain(["gap", *arguments, "--data", "dpo/rows.jsonl"]) == 0
    result = json.loads(capsys.readouterr().out)
    scored = [json.loads(line) for line in Path(result["rows"]["reference"]).read_text().splitlines()]
    chosen, rejected = np.mean([row["rewards"] for row in scored], axis=0)
    first = made["log"][0]  # of the only step, before its update: means over all rows
    assert (first["logps/chosen"], first["logps/rejected"]) == pytest.approx((chosen, rejected), rel=1e-4)
    assert first["loss"] == pytest.approx(np.log(2))
    assert load_recipe(Path("dpo/recipe.yaml")).recipe.data.max_length == 30
