"""Where the time of a training step goes: the real trainer under torch's profiler.

    python scripts/profile_step.py --model models/smollm2-135m-instruct --data pairs.jsonl --steps 3

Time is that of operators themselves, without what they call: on the device where there is a GPU, else on the CPU. The
first step warms up. The profiler slows small operators down, so shares are what to read, not seconds.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench_training import prepare, write_groups
from sides import machine, write_json

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "mkldnn", "gemm")
ATTENTION = ("scaled_dot_product", "flash_attention", "varlen_attn", "efficient_attention")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone", "aten::index_select", "Memcpy", "aten::fill_")
OPTIMIZER = ("_fused_adam", "Optimizer.", "_foreach_", "adam", "optimizer_update")
NORMS = ("rsqrt", "aten::pow", "aten::mean")


def kind(name: str, shapes: Any, rank: int) -> str:
    """What an operator works for."""
    if any(part in name for part in ATTENTION):
        return "attention"
    if any(part in name for part in OPTIMIZER):
        return "optimiser and clipping"
    if any(part in name for part in PRODUCTS):
        narrow = any(rank in shape for shape in shapes or [] if isinstance(shape, (list, tuple)) and len(shape) == 2)
        return "adapters' matrix products" if narrow else "base matrix products"
    if any(part in name for part in COPIES):
        return "copies and casts"
    if any(part in name for part in NORMS):
        return "norms"
    return "other element-wise work"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE with a split train")
    parser.add_argument("--ways", type=int, default=2)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="profiled, after one that warms up")
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    profiled, options.steps = options.steps, options.steps + 1

    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torch.profiler import ProfilerActivity, profile, schedule

    from rmtrain.display import Silent
    from rmtrain.training.train import train

    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_groups(options, rows)
        settings = {**vars(options), "data": str(rows), "folder": folder, "over_length": "error", "recompute": False}
        loaded, splits, renderer = prepare(settings, "shared_prompt")
        plan = schedule(wait=0, warmup=1, active=profiled, repeat=1)
        with profile(activities=activities, schedule=plan, record_shapes=True) as profiler:
            handle = register_optimizer_step_post_hook(lambda *args: profiler.step())
            result = train(loaded, splits, renderer, Silent())
            handle.remove()
        lines = (result.run / "metrics.jsonl").read_text().splitlines()
    times: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if not event.key.startswith("ProfilerStep"):
            times[kind(event.key, event.input_shapes, options.rank)] += own
    total = sum(times.values())
    print(f"{profiled} steps of {options.groups} prompts, {result.tokens:,} tokens in {len(lines)} steps; {machine()}")
    for name, value in times.most_common():
        print(f"{name:<28} {value / total:6.1%}  {value / profiled / 1e3:10.1f} ms a step")
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    write_json(options.json, options=settings, machine=machine(), microseconds=dict(times), steps=profiled)


if __name__ == "__main__":
    main()
