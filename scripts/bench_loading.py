"""Seconds until a reward model is ready: in `RewardFunction`, in `rmtrain serve`, and in transformers alone.

    python scripts/bench_loading.py --ckpt smollm2-rm --repeats 5

Each side starts a Python of its own and loads the same exported folder; sides take turns. `transformers` is model and
tokenizer by `from_pretrained`, in the folder's own precision, `serve` is ready once it answers `/health`. Printed are
seconds by the clock and of the processor, from the start of Python on; the latter do not count what else the machine
does. rmtrain's sides check the digests of the weights, as they do for a user.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench_serving import start
from sides import Result, cpu_seconds, machine, ratios, shown, spread, write_json

FUNCTION = "import sys\nfrom rmtrain import RewardFunction\nRewardFunction(sys.argv[1], device='cpu')\n"
PLAIN = (
    "import sys\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
    "AutoTokenizer.from_pretrained(sys.argv[1])\n"
    "AutoModelForSequenceClassification.from_pretrained(sys.argv[1], dtype='auto').eval()\n"
)


def loaded(code: str, ckpt: str) -> Result:
    """What a process takes to its end."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, ckpt], stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"it could not be loaded; see the error of: {sys.executable} -c {code!r} {ckpt}")
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": used.ru_utime + used.ru_stime}


def served(ckpt: str) -> Result:
    """What a server takes until it answers."""
    begin = time.perf_counter()
    server, address = start({"ckpt": ckpt}, "--device", "cpu")
    with server:
        try:
            with urllib.request.urlopen(f"{address}/health") as answer:
                assert json.load(answer)["status"] == "ok"
            return {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds(server.pid)}
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="exported folder, which transformers reads too")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sides = {
        "transformers": lambda: loaded(PLAIN, options.ckpt),
        "RewardFunction": lambda: loaded(FUNCTION, options.ckpt),
        "serve": lambda: served(options.ckpt),
    }
    runs: dict[str, list[Result]] = {name: [] for name in sides}
    for turn in range(options.repeats + 1):
        for name, side in sides.items():
            found = side()
            if turn:  # the first turn reads the files from disk
                runs[name].append(found)
    print(machine())
    summary: dict[str, Any] = {}
    for name, of_side in runs.items():
        for unit, told in (("seconds", "s by the clock"), ("cpu_seconds", "s of the processor")):
            values = [run[unit] for run in of_side]
            against = ratios(values, [run[unit] for run in runs["transformers"]])
            summary[f"{name} {unit}"] = {"taken": spread(values), "times": against}
            print(f"{name:<14} {shown(spread(values))} {told}, {shown(against)} times transformers'", flush=True)
    write_json(options.json, machine=machine(), options=vars(options), summary=summary, runs=runs)


if __name__ == "__main__":
    main()
