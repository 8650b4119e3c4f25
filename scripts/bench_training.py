"""Train the same pairs with rmtrain, with rmtrain running every prompt twice, and with TRL's stock RewardTrainer.

    python scripts/bench_training.py --model models/smollm2-135m-instruct --data pairs.jsonl --max-length 768
    python scripts/bench_training.py --model ... --data pairs.jsonl --ways 4 --groups 4     # four answers a prompt
    python scripts/bench_training.py --model ... --data pairs.jsonl --max-length 1024 --recompute

All sides start from the same weights, score head and adapters, see the same preferences in the same order, and take the
same optimiser steps; all recompute activations in the backward pass, as TRL does by default, or none does. TRL gets
padded rows, 8 pairs at a time; with four answers a prompt it gets the six pairs that they make, and accumulates. Each
run is a fresh process, and sides take turns. The first steps of a run are left out of the times, not out of the losses.
"""

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sides import Result, machine, peak_bytes, ratios, shown, spread, synchronize, take_turns, write_json

RECIPE = """
model: {{name: {model}, dtype: {dtype}, packing: {packing}, compile: {compile}}}
lora: {{rank: {rank}, alpha: 32, dropout: {dropout}}}
data:
  source: {data}
  splits: {{train: train}}
  limit: {{train: {rows}}}
  max_length: {max_length}
  over_length: {over_length}
  preferences: all
  row_schema: completions
optim:
  learning_rate: 1.0e-4
  global_batch_size: {groups}
  microbatch_size: {groups}
  tokens_per_microbatch: null
  gradient_checkpointing: {checkpointing}
  max_steps: {steps}
evaluation: {{every: 0, select: last, splits: []}}
run: {{folder: {folder}, save_every: 0}}
"""
PAIRS_AT_ONCE = 8  # of TRL


def prepare(settings: dict[str, Any], packing: str) -> Any:
    """The recipe, its tokenised split, and the rendering contract."""
    from rmtrain.cli.app import quiet_libraries
    from rmtrain.data.load import load_data
    from rmtrain.data.prepare import tokenize_splits
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenize import Tokenization
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.display import Silent
    from rmtrain.recipe.load import parse_recipe_text

    quiet_libraries()
    rows = settings["groups"] * settings["steps"]
    recomputed = settings.get("checkpointing", "full" if settings["recompute"] else "none")
    defaults = {"dropout": 0.0, "rows": rows, "packing": packing, "checkpointing": recomputed, "compile": "false"}
    text = RECIPE.format(**{**defaults, **settings})
    loaded = parse_recipe_text(text, "bench_training.yaml")
    section = loaded.recipe.data
    renderer = Renderer.for_tokenizer(load_tokenizer(settings["model"]))
    data = load_data(section, loaded.recipe.run.seed)
    splits = tokenize_splits(data, Tokenization(renderer, section.max_length, section.over_length), Silent())
    return loaded, splits, renderer


def train_packed(settings: dict[str, Any], packing: str) -> Result:
    import torch

    from rmtrain.display import Silent
    from rmtrain.training import trainer
    from rmtrain.training.train import train

    loaded, splits, renderer = prepare(settings, packing)
    rate = trainer.measure_matrix_rate
    if not torch.cuda.is_available():  # rmtrain itself measures GPUs alone, to start sooner on a CPU
        rate = partial(cpu_matrix_rate, settings["model"])
    with patch.object(trainer, "measure_matrix_rate", rate):
        result = train(loaded, splits, renderer, Silent())
    lines = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    ends = [0.0, *(line["seconds"] for line in lines)]
    return {
        "losses": [line["loss"] for line in lines],
        "seconds": [end - start for start, end in itertools.pairwise(ends)],
        "waiting_for_data": [line["waiting_for_data"] for line in lines],
        "matrix_rate_used": [line["matrix_rate_used"] for line in lines if "matrix_rate_used" in line],
        "tokens": result.tokens,
        "pairs": sum(len(splits["train"].tokens.group(i).preferences) for i in range(len(splits["train"].tokens))),
        "peak_bytes": peak_bytes(),
    }


def cpu_matrix_rate(model: str, device: Any, dtype: Any) -> float:
    """Operations a second of the product of 2,048 tokens with the model's widest weight, the median of several."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    x, weight = (torch.ones(n, config.hidden_size, dtype=dtype) for n in (2048, config.intermediate_size))
    times = []
    for _ in range(20):
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - began)
    return 2 * x.numel() * len(weight) / statistics.median(times[5:])  # the first warm up


def shared_prompt(settings: dict[str, Any]) -> Result:
    return train_packed(settings, "shared_prompt")


def prompt_twice(settings: dict[str, Any]) -> Result:
    return train_packed(settings, "padding_free")


def compiled(settings: dict[str, Any]) -> Result:
    """Each prompt once, with model.compile; the first step compiles, which --warmup 2 leaves out of the times."""
    return train_packed({**settings, "compile": "true"}, "shared_prompt")


def liger(settings: dict[str, Any]) -> Result:
    """Each prompt once, with Liger's norms, rotations and gated products, which need a GPU; its losses stay unused."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    keep = {"fused_linear_cross_entropy": False, "cross_entropy": False}
    return train_changed(settings, lambda base: _apply_liger_kernel_to_instance(model=base, **keep))


def train_changed(settings: dict[str, Any], change: Callable[[Any], Any]) -> Result:
    """Train as rmtrain does, with the base model changed once its adapters are there."""
    from rmtrain.training import train as training

    build = training.build_model

    def build_changed(*args: Any) -> Any:
        model = build(*args)
        change(model.module.get_base_model())
        return model

    training.build_model = build_changed  # in this process, which is the side's own
    return train_packed(settings, "shared_prompt")


def dropout(settings: dict[str, Any]) -> Result:
    """Each prompt once, with a dropout of 0.05 on the adapters' input; its losses differ."""
    return train_packed({**settings, "dropout": 0.05}, "shared_prompt")


def selective(settings: dict[str, Any]) -> Result:
    """Each prompt once; all but matrix products and attention is computed again in the backward pass."""
    return train_packed({**settings, "checkpointing": "selective"}, "shared_prompt")


def full(settings: dict[str, Any]) -> Result:
    """Each prompt once; everything but each layer's input is computed again in the backward pass."""
    return train_packed({**settings, "checkpointing": "full"}, "shared_prompt")


def stock_trl(settings: dict[str, Any]) -> Result:
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    from rmtrain.model.adapters import adapter_config
    from rmtrain.training.build import make_plan
    from rmtrain.training.train import build_model

    class StepTimes(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.losses: list[float] = []
            self.seconds: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            synchronize()
            self.seconds.append(time.perf_counter() - self.start)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    loaded, splits, renderer = prepare(settings, "none")
    recipe, split = loaded.recipe, splits["train"]
    mine = build_model(recipe, renderer.pad_id).module
    model = AutoModelForSequenceClassification.from_pretrained(
        recipe.model.name, num_labels=1, dtype=getattr(torch, recipe.model.dtype)
    )
    model.config.pad_token_id = renderer.pad_id
    model = get_peft_model(model, adapter_config(recipe.lora))
    weights = mine.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    del mine, weights
    order = [i for step in make_plan(recipe, split, "shared_prompt", 1).steps for part in step for i in part]
    rows: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
    for group in (split.tokens.group(i) for i in order):
        sequences = [[*group.prefix.tolist(), *suffix.tolist()] for suffix in group.spread(group.suffixes)]
        rows["chosen_ids"] += [sequences[preference.better] for preference in group.preferences]
        rows["rejected_ids"] += [sequences[preference.worse] for preference in group.preferences]
    pairs, optim = len(rows["chosen_ids"]), recipe.optim
    accumulation, rest = divmod(pairs, settings["steps"] * PAIRS_AT_ONCE)
    if rest:
        raise SystemExit(
            f"{pairs} pairs in {settings['steps']} steps are no whole number of batches of {PAIRS_AT_ONCE}"
        )
    cuda, times = torch.cuda.is_available(), StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=PAIRS_AT_ONCE,
                gradient_accumulation_steps=accumulation,
                num_train_epochs=1,
                learning_rate=optim.learning_rate,
                lr_scheduler_type=optim.schedule,
                warmup_steps=math.ceil(optim.warmup_ratio * settings["steps"]),
                weight_decay=optim.weight_decay,
                max_grad_norm=optim.max_grad_norm,
                train_sampling_strategy="sequential",
                max_length=None,
                pad_token=renderer.tokenizer.convert_ids_to_tokens(renderer.pad_id),  # not EOS, where rewards are read
                gradient_checkpointing=settings["recompute"],
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
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    both = list(zip(rows["chosen_ids"], rows["rejected_ids"], strict=True))
    batches = [both[start : start + PAIRS_AT_ONCE] for start in range(0, pairs, PAIRS_AT_ONCE)]
    tokens = sum(2 * len(batch) * max(len(row) for pair in batch for row in pair) for batch in batches)
    return {
        "losses": times.losses,
        "seconds": times.seconds,
        "tokens": tokens,
        "pairs": pairs,
        "peak_bytes": peak_bytes(),
    }


def write_groups(options: argparse.Namespace, path: Path) -> int:
    """Rows with as many completions as asked for, the whole of whose sequences fit `--max-length`; returns how many.

    Where the source holds pairs and more ways are asked for, the completions of the next rows stand in: that makes
    groups of real lengths, and speed depends on nothing else.
    """
    from rmtrain.data.load import load_data
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.recipe.load import parse_recipe_text

    text = "model: {name: x}\ndata: {source: %s, splits: {train: train}, preferences: best_vs_worst}\n"
    recipe = parse_recipe_text(text % json.dumps(options.data), "rows.yaml").recipe
    groups = load_data(recipe.data, recipe.run.seed, ["train"]).splits["train"].groups
    renderer, wanted, written = Renderer.for_tokenizer(load_tokenizer(options.model)), options.groups * options.steps, 0
    with open(path, "w", encoding="utf-8") as stream:
        for place, group in enumerate(groups):
            texts = [completion[-1].content for completion in group.completions]
            for other in itertools.islice(itertools.cycle(groups), place + 1, place + len(groups)):
                if len(texts) >= options.ways:
                    break
                texts += [c[-1].content for c in other.completions if c[-1].content not in texts]
            texts = texts[: options.ways]
            longest = max(len(renderer.tokenizer(t)["input_ids"]) for t in texts)
            prompt = len(renderer.tokenizer("\n".join(message.content for message in group.prompt))["input_ids"])
            if prompt + longest + 64 > options.max_length:  # with room for the template
                continue
            messages = [message._asdict() for message in group.prompt]
            scores = list(range(len(texts), 0, -1))
            stream.write(json.dumps({"prompt": messages, "completions": texts, "scores": scores}) + "\n")
            written += 1
            if written == wanted:
                return written
    raise SystemExit(
        f"{options.data} has {written} rows of at most {options.max_length} tokens, and {wanted} are needed"
    )


SIDES = {
    "rmtrain": shared_prompt,
    "prompt twice": prompt_twice,
    "TRL": stock_trl,
    "compiled": compiled,
    "liger": liger,
    "dropout": dropout,
    "selective": selective,
    "full": full,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train")
    parser.add_argument("--ways", type=int, default=2, help="completions of a prompt")
    parser.add_argument("--groups", type=int, default=8, help="prompts an optimiser step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1, help="of them, left out of the times")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--max-length", type=int, default=768, help="tokens; longer rows are left out, for all sides")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--recompute", action="store_true", help="activations, on all sides: gradient checkpointing")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["rmtrain", "prompt twice", "TRL"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_groups(options, rows)
        settings = {**vars(options), "data": str(rows), "folder": folder, "over_length": "error"}
        settings = {key: value for key, value in settings.items() if key not in ("json", "sides")}
        results = take_turns({name: SIDES[name] for name in options.sides}, settings, options.repeats)
    summary = summarize(results, options.warmup)
    print(f"\n{options.ways} completions a prompt, {options.groups} prompts a step, {options.dtype}; {machine()}")
    print(f"{'':<14}{'tokens':>9}  {'pairs/s':<32}{'peak, GiB':<32}{'of the matrix rate'}")
    for name, found in summary["sides"].items():
        rate = shown(found["matrix_rate_used"]) if "matrix_rate_used" in found else "not measured"
        figures = f"{shown(found['pairs_per_second'], 3):<32}{shown(found['peak_gib']):<32}{rate}"
        print(f"{name:<14}{found['tokens']:>9,}  {figures}")
    for name, found in summary["against"].items():
        print(
            f"rmtrain against {name}: {shown(found['speed'])} times the pairs a second, "
            f"in {shown(found['memory'])} of the memory"
        )
        print(f"  {found['tokens']:.2f} times fewer tokens; losses differ by {found['loss_difference']:.1e} at most")
    content = {key: value for key, value in vars(options).items() if key != "json"}
    write_json(options.json, options=content, machine=machine(), **summary, runs=results)


def summarize(results: dict[str, list[Result]], warmup: int) -> dict[str, Any]:
    rates, sides = {}, {}
    for name, runs in results.items():
        rates[name] = []
        for run in runs:
            timed = run["seconds"][warmup:] or run["seconds"]
            rates[name].append(run["pairs"] * len(timed) / len(run["seconds"]) / sum(timed))
        sides[name] = {
            "tokens": runs[0]["tokens"],
            "pairs_per_second": spread(rates[name]),
            "peak_gib": spread([run["peak_bytes"] / 2**30 for run in runs]),
            "losses": runs[0]["losses"],
        }
        for figure in ("waiting_for_data", "matrix_rate_used"):
            if values := [v for run in runs for v in run.get(figure, [])[warmup:] or run.get(figure, [])]:
                sides[name][figure] = spread(values)
    against = {}
    for name, runs in results.items():
        if name != "rmtrain" and "rmtrain" in results:
            mine = results["rmtrain"]
            losses = zip(mine[0]["losses"], runs[0]["losses"], strict=True)
            against[name] = {
                "speed": ratios(rates["rmtrain"], rates[name]),
                "memory": ratios([run["peak_bytes"] for run in mine], [run["peak_bytes"] for run in runs]),
                "tokens": runs[0]["tokens"] / mine[0]["tokens"],
                "loss_difference": max(abs(a - b) for a, b in losses),
            }
    return {"sides": sides, "against": against}


if __name__ == "__main__":
    main()
