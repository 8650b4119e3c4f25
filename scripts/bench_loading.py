"""Seconds until a reward model is ready, and until two rows are scored: rmtrain's, beside transformers alone.

    python scripts/bench_loading.py --ckpt smollm2-rm --repeats 5

Each side starts a Python of its own and loads the same exported folder; sides take turns. `transformers` is model and
tokenizer by `from_pretrained`, in the folder's own precision, `serve` is ready once it answers `/health`. `two rows` is
a plain script that also renders two prompts with two completions each, scores them one by one and writes their rewards
as JSON; `score` is `rmtrain score` on the same rows. Printed are
seconds by the clock and of the processor, from the start of Python on; the latter do not count what else the machine
does. rmtrain's sides check the digests of the weights, as they do for a user.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
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
TWO_ROWS = (
    "import json, sys, torch\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
    "_, ckpt, source, target = sys.argv\n"
    "rows = [json.loads(line) for line in open(source)]\n"
    "tokenizer = AutoTokenizer.from_pretrained(ckpt)\n"
    "model = AutoModelForSequenceClassification.from_pretrained(ckpt, dtype='auto').eval()\n"
    "with torch.no_grad(), open(target, 'w') as out:\n"
    "    for row in rows:\n"
    "        row['rewards'] = []\n"
    "        for answer in row['completions']:\n"
    "            turns = [('user', row['prompt']), ('assistant', answer)]\n"
    "            messages = [{'role': role, 'content': text} for role, text in turns]\n"
    "            text = tokenizer.apply_chat_template(messages, tokenize=False)\n"
    "            ids = tokenizer(text, add_special_tokens=False, return_tensors='pt').input_ids\n"
    "            row['rewards'].append(model(input_ids=ids).logits.item())\n"
    "        out.write(json.dumps(row) + '\\n')\n"
)
ROWS = [
    {"prompt": "What is the capital of France?", "completions": ["Paris.", "I do not know."]},
    {"prompt": "Name a prime number above ten.", "completions": ["Twelve.", "Eleven is one."]},
]


def taken(*arguments: str) -> Result:
    """What a Python with these arguments takes to its end."""
    begin, line = time.perf_counter(), [sys.executable, *arguments]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"it ended with {process.returncode}; see the error of: {shlex.join(line)}")
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


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Result]]:
    """The runs of every side, in turns."""
    ckpt, rows, target = options.ckpt, str(folder / "rows.jsonl"), str(folder / "scored.jsonl")
    Path(rows).write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    sides = {
        "transformers": lambda: taken("-c", PLAIN, ckpt),
        "RewardFunction": lambda: taken("-c", FUNCTION, ckpt),
        "serve": lambda: served(ckpt),
        "two rows": lambda: taken("-c", TWO_ROWS, ckpt, rows, target),
        "score": lambda: taken("-m", "rmtrain", "score", rows, "--ckpt", ckpt, "--output", target, "--overwrite"),
    }
    runs: dict[str, list[Result]] = {name: [] for name in options.only or sides}
    for turn in range(options.repeats + 1):
        for name, found in runs.items():
            result = sides[name]()
            if turn:  # the first turn reads the files from disk
                found.append(result)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="exported folder, which transformers reads too")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", help="names of the sides, and those that they are held against")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = measure(options, Path(folder))
    print(machine())
    summary: dict[str, Any] = {}
    for name, of_side in runs.items():
        for unit, told in (("seconds", "s by the clock"), ("cpu_seconds", "s of the processor")):
            values = [run[unit] for run in of_side]
            beside = "two rows" if name in ("score", "two rows") else "transformers"
            against = ratios(values, [run[unit] for run in runs[beside]])
            summary[f"{name} {unit}"] = {"taken": spread(values), "times": against}
            print(f"{name:<14} {shown(spread(values))} {told}, {shown(against)} times `{beside}`", flush=True)
    write_json(options.json, machine=machine(), options=vars(options), summary=summary, runs=runs)


if __name__ == "__main__":
    main()
