"""Train the same pairs with TRL's stock RewardTrainer and with rmtrain, side by side: losses, tokens and time.

    python scripts/compare_trl.py --model models/smollm2-135m-instruct --pairs 32 --batch 8
    python scripts/compare_trl.py --data pairs.jsonl --max-length 512 --json compare.json

Both start from the same weights, score head and adapters, see the same pairs in the same order, and take the same
optimiser steps. TRL runs padded rows, as it comes; rmtrain packs, with each prompt once.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback
from trl import RewardConfig, RewardTrainer

from rmtrain.cli.app import quiet_libraries
from rmtrain.data.load import load_data
from rmtrain.data.prepare import ReadySplit, tokenize_splits
from rmtrain.data.render import Renderer, load_tokenizer
from rmtrain.display import Silent
from rmtrain.model.adapters import adapter_config
from rmtrain.model.batch import pack
from rmtrain.recipe.load import LoadedRecipe, parse_recipe_text
from rmtrain.training.prospect import make_plan
from rmtrain.training.train import build_model, train

RECIPE = """
model: {{name: {model}, dtype: {dtype}, packing: shared_prompt}}
lora: {{rank: 16, alpha: 32}}
data:
  source: {data}
  splits: {{train: train}}
  limit: {{train: {pairs}}}
  preferences: best_vs_worst
  max_length: {max_length}
optim:
  learning_rate: 5.0e-4
  global_batch_size: {batch}
  microbatch_size: {batch}
  tokens_per_microbatch: null
  epochs: {epochs}
evaluation: {{every: 0, select: last, splits: []}}
run: {{folder: {runs}}}
"""


class StepTimes(TrainerCallback):
    """Wall seconds and loss of each optimiser step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def ours(loaded: LoadedRecipe, splits: dict[str, ReadySplit], renderer: Renderer) -> dict[str, Any]:
    result = train(loaded, splits, renderer, Silent())
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    ends = [0.0, *(line["seconds"] for line in lines)]
    return {
        "losses": [line["loss"] for line in lines],
        "seconds": [end - start for start, end in itertools.pairwise(ends)],
        "tokens": result.tokens,
    }


def stock(loaded: LoadedRecipe, split: ReadySplit, renderer: Renderer, folder: Path) -> dict[str, Any]:
    recipe = loaded.recipe
    assert recipe.lora is not None
    mine = build_model(recipe, renderer.pad_id).module
    model = AutoModelForSequenceClassification.from_pretrained(
        recipe.model.name, num_labels=1, dtype=getattr(torch, recipe.model.dtype)
    )
    model.config.pad_token_id = renderer.pad_id
    model = get_peft_model(model, adapter_config(recipe.lora))
    weights = mine.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    order = [i for step in make_plan(recipe, split, "shared_prompt", 1).steps for part in step for i in part]
    rows: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
    for group in (split.tokens.group(i) for i in order):
        sequences = [[*group.prefix.tolist(), *suffix.tolist()] for suffix in group.suffixes]
        rows["chosen_ids"].append(sequences[group.preferences[0].better])
        rows["rejected_ids"].append(sequences[group.preferences[0].worse])
    optim, times = recipe.optim, StepTimes()
    cuda = torch.cuda.is_available()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(folder),
            per_device_train_batch_size=optim.global_batch_size,
            num_train_epochs=1,  # the order holds all epochs
            learning_rate=optim.learning_rate,
            lr_scheduler_type=optim.schedule,
            warmup_steps=math.ceil(optim.warmup_ratio * math.ceil(len(order) / optim.global_batch_size)),
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            train_sampling_strategy="sequential",
            max_length=None,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not cuda,
            bf16=recipe.model.dtype == "bfloat16",
            seed=recipe.run.seed,
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=renderer.tokenizer,
        callbacks=[times],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    batches = [
        pack([split.tokens.group(i) for i in order[start : start + optim.global_batch_size]], "none", renderer.pad_id)
        for start in range(0, len(order), optim.global_batch_size)
    ]
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    return {"losses": times.losses, "seconds": times.seconds, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        text = RECIPE.format(runs=folder, **vars(options))
        loaded = parse_recipe_text(text, "compare_trl.yaml")
        section = loaded.recipe.data
        data = load_data(section, loaded.recipe.run.seed)
        renderer = Renderer.for_tokenizer(load_tokenizer(options.model))
        splits = tokenize_splits(data, renderer, section.max_length, section.over_length, Silent())
        a = stock(loaded, splits["train"], renderer, Path(folder) / "stock")
        b = ours(loaded, splits, renderer)
    print("step   TRL loss      rmtrain loss  difference")
    for step, (x, y) in enumerate(zip(a["losses"], b["losses"], strict=True), start=1):
        print(f"{step:>4}   {x:.9f}   {y:.9f}   {y - x:+.1e}")
    print(f"tokens run: TRL {a['tokens']:,}, rmtrain {b['tokens']:,} ({a['tokens'] / b['tokens']:.2f} x)")
    slow, fast = (sorted(r["seconds"])[len(r["seconds"]) // 2] for r in (a, b))
    print(f"median step (n = {len(a['seconds'])}): TRL {slow:.2f} s, rmtrain {fast:.2f} s ({slow / fast:.2f} x)")
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "trl": a, "rmtrain": b}, default=str, indent=2))


if __name__ == "__main__":
    main()
