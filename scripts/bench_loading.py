"""Seconds until a reward model is ready, two rows are scored, or a first step is trained, beside plain scripts.

    python scripts/bench_loading.py --ckpt smollm2-rm --repeats 5
    python scripts/bench_loading.py --base models/smollm2-135m-instruct --repeats 5

Each side starts a Python of its own and loads the same folder; sides take turns. With `--ckpt`, an exported folder,
`transformers` is model and tokenizer by `from_pretrained`, in the folder's own precision, and `serve` is ready once it
answers `/health`. `two rows` is a plain script that also renders two prompts with two completions each, scores them one
by one and writes their rewards as JSON; `score` is `rmtrain score` on the same rows. With `--base`, `TRL` is a plain
script that tokenises 64 pairs and trains adapters of rank 16 on 8 of them with TRL's RewardTrainer, in float32, `loop`
one that does the same with transformers and PEFT alone, and `train` is `rmtrain train` to the line of its first step,
with an empty cache. Printed are seconds by the clock and of the processor, from the start of Python on; the latter do
not count what else the machine does. rmtrain's sides check the digests of the weights, as they do for a user.
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
from collections.abc import Callable
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
TRL = (
    "import json, sys\nfrom datasets import Dataset\nfrom peft import LoraConfig\n"
    "from transformers import TrainerCallback\nfrom trl import RewardConfig, RewardTrainer\n"
    "_, base, source, folder = sys.argv\n"
    "class Told(TrainerCallback):\n"
    "    def on_step_end(self, *args, **kwargs):\n"
    "        print('step 1/1', flush=True)\n"
    "settings = RewardConfig(folder, per_device_train_batch_size=8, max_steps=1, learning_rate=1e-4, bf16=False,\n"
    "    gradient_checkpointing=False, save_strategy='no', report_to='none', model_init_kwargs={'dtype': 'float32'})\n"
    "RewardTrainer(\n"
    "    base, settings, train_dataset=Dataset.from_list([json.loads(line) for line in open(source)]),\n"
    "    peft_config=LoraConfig(task_type='SEQ_CLS', r=16, lora_alpha=32, target_modules='all-linear'),\n"
    "    callbacks=[Told()],\n"
    ").train()\n"
)
LOOP = (
    "import json, sys, torch\nfrom peft import LoraConfig, get_peft_model\n"
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
    "_, base, source = sys.argv\n"
    "tokenizer = AutoTokenizer.from_pretrained(base)\n"
    "model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)\n"
    "model.config.pad_token_id = tokenizer.pad_token_id\n"
    "config = LoraConfig(task_type='SEQ_CLS', r=16, lora_alpha=32, target_modules='all-linear')\n"
    "model = get_peft_model(model, config).train()\n"
    "pairs = [json.loads(line) for line in open(source)]\n"
    "texts = [pair['prompt'] + pair[side] for pair in pairs for side in ('chosen', 'rejected')]\n"
    "ids = [tokenizer.apply_chat_template(text, return_dict=True)['input_ids'] for text in texts]\n"
    "batch = tokenizer.pad({'input_ids': ids[:16]}, return_tensors='pt')\n"
    "rewards = model(**batch).logits.view(-1, 2)\n"
    "(-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1])).mean().backward()\n"
    "trained = [parameter for parameter in model.parameters() if parameter.requires_grad]\n"
    "torch.nn.utils.clip_grad_norm_(trained, 1.0)\n"
    "torch.optim.AdamW(trained, lr=1e-4).step()\n"
    "print('step 1/1', flush=True)\n"
)
RECIPE = """
model: {{name: {base}, dtype: float32}}
lora: {{rank: 16, alpha: 32}}
data: {{source: {rows}, splits: {{train: train}}, max_length: 1024}}
optim: {{learning_rate: 1.0e-4, global_batch_size: 8, max_steps: 1}}
evaluation: {{every: 0, select: last, splits: []}}
run: {{folder: {folder}}}
"""
ROWS = [
    {"prompt": "What is the capital of France?", "completions": ["Paris.", "I do not know."]},
    {"prompt": "Name a prime number above ten.", "completions": ["Twelve.", "Eleven is one."]},
]
BESIDE = {  # by default `transformers`
    **{"score": ["two rows"], "two rows": ["two rows"]},
    **{"train": ["TRL", "loop"], "TRL": ["loop"], "loop": ["loop"]},
}
Side = Callable[[], Result]


def taken(*arguments: str) -> Result:
    """What a Python with these arguments takes to its end."""
    begin, line = time.perf_counter(), [sys.executable, *arguments]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"it ended with {process.returncode}; see the error of: {shlex.join(line)}")
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": used.ru_utime + used.ru_stime}


def first_step(folder: Path, *arguments: str) -> Result:
    """What a Python with these arguments takes until it tells of its first step."""
    own = Path(tempfile.mkdtemp(dir=folder))
    environment = {**os.environ, "RMTRAIN_CACHE": str(own), "HF_HUB_OFFLINE": "1"}
    begin, line, told = time.perf_counter(), [sys.executable, *arguments], []
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        for text in process.stdout or ():
            told.append(text)
            if "step 1/1" in text:
                found = {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds(process.pid)}
                process.kill()
                return found
    raise SystemExit("no step was taken:\n" + "".join(told))


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


def message(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def training_sides(base: str, folder: Path) -> dict[str, Side]:
    """Until the first step of training a base."""
    rows, recipe = folder / "pairs.jsonl", folder / "recipe.yaml"
    pairs = [
        {
            "prompt": message("user", f"What is {i} plus {i + 1}? Explain it in a sentence."),
            "chosen": message("assistant", f"It is {2 * i + 1}: counting {i + 1} on from {i} ends there."),
            "rejected": message("assistant", f"It is {2 * i}, I think, but I have not counted."),
        }
        for i in range(64)
    ]
    rows.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    recipe.write_text(RECIPE.format(base=base, rows=rows, folder=folder / "runs"))
    return {
        "TRL": lambda: first_step(folder, "-c", TRL, base, str(rows), str(folder / "trl")),
        "loop": lambda: first_step(folder, "-c", LOOP, base, str(rows)),
        "train": lambda: first_step(folder, "-m", "rmtrain", "train", str(recipe)),
    }


def scoring_sides(ckpt: str, folder: Path) -> dict[str, Side]:
    """Until a reward model is ready, or has scored two rows."""
    rows, target = str(folder / "rows.jsonl"), str(folder / "scored.jsonl")
    Path(rows).write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return {
        "transformers": lambda: taken("-c", PLAIN, ckpt),
        "RewardFunction": lambda: taken("-c", FUNCTION, ckpt),
        "serve": lambda: served(ckpt),
        "two rows": lambda: taken("-c", TWO_ROWS, ckpt, rows, target),
        "score": lambda: taken("-m", "rmtrain", "score", rows, "--ckpt", ckpt, "--output", target, "--overwrite"),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[Result]]:
    """The runs of every side, in turns."""
    sides = scoring_sides(options.ckpt, folder) if options.ckpt else {}
    sides |= training_sides(options.base, folder) if options.base else {}
    runs: dict[str, list[Result]] = {name: [] for name in options.only or sides}
    for turn in range(options.repeats + 1):
        for name, found in runs.items():
            result = sides[name]()
            if turn:  # the first turn reads the files from disk
                found.append(result)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="exported folder, which transformers reads too")
    parser.add_argument("--base", help="folder of a model to train")
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
            found: dict[str, Any] = {"taken": spread(values)}
            for beside in BESIDE.get(name, ["transformers"]):
                found[f"times {beside}"] = against = ratios(values, [run[unit] for run in runs[beside]])
                print(f"{name:<14} {shown(found['taken'])} {told}, {shown(against)} times `{beside}`", flush=True)
            summary[f"{name} {unit}"] = found
    write_json(options.json, machine=machine(), options=vars(options), summary=summary, runs=runs)


if __name__ == "__main__":
    main()
