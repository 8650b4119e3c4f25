"""Train on a GPU of which only so much memory is free, and hold the predicted peak against the measured one.

    python scripts/bench_memory.py --model models/mistral-7b-random --data pairs.jsonl --free 16 --quantization nf4
    python scripts/bench_memory.py --model ... --data pairs.jsonl --free 24 40 80

For each amount another process holds the rest of the GPU's memory, so rmtrain sees and has no more than that. `train
--dry-run` first predicts the peak. Where that does not fit, the overrides that it suggests are taken, one after the
other. Then it trains a few steps. On a CPU nothing is held, and the peak is the process's resident memory.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sides import machine, write_json

GIB = 2**30
HOLD = (
    "import sys, torch\n"
    "free, _ = torch.cuda.mem_get_info()\n"
    "held = torch.empty(max(0, free - int(sys.argv[1])), dtype=torch.uint8, device='cuda')\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()\n"
)


@contextmanager
def only_free(gib: float) -> Iterator[None]:
    """Hold all but so much of the GPU's memory in another process."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(int(gib * GIB))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    if holder.stdout.readline().strip() != "held":
        raise SystemExit("the process that holds the rest of the memory failed")
    try:
        yield
    finally:
        holder.communicate("")


def recipe_text(options: argparse.Namespace, folder: str) -> str:
    """The recipe whose memory is looked at: the longest groups of the data, at the recipe's tokens a micro-batch."""
    return json.dumps(
        {
            "model": {"name": options.model, "dtype": options.dtype, "quantization": options.quantization},
            "lora": {"rank": options.rank, "alpha": 2 * options.rank},
            "data": {
                "source": {"train": options.data},
                "max_length": options.max_length,
                "limit": {"train": options.groups},
            },
            "optim": {
                "global_batch_size": 32,
                "tokens_per_microbatch": options.tokens,
                "optimizer": options.optimizer,
                "max_steps": options.steps,
            },
            "evaluation": {"every": 0, "select": "last", "splits": []},
            "run": {"folder": folder, "save_every": 0},
        }
    )


def command(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`rmtrain train` on one process."""
    line = [sys.executable, "-m", "rmtrain", "train", str(recipe), "--num-processes", "1", "--json", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def predicted(answer: dict[str, Any]) -> int | None:
    """Predicted peak of one process, in bytes."""
    memory = answer["memory"]
    rows = [row for row in memory["layouts"] if row["strategy"] == memory["strategy"]]
    return rows[0]["peak"] if rows else None


def measure(recipe: Path) -> dict[str, Any]:
    """Ask and train, with the overrides that the command itself suggests until it fits."""
    overrides: list[str] = []
    while True:
        asked = command(recipe, *overrides, "--dry-run")
        if not asked.returncode:
            answer = json.loads(asked.stdout)
            break
        offered = re.findall(r"^ +([a-z_]+\.[a-z_]+=\S+)", asked.stderr, re.MULTILINE)
        new = [override for override in offered if override not in overrides]
        if not new:
            return {"overrides": overrides, "refused": asked.stderr.strip()[-1000:]}
        overrides.append(new[0])
    trained = command(recipe, *overrides)
    if trained.returncode:
        return {"overrides": overrides, "predicted": predicted(answer), "error": trained.stderr.strip()[-1000:]}
    result = json.loads(trained.stdout)
    peak, expected = result["peak_memory_bytes"], predicted(answer)
    return {
        "overrides": overrides,
        "tokens_a_microbatch": answer["memory"]["tokens"],
        "predicted": expected,
        "measured": peak,
        "measured_over_predicted": None if expected is None else peak / expected,
        "tokens_per_second": result["tokens_per_second"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train")
    parser.add_argument(
        "--free", type=float, nargs="+", default=[16], help="GiB that are left free, one after the other"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=["none", "nf4", "int8"], default="none")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=16384, help="a micro-batch")
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    for free in options.free:
        with tempfile.TemporaryDirectory() as folder, only_free(free):
            recipe = Path(folder) / "memory.yaml"
            recipe.write_text(recipe_text(options, folder))
            found.append({"free_gib": free, **measure(recipe)})
        row = found[-1]
        gib = {key: f"{row[key] / GIB:.2f} GiB" for key in ("predicted", "measured") if row.get(key)}
        print({**row, **gib}, flush=True)
        write_json(options.json, options=settings, machine=machine(), runs=found)


if __name__ == "__main__":
    main()
