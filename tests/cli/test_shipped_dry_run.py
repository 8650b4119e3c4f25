"""Every shipped recipe, dry-run with a tiny model and made-up rows under the names that it uses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_base, write_pairs
from hub_server import HubServer

from rmtrain.data.demo import demo_rows
from rmtrain.recipe.bundled import bundled_recipes

pytestmark = pytest.mark.slow

RUN_ALL = """
import contextlib, io, json, sys
from rmtrain.cli.app import run
answers = {}
for name, arguments in json.load(sys.stdin).items():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(arguments)
    answers[name] = {"code": code, "out": out.getvalue()}
json.dump(answers, sys.stdout)
"""


def test_every_shipped_recipe_can_be_dry_run(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    data = tmp_path / "ufb"
    data.mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in demo_rows("train", 60))
    (data / "train.jsonl").write_text(rows)
    for split in ("train", "validation", "test"):
        write_pairs(tmp_path / f"{split}.jsonl", 10)
    own = {
        "quickstart": [f"model.name={base}"],
        "smollm2_135m": [
            f"model.name={base}",
            f"data.source={{train: {tmp_path}/train.jsonl}}",
            "data.splits={train: train}",
        ],
    }
    hold_out = ["data.holdout={validation: 10, test: 10}"]  # of the sixty rows there are here
    recipes = {recipe.name: recipe.path for recipe in bundled_recipes()}
    assert {"quickstart", "smollm2_135m", "mistral_lora", "mistral_qlora", "mistral_full", "baseline_rlhflow"} <= set(
        recipes
    )
    commands = {
        name: ["train", str(path), *own.get(name, hold_out), "--dry-run", "--json"] for name, path in recipes.items()
    }
    repos = {("model", "mistralai/Mistral-7B-Instruct-v0.2"): base, ("dataset", "JayHyeon/UFB_xai"): data}
    with HubServer(repos) as hub:
        environment = {**hub.environment(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", RUN_ALL],
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            timeout=280,
            env=environment,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, answer in json.loads(done.stdout).items():
        assert answer["code"] == 0, (name, done.stderr[-3000:])
        plan = json.loads(answer["out"])
        derived = plan["derived"]
        assert derived["steps"] >= 1, name
        assert derived["parameters_of_score_head"] == 32, name
        trained, every = derived["parameters_trained"], derived["parameters"]
        assert (trained < every) is (name not in ("mistral_full", "baseline_rlhflow")), name
        for split, books in plan["data"]["splits"].items():
            book = books["rows"]
            assert book["kept"] + sum(book["dropped"].values()) == book["total"], (name, split)
        for sequence in plan["first_group"]["sequences"]:
            assert sequence["tokens"] == len(sequence["ids"])
            assert sequence["ids"].count(1) == 1  # exactly one BOS
