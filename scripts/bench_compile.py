"""What compiled layers take and save: the two sides take turns on the same micro-batches.

    python scripts/bench_compile.py --model models/smollm2-135m-instruct --data pairs.jsonl --groups 4 --batches 12

One process holds the model twice, as it comes and compiled. Times are seconds of the processor, the C++ compiler's
included, or on a GPU of the clock. Compiling is what the first batches take beyond the median of the ratios of the
others; the break-even is the number of tokens after which it is paid back. The cache of compiled code is empty at
first, or kept with --warm-cache. Peak memory needs a process a side: bench_training.py has it.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_training import prepare, write_groups
from sides import machine, spread, synchronize, write_json


def seconds() -> float:
    """Of the processor, the C++ compiler's included, which other work hardly changes; with a GPU, of the clock."""
    import torch

    synchronize()
    return time.perf_counter() if torch.cuda.is_available() else sum(os.times()[:4])


def step(module: Any, batch: Any, scoring: bool) -> tuple[float, Any]:
    """Seconds for a forward and a backward pass, or for the forward pass of scoring alone, and the rewards."""
    import torch

    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "ends", "layout")}
    for parameter in module.parameters():
        parameter.grad = None
    module.train(not scoring)
    start = seconds()
    with torch.set_grad_enabled(not scoring):
        rewards = module(**inputs).logits
    if not scoring:
        rewards.square().mean().backward()
    return seconds() - start, rewards.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train")
    parser.add_argument("--ways", type=int, default=2, help="completions of a prompt")
    parser.add_argument("--groups", type=int, default=4, help="prompts a micro-batch")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3, help="of them, in which the layers are compiled")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32", help="auto: the fastest of this machine")
    parser.add_argument(
        "--scoring", action="store_true", help="time forward passes alone, without dropout and gradients"
    )
    parser.add_argument("--warm-cache", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.steps = options.batches
    with tempfile.TemporaryDirectory() as folder:
        if not options.warm_cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        measure(options, folder)


def measure(options: argparse.Namespace, folder: str) -> None:
    import torch
    from accelerate.utils import send_to_device
    from torch._dynamo.utils import counters

    from rmtrain.model.compiling import compile_layers
    from rmtrain.model.start import build_model
    from rmtrain.training.build import make_plan
    from rmtrain.training.choices import settle
    from rmtrain.training.microbatches import MicrobatchDataset

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = Path(folder) / "rows.jsonl"
    write_groups(options, rows)
    settings = {**vars(options), "data": str(rows), "folder": folder, "over_length": "error", "recompute": False}
    loaded, splits, renderer = prepare(settings, "shared_prompt")
    settled = settle(loaded.recipe, None)
    print("\n".join(settled.notes))
    plan = make_plan(settled.recipe, splits["train"], "shared_prompt", 1)
    data = MicrobatchDataset(splits["train"].tokens, plan, 0, "shared_prompt", renderer.pad_id)
    plain, changed = (build_model(settled.recipe, renderer.pad_id).module.to(device) for _ in range(2))
    compile_layers(changed, print)
    lines = []
    for number in range(options.batches):
        batch = send_to_device(data[number], device)
        (before, expected), (after, rewards) = (step(module, batch, options.scoring) for module in (plain, changed))
        graphs = counters["stats"]["unique_graphs"]
        difference = (rewards - expected).abs().max().item()
        lines.append({"tokens": batch["input_ids"].numel(), "plain": before, "compiled": after, "graphs": graphs})
        print(f"{lines[-1]}, rewards differ by {difference:.1e}", flush=True)
    report(lines, sum(p.numel() for p in plain.parameters()), options)


def report(lines: list[dict[str, Any]], parameters: int, options: argparse.Namespace) -> None:
    timed, first = lines[options.warmup :], lines[: options.warmup]
    ratios = [line["plain"] / line["compiled"] for line in timed]
    rates = {side: [line["tokens"] / line[side] for line in timed] for side in ("plain", "compiled")}
    gain = statistics.median(ratios)
    compiling = sum(line["compiled"] - line["plain"] / gain for line in first)
    saved = 1 / statistics.median(rates["plain"]) * (1 - 1 / gain)  # seconds a token
    found = {
        "ratio": spread(ratios),
        "tokens_per_second": {side: spread(values) for side, values in rates.items()},
        "compiling_seconds": compiling,
        "break_even_tokens": compiling / saved if saved > 0 else None,
        "parameters": parameters,
        "graphs_after_warmup": lines[-1]["graphs"] - first[-1]["graphs"],
    }
    for name, value in found.items():
        print(f"{name}: {value}")
    print(machine())
    write_json(options.json, options=vars(options), machine=machine(), lines=lines, **found)


if __name__ == "__main__":
    main()
