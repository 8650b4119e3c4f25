"""Run folders to report on, with every piece that a finished run has."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import write_lines

from rmtrain.data.benchmarks.rewardbench1 import BENCHMARK, COUNTS
from rmtrain.evaluation.alignment_gap import GapRows, measure_gap
from rmtrain.evaluation.benchmarks import benchmark_result
from rmtrain.evaluation.rater_shares import Alpha
from rmtrain.evaluation.results import ScoredRow, summarise, write_rows
from rmtrain.recipe.schema import Recipe

STEPS = 12
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = "some-lab/Base-7B"
DATASET = "some-lab/preferences"


def make_recipe(**changes: Any) -> dict[str, Any]:
    """A resolved recipe as plain values; `section__key=value` changes one."""
    values: dict[str, Any] = {"model": {"name": BASE}, "lora": {"rank": 8}, "data": {"source": DATASET}}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return Recipe.model_validate(values).model_dump(mode="json")


def make_rows(count: int, seed: int = 0, sources: tuple[str, ...] = ("code", "chat")) -> list[ScoredRow]:
    """Scored pairs, of which about seven in ten are ranked rightly and one is a tie; two rows share a prompt."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        chosen, rejected = (float(np.float32(value)) for value in (rng.normal(0.8, 1), rng.normal(0, 1)))
        rows.append(
            ScoredRow(
                id=f"r{index}",
                source=sources[index % len(sources)],
                rewards=(chosen, chosen if index == 0 else rejected),
                preferences=((0, 1),),
                truncated=index == 1,
                lengths=(int(rng.integers(5, 50)), int(rng.integers(5, 50))),
                cluster=f"p{index // 2}",
            )
        )
    return rows


def write_split(run: Path, split: str, rows: list[ScoredRow]) -> dict[str, Any]:
    """The files of an evaluated split, as `rmtrain eval` leaves them."""
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}.rows.jsonl"
    write_rows(path, rows)
    figures = asdict(summarise(rows))
    result = {"ckpt": str(run / "final"), "split": split, **figures, "rows": str(path)}
    (folder / f"{split}.json").write_text(json.dumps(result))
    return result


def write_benchmark(run: Path, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A RewardBench result with two rows a subset."""
    rng = np.random.default_rng(5)
    rows = [
        ScoredRow(f"{subset}/{index}", subset, (float(rng.normal(1, 1)), 0.0), ((0, 1),), False)
        for subset in COUNTS
        if subset not in leave_out
        for index in range(2)
    ]
    result = {**benchmark_result(BENCHMARK, rows, ckpt=str(run / "final")).to_json(), "rows": None}
    folder = run / "rewardbench"
    folder.mkdir(exist_ok=True)
    (folder / "rewardbench-1.json").write_text(json.dumps(result))
    (folder / "rewardbench-1.flat.json").write_text(json.dumps({"model": "flat", "alpacaeval-easy": 0.5}))
    return result


def write_gap(run: Path, policy: str = "some-lab/policy", source: str = DATASET) -> dict[str, Any]:
    """A result of `rmtrain gap` that judged the run's model, without a reference."""
    scored, judged = make_rows(40, seed=3), make_rows(40, seed=4)
    alpha = Alpha(np.full(40, 0.75), "constant 0.75")
    figures = measure_gap(GapRows(scored, None, {str(run): judged}), alpha, (0.1, 1.0, 10.0), 0.1, [None] * 40)
    models = {"policy": {"where": policy, "rendering": {"chat_template_sha256": "0" * 64}}}
    result = {**figures.to_json(), "refused": 0, "models": models, "data": {"source": source}, "ckpt": str(run)}
    (run / "gap").mkdir(exist_ok=True)
    (run / "gap" / "policy-on-rows.json").write_text(json.dumps(result))
    return result


def make_manifest(**changes: Any) -> dict[str, Any]:
    """A manifest as training leaves it."""
    books = {"total": 130, "kept": 120, "dropped": {"tie": 7, "duplicate": 3}}
    split = {"source": DATASET, "revision": COMMIT, "fingerprint": "f" * 64, "rows": books, "preferences": books}
    split |= {"groups": 119, "truncated": 4, "dropped_over_length": 1}
    return {
        "state": "finished",
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T04:04:05+00:00",
        "error": None,
        "recipe": "configs/some_lora.yaml",
        "command": ["/somewhere/bin/rmtrain", "train", "configs/some_lora.yaml"],
        "seed": 0,
        "processes": 2,
        "python": "3.11.7",
        "versions": {"torch": "2.11.0", "trl": "1.16.0", "deepspeed": None},
        "git_commit": COMMIT,
        "model": {"name": BASE, "commit": COMMIT},
        "data": {"train": split, "validation": split},
        "steps": STEPS,
        "totals": {
            "tokens": 36_000.0,
            "pairs": 720.0,
            "groups": 480.0,
            "seconds": 90.0,
            "loss_sum": 7.0,
            "steps": 12.0,
        },
        **changes,
    }


def make_run(
    parent: Path,
    name: str = "some_lora-20260102-030405-ab12",
    recipe: dict[str, Any] | None = None,
    manifest: dict[str, Any] | None = None,
    adapter: bool = True,
) -> Path:
    """A finished run with two scored splits and a benchmark; no weights."""
    run = parent / name
    (run / "final").mkdir(parents=True)
    values, manifest = recipe or make_recipe(), manifest or make_manifest()
    (run / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (run / "manifest.json").write_text(json.dumps(manifest))
    contract = {"prepend_bos": False, "append_eos": False}
    sidecar = {"format": 1, "contract": contract, "recipe": values, "base": manifest["model"]}
    (run / "final" / "rmtrain.json").write_text(json.dumps(sidecar))
    if adapter:
        (run / "final" / "adapter_config.json").write_text("{}")
    lines = []
    for step in range(1, STEPS + 1):
        line: dict[str, Any] = {"step": step, "steps": STEPS, "epoch": step / STEPS, "loss": 0.7 - 0.01 * step}
        line |= {
            "grad_norm": 1.0,
            "learning_rate": 1e-5 * step,
            "accuracy": 0.5 + 0.01 * step,
            "reward_gap": 0.1 * step,
        }
        lines.append(line | {"tokens_per_second": 400.0 + step})
        if step % 6 == 0:
            lines.append({"step": step, "steps": STEPS, "epoch": 1.0, "eval_accuracy": 0.6, "eval_loss": math.log(2)})
    write_lines(run / "metrics.jsonl", lines)
    write_split(run, "validation", make_rows(60, seed=1))
    write_split(run, "test", make_rows(90, seed=2))
    write_benchmark(run)
    return run
