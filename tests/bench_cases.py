"""Rows of every benchmark in its published layout, and tiny models to score them with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_config, make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rmtrain.cli.rewardbench import rewardbench

JUDGE = {"source": "mmlu-pro-law", "question": "w1", "response_A": "w2 w3", "response_B": "w4", "label": "B>A"}
ONE = {"prompt": "w1", "chosen": ["w2"], "rejected": ["w3"], "subset": "Ties", "num_correct": 1}
STYLES = {"prompt": "w1", "chosen": ["w2", "w2 w3", "w2 w3 w4"], "rejected": ["w5", "w5 w6", "w6"]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "rewardbench-1": [
        {"prompt": "w1 w2", "chosen": f"w{i} w3", "rejected": f"w4 w{i}", "subset": "hep-go", "id": i} for i in range(3)
    ],
    "rewardbench-2": [
        {**ONE, "id": "1", "rejected": ["w3", "w4", "w5"], "subset": "Focus"},
        {**ONE, "id": "ref:1"},
        {**ONE, "id": "tied:1", "chosen": ["w2", "w5"], "num_correct": 2},
    ],
    "rm-bench": [
        {**STYLES, "id": i, "domain": domain}
        for i, domain in enumerate(["chat", "code", "math", "safety-refuse", "safety-response"])
    ],
    "judgebench": [{**JUDGE, "pair_id": "a"}, {**JUDGE, "pair_id": "b", "label": "A>B", "source": "livebench-math"}],
}


def write(benchmark: str, path: Path) -> str:
    """RM-Bench as the one JSON list that its authors give, the others by line."""
    rows = ROWS[benchmark]
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return str(path)


def write_models(folder: Path) -> Path:
    """A reward model `rm`, and a `policy` with its reference `sft`."""
    for seed, (name, auto) in enumerate(
        [("rm", AutoModelForSequenceClassification), ("policy", AutoModelForCausalLM), ("sft", AutoModelForCausalLM)]
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            auto.from_config(make_config(num_labels=1, initializer_range=0.3)).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


def answer(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    """What `rmtrain rewardbench --json` prints, run in this process."""
    rewardbench(json=True, **options)
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result
