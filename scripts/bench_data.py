"""Speed and memory of `rmtrain data` over many rows: from the source, and again from the cache.

    python scripts/bench_data.py --model models/smollm2-135m-instruct --rows 50000 150000
    python scripts/bench_data.py --model models/smollm2-135m-instruct --shape groups --rows 16000 64000

Rows of random words are written as a Parquet file or as lines of JSON: pairs of a short prompt and two short answers,
or groups of four answers as long as UltraFeedback's, with scores. One row in 500 repeats the row before it, half of
them with its answers the other way round. Each command runs in a process of its own, first without a cache and then
with what the first one left in it. Printed are rows a second, seconds of processor time, and the peak of the memory
that the process and its children hold together, sampled twice a second from /proc: pages that they share count once,
and those of mapped files, which the system can drop, do not count.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sides import machine, write_json

RECIPE = """
model: {{name: {model}}}
data: {{source: {{train: {source}}}, holdout: {{validation: 500, test: 500}}, max_length: 2048}}
"""


COMMON = """
the of and to in is that for it was on with as be by at from this have not are but had his they which one you
were all her she there would their we him been has when who will no more if out so what up its about into than
them can only other new some could time these two may first then do any like my now over such our man me even
most made after also did many before must through years where much your way well down should because each just
those people how too little state good very make world still see own work long here get both between life
being under three never know same last another while us off might great year come since against go came right
used take house use during without again place old until water number answer question because explain example
history science music energy country system result reason simple careful compare measure several different
important information
"""


class Shape(NamedTuple):
    """How many words a row's texts have."""

    prompt: int
    answer: int
    answers: int


SHAPES = {"pairs": Shape(10, 12, 2), "groups": Shape(170, 250, 4)}


class Figures(NamedTuple):
    """What a command took."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def rows_of(shape: Shape, count: int) -> Iterator[dict[str, Any]]:
    """Rows of the `pair` schema, or of `completions` with scores."""
    draw, words = random.Random(0), COMMON.split()

    def text(mean: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(mean // 2, mean * 3 // 2)))

    last: list[str] = []
    for number in range(count):
        if number % 500 != 499:
            texts = [text(shape.prompt), *(text(shape.answer) for _ in range(shape.answers))]
        else:
            texts = [last[0], *(reversed(last[1:]) if number % 1000 == 999 else last[1:])]
        if shape.answers == 2:
            yield dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
        else:
            scores = [float(draw.randint(1, 10)) for _ in texts[1:]]
            yield {"prompt": texts[0], "completions": texts[1:], "scores": scores}
        last = texts


def write_rows(path: Path, shape: Shape, count: int) -> None:
    """Write rows as Parquet, or else as lines of JSON."""
    rows = rows_of(shape, count)
    if path.suffix != ".parquet":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = next(rows)
    table = pa.Table.from_pylist([first])
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        while part := [row for row, _ in zip(rows, range(10_000), strict=False)]:
            writer.write_table(pa.Table.from_pylist(part, table.schema))


def held_bytes(process: int) -> int:
    """Anonymous and shared memory of a process and of all its children, in bytes; 0 once it is gone."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(held_bytes(int(child)) for child in (task / "children").read_text().split())
    except OSError:
        return total
    return total


def run(recipe: Path, cache: Path) -> tuple[Figures, dict[str, Any]]:
    """`rmtrain data`: its figures, and its report."""
    before, begin, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    command = [sys.executable, "-m", "rmtrain", "data", str(recipe), "--json"]
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.Popen(command, stdout=output, env=os.environ | {"RMTRAIN_CACHE": str(cache)})
        while done.poll() is None:
            peak = max(peak, held_bytes(done.pid))
            time.sleep(0.5)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(done.returncode)
        output.seek(0)
        report = json.load(output)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Figures(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak), report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--shape", choices=SHAPES, default="pairs")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 150_000])
    parser.add_argument("--format", choices=("parquet", "jsonl"), default="parquet")
    parser.add_argument("--keep", type=Path, help="folder that keeps rows and caches, and whose rows are used again")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine(), flush=True)
    found = []
    for count in options.rows:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.keep or Path(temporary)
            rows = folder / f"{options.shape}-{count}.{options.format}"
            if not rows.exists():
                write_rows(rows, SHAPES[options.shape], count)
            recipe = Path(temporary) / "bench.yaml"
            recipe.write_text(RECIPE.format(model=options.model, source=rows))
            for start in ("first", "second"):
                load = os.getloadavg()[0]
                figures, report = run(recipe, Path(temporary) / "cache")
                train = report["splits"]["train"]
                found.append(
                    {"rows": count, "start": start, "load": load, **figures._asdict(), "lengths": train["lengths"]}
                )
                print(
                    f"{count:>9,} {options.shape} ({options.format}), {start} start: {figures.seconds:,.1f} s, "
                    f"{count / figures.seconds:,.0f} rows/s; processor {figures.processor_seconds:,.1f} s; "
                    f"peak {figures.peak_bytes / 2**30:.2f} GiB; load before {load:.1f}; "
                    f"{train['lengths']['mean']:.0f} tokens a sequence, {train['rows']['kept']:,} kept",
                    flush=True,
                )
    write_json(options.json, machine=machine(), shape=options.shape, runs=found)


if __name__ == "__main__":
    main()
