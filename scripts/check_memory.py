"""Hold the predicted peak memory of training on a CPU against the resident memory that the process reached.

    python scripts/check_memory.py --model models/smollm2-135m-instruct --data pairs.jsonl --json memory.json

Each case is a few steps of `rmtrain train` in a process of its own, after `train --dry-run` has predicted its peak.
Sequences end at 512 tokens, so no pair has more than 1,023 and the limit on tokens decides the largest micro-batch. A
step has one pair for every 512 tokens of a micro-batch, which fills one and begins a second.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench_memory import GIB, command, predicted
from sides import machine, write_json


class Case(NamedTuple):
    """What differs between the runs."""

    trains: str  # LoRA or all weights
    tokens: int  # per micro-batch
    recomputed: str  # optim.gradient_checkpointing
    compiled: bool = False  # model.compile

    def recipe(self, options: argparse.Namespace, folder: str) -> str:
        """The recipe of the run, which scores nothing and writes no checkpoint on its way."""
        values: dict[str, Any] = {
            "model": {"name": options.model, "dtype": "float32", "compile": self.compiled},
            "data": {"source": {"train": options.data}, "max_length": 512, "limit": {"train": options.groups}},
            "optim": {
                "global_batch_size": self.tokens // 512,
                "tokens_per_microbatch": self.tokens,
                "gradient_checkpointing": self.recomputed,
                "max_steps": options.steps,
            },
            "evaluation": {"every": 0, "select": "last", "splits": []},
            "run": {"folder": folder, "save_every": 0},
        }
        return json.dumps(values | ({"lora": {"rank": 32, "alpha": 64}} if self.trains == "LoRA" else {}))


CASES = [
    *(Case("LoRA", tokens, kind) for tokens in (1024, 2048, 4096) for kind in ("none", "selective", "full")),
    *(Case("all weights", tokens, kind) for tokens in (1024, 2048) for kind in ("none", "full")),
    *(Case("LoRA", tokens, "none", compiled=True) for tokens in (2048, 4096)),
]


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The predicted and the measured peak of one case, in bytes, and the tokens of its largest micro-batch."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "memory.yaml"
        recipe.write_text(case.recipe(options, folder), encoding="utf-8")
        asked, trained = command(recipe, "--dry-run"), command(recipe)
    if asked.returncode or trained.returncode:
        raise SystemExit((asked.stderr + trained.stderr)[-2000:])
    answer = json.loads(asked.stdout)
    return {
        **case._asdict(),
        "largest": answer["memory"]["tokens"],
        "predicted": predicted(answer),
        "measured": json.loads(trained.stdout)["peak_memory_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train")
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the cases, from 0")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| trained | tokens per micro-batch | recomputed | compiled | predicted | measured | measured / predicted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for case in CASES if options.only is None else [CASES[number] for number in options.only]:
        rows.append(row := measure(case, options))
        peaks = f"{row['predicted'] / GIB:.2f} GiB | {row['measured'] / GIB:.2f} GiB"
        ratio = row["measured"] / row["predicted"]
        how = f"{case.recomputed} | {'yes' if case.compiled else 'no'}"
        print(f"| {case.trains} | {row['largest']:,} | {how} | {peaks} | {ratio:.2f} |", flush=True)
        write_json(options.json, machine=machine(), steps=options.steps, groups=options.groups, runs=rows)


if __name__ == "__main__":
    main()
