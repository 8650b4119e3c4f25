"""What each training objective costs beside plain Bradley-Terry: seconds a step, and peak memory.

    python scripts/bench_objectives.py --json docs/evidence/costs.json
    python scripts/bench_objectives.py --data ratings.jsonl --groups 64 --dtype bfloat16

Each objective trains on the same rows, in a process of its own, as `rmtrain train` does; the objectives take turns. The
rows need several scored completions a prompt, such as those of the demo data. The first step is left out of the times.
Seconds are those of the processor on a CPU, where other programs may run beside it, and those of the clock on a GPU.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sides import Result, alone, machine, peak_bytes, ratios, shown, spread, synchronize, write_json

PLAIN = "bradley_terry"
CASES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "scaled": {"objective": "scaled"},
    "norm_bt": {"objective": "norm_bt"},
    "plackett_luce": {"objective": "plackett_luce"},
    "ordinal": {"objective": "ordinal", "grades": [1.0, 2.0]},
    "hinge": {"objective": "hinge"},
    "regression": {"objective": "regression"},
    "sum_to_zero": {"sum_to_zero": 0.01},
    "length_decorrelation": {"length_decorrelation": 0.1},
    "text_loss": {"text_loss": 0.1},
}


class Clock:
    """A display that notes the time of every step."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.times = clock, list[float]()

    def note(self, line: str) -> None:
        pass

    def progress(self, task: str, done: int, total: int) -> None:
        pass

    def metrics(self, figures: dict[str, Any]) -> None:
        synchronize()
        self.times.append(self.clock())


def train(settings: dict[str, Any]) -> Result:
    """A run of a few steps: seconds of each but the first, tokens of the run, and the peak memory."""
    import torch

    from rmtrain.data.prepare import prepare
    from rmtrain.model.start import recipe_renderer
    from rmtrain.recipe.load import load_recipe
    from rmtrain.training.train import train as run

    if not torch.cuda.is_available():
        torch.set_num_threads(settings["threads"])
    clock = Clock(time.perf_counter if torch.cuda.is_available() else time.process_time)
    loaded = load_recipe(Path(settings["recipe"]))
    ready = prepare(loaded.recipe, recipe_renderer(loaded.recipe.model), clock)
    result = run(loaded, ready.splits, ready.renderer, clock)
    seconds = [end - start for start, end in itertools.pairwise(clock.times)]
    return {"seconds": seconds, "tokens": result.tokens, "peak_bytes": peak_bytes()}


def recipe_of(options: argparse.Namespace, loss: dict[str, Any], folder: str) -> dict[str, Any]:
    steps = options.steps + 1
    return {
        "model": {"name": options.model, "dtype": options.dtype},
        "lora": {"rank": options.rank, "alpha": 2.0 * options.rank, "dropout": 0.0},
        "data": {
            "source": {"train": options.data} if options.data != "demo" else "demo",
            "max_length": options.max_length,
            "limit": {"train": options.groups},
            "preferences": "all",
        },
        "loss": loss,
        "optim": {
            "global_batch_size": options.groups,
            "tokens_per_microbatch": options.tokens,
            "epochs": float(steps),
            "max_steps": steps,
        },
        "evaluation": {"every": 0, "select": "last", "splits": []},
        "run": {"folder": folder, "save_every": 0},
    }


def side_of(found: Sequence[Result], plain: Sequence[Result]) -> dict[str, Any]:
    """An objective's figures over its runs, beside those of plain Bradley-Terry in the same turns."""
    seconds, other = ([statistics.median(run["seconds"]) for run in runs] for runs in (found, plain))
    peak, other_peak = (spread([run["peak_bytes"] / 2**30 for run in runs]) for runs in (found, plain))
    return {
        "seconds_a_step": spread(seconds),
        "times_plain": ratios(seconds, other),
        "peak_gib": peak,
        "peak_times_plain": peak["median"] / other_peak["median"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train and scored completions")
    parser.add_argument("--objectives", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--groups", type=int, default=3, help="prompts an optimiser step")
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch, at most")
    parser.add_argument("--steps", type=int, default=3, help="that are timed")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs: dict[str, list[Result]] = {name: [] for name in dict.fromkeys([PLAIN, *options.objectives])}
    for turn, name in itertools.product(range(options.repeats), runs):
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "objectives.yaml"
            recipe.write_text(json.dumps(recipe_of(options, CASES[name], folder)))
            runs[name].append(alone(train, {"recipe": str(recipe), "threads": options.threads}))
        print(f"run {turn + 1} of {options.repeats}: {name} done", flush=True)
    tokens = runs[PLAIN][0]["tokens"] // (options.steps + 1)
    print(f"\n{options.groups} prompts and {tokens:,} tokens a step; {machine()}")
    print(f"{'loss':<22}{'seconds a step':<30}{'times plain':<30}{'peak GiB':<10}times plain")
    sides = {name: side_of(found, runs[PLAIN]) for name, found in runs.items()}
    for name, side in sides.items():
        print(
            f"{name:<22}{shown(side['seconds_a_step']):<30}{shown(side['times_plain']):<30}"
            f"{side['peak_gib']['median']:<10.2f}{side['peak_times_plain']:.2f}"
        )
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    write_json(options.json, options=settings, tokens_a_step=tokens, machine=machine(), sides=sides, runs=runs)


if __name__ == "__main__":
    main()
