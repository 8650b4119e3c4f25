"""Memory and speed of `rmtrain score` and `select` over many short rows, in processes of their own.

    python scripts/bench_streams.py --ckpt runs/quickstart-… --rows 1000 200000

Rows of a prompt and two answers of a few words each are written, scored, and chosen among by their rewards; printed
are the peak of the process's memory, and rows a second, start included. With few rows, the peak is that of the
libraries and the model; what many rows take beside it is the difference.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sides import machine, write_json

WORDS = [f"word{number}" for number in range(100)]


def write_rows(path: Path, count: int) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            texts = [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(3)]
            file.write(json.dumps({"id": number, "prompt": texts[0], "completions": texts[1:]}) + "\n")


def run(*arguments: object) -> dict[str, float]:
    """Seconds of a command, and the peak of its memory in MiB."""
    code = (
        "import resource, sys\nfrom rmtrain.cli.app import run\ncode = run(sys.argv[1:])\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\nsys.exit(code)"
    )
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    kib = int(done.stdout.rsplit("peak ", 1)[1])
    return {"seconds": time.perf_counter() - begin, "peak_mib": kib / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="run folder or checkpoint folder")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 200_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine())
    found = []
    for count in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            rows, scored = Path(folder) / "rows.jsonl", Path(folder) / "scored.jsonl"
            write_rows(rows, count)
            commands = {
                "score": ["score", rows, "--ckpt", options.ckpt, "--output", scored, "--num-processes", 1],
                "select": ["select", scored, "--mode", "pairs", "--output", Path(folder) / "pairs.jsonl"],
            }
            for name, command in commands.items():
                figures = run(*command)
                found.append({"command": name, "rows": count, **figures})
                speed = f"{count / figures['seconds']:,.0f} rows/s"
                print(f"{name:<7} {count:>9,} rows: peak {figures['peak_mib']:,.0f} MiB, {speed}", flush=True)
            with scored.open() as file:
                assert sum(1 for _ in file) == count
    write_json(options.json, machine=machine(), runs=found)


if __name__ == "__main__":
    main()
