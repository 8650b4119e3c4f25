"""Memory and speed of `rmtrain score` and `select` over many short rows, in processes of their own.

    python scripts/bench_streams.py --ckpt runs/quickstart-… --rows 1000 200000
    python scripts/bench_streams.py --ckpt runs/quickstart-… --rows 200000 --shards 4 --format parquet

Rows of a prompt and two answers of a few words each are written, scored, and chosen among by their rewards; printed
are the peak of the process's memory, and its seconds, start included, by the clock and of the processor. With few
rows, the peak is that of the libraries and the model; what many rows take beside it is the difference. `--only select`
gives the rows random rewards in place of scoring them.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sides import machine, write_json

WORDS = [f"word{number}" for number in range(100)]
ROW_GROUP = 10_000  # rows, of a Parquet file


def rows(count: int, rewards: bool) -> Iterator[dict[str, Any]]:
    rng = random.Random(0)
    for number in range(count):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(3)]
        given = {"rewards": [rng.gauss(0, 1), rng.gauss(0, 1)]} if rewards else {}
        yield {"id": number, "prompt": texts[0], "completions": texts[1:], **given}


def write_rows(path: Path, count: int, shards: int, form: str, rewards: bool = False) -> Path:
    """The rows as one file, or as a folder of shards; returns it."""
    every = rows(count, rewards)
    if shards > 1:
        path.mkdir()
    else:
        path = path.with_name(f"{path.name}.{form}")
    for shard in range(shards):
        file = path / f"part-{shard:05}.{form}" if shards > 1 else path
        write_file(file, itertools.islice(every, count // shards + (shard < count % shards)))
    return path


def write_file(path: Path, part: Iterator[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in part)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [("id", pa.int64()), ("prompt", pa.string()), ("completions", pa.list_(pa.string()))]
    with pq.ParquetWriter(path, pa.schema(columns)) as writer:
        while group := list(itertools.islice(part, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, pa.schema(columns)))


def count_rows(path: Path) -> int:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if files[0].suffix == ".jsonl":
        return sum(1 for file in files for _ in file.open())
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(file).metadata.num_rows for file in files)


def run(*arguments: object) -> dict[str, float]:
    """Seconds of a command, by the clock and of the processor, and the peak of its memory in MiB."""
    code = (
        "import resource, sys\nfrom rmtrain.cli.app import run\ncode = run(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('used', used.ru_maxrss, used.ru_utime + used.ru_stime)\nsys.exit(code)"
    )
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    kib, cpu = map(float, done.stdout.rsplit("used ", 1)[1].split())
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu, "peak_mib": kib / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="run folder or checkpoint folder; not needed with --only select")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 200_000])
    parser.add_argument("--shards", type=int, default=1, help="files, of a folder, that the rows are in")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--only", choices=("score", "select"), help="one of the two commands")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine())
    found = []
    for count in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            given = write_rows(Path(folder) / "rows", count, options.shards, options.format, options.only == "select")
            scored = given.with_name(f"scored{given.suffix}")
            answers = given if options.only == "select" else scored
            commands = {
                "score": ["score", given, "--ckpt", options.ckpt, "--output", scored, "--num-processes", 1],
                "select": ["select", answers, "--mode", "pairs", "--output", Path(folder) / "pairs.jsonl"],
            }
            for name, command in commands.items():
                if options.only in (None, name):
                    figures = run(*command)
                    found.append({"command": name, "rows": count, **figures})
                    took = f"{figures['seconds']:,.0f} s, {figures['cpu_seconds']:,.0f} s of the processor"
                    print(f"{name:<7} {count:>9,} rows: peak {figures['peak_mib']:,.0f} MiB, {took}", flush=True)
            assert count_rows(answers) == count
    write_json(options.json, machine=machine(), options=vars(options), runs=found)


if __name__ == "__main__":
    main()
