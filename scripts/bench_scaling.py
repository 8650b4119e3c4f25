"""How training's speed grows with the number of processes on one machine, at the same global batch.

    python scripts/bench_scaling.py --data pairs.jsonl --processes 1 2
    python scripts/bench_scaling.py --data pairs.jsonl --processes 1 2 4 8 --dtype bfloat16     # one process a GPU

Each run is `rmtrain train --num-processes N`, with one thread a process on a CPU, so that a process stands for a
device. Sides take turns; the first step of a run is left out of the times. Losses must agree: the same is learnt.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sides import Result, machine, ratios, shown, spread, write_json

RECIPE = """
model: {{name: {model}, dtype: {dtype}}}
lora: {{rank: {rank}, alpha: 32, dropout: 0.0}}
data: {{source: {data}, splits: {{train: train}}, limit: {{train: {rows}}}, max_length: {max_length}}}
optim:
  learning_rate: 1.0e-4
  global_batch_size: {groups}
  tokens_per_microbatch: {tokens}
  max_steps: {steps}
evaluation: {{every: 0, select: last, splits: []}}
distributed: {{strategy: {strategy}}}
run: {{folder: {folder}, save_every: 0}}
"""


def train(recipe: Path, processes: int) -> Result:
    """One run: seconds and losses of its steps, tokens, and the largest peak memory of any process."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, "-m", "rmtrain", "train", str(recipe), "--num-processes", str(processes), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result = json.loads(done.stdout)
    lines = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    ends = [0.0, *(line["seconds"] for line in lines)]
    return {
        "losses": [line["loss"] for line in lines],
        "seconds": [end - start for start, end in itertools.pairwise(ends)],
        "tokens": result["tokens"],
        "peak_bytes": result["peak_memory_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--groups", type=int, default=32, help="prompts an optimiser step, over all processes")
    parser.add_argument("--tokens", type=int, default=2048, help="of a micro-batch, at most")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: at least 2, since the first is left out of the times")
    results: dict[int, list[Result]] = {number: [] for number in options.processes}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "scaling.yaml"
        recipe.write_text(RECIPE.format(**vars(options), folder=folder, rows=options.groups * options.steps))
        for turn, number in itertools.product(range(options.repeats), options.processes):
            results[number].append(train(recipe, number))
            print(f"run {turn + 1} of {options.repeats}: {number} processes done", flush=True)
    first = options.processes[0]
    sides: dict[int, Any] = {}
    print(f"\n{options.strategy}, {options.groups} prompts a step, {options.dtype}; {machine()}")
    print(f"{'processes':<11}{'seconds a step':<32}{'speed-up':<30}largest peak of a process, GiB")
    for number, runs in results.items():
        means = [sum(run["seconds"][1:]) / (len(run["seconds"]) - 1) for run in runs]
        base = [sum(run["seconds"][1:]) / (len(run["seconds"]) - 1) for run in results[first]]
        apart = max(abs(a - b) for run in runs for a, b in zip(run["losses"], results[first][0]["losses"], strict=True))
        sides[number] = {
            "seconds_a_step": spread(means),
            "speed_up": ratios(base, means),
            "peak_gib": spread([run["peak_bytes"] / 2**30 for run in runs]),
            "loss_difference": apart,
        }
        found = sides[number]
        print(
            f"{number:<11}{shown(found['seconds_a_step']):<32}{shown(found['speed_up']):<30}{shown(found['peak_gib'])}"
        )
    print(f"losses differ by {max(side['loss_difference'] for side in sides.values()):.1e} at most")
    content = {key: value for key, value in vars(options).items() if key != "json"}
    write_json(options.json, options=content, machine=machine(), sides=sides, runs=results)


if __name__ == "__main__":
    main()
