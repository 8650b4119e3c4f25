"""How the gain of sharing prompts, in time and in memory, grows with the prompt's length and the number of answers.

    python scripts/bench_sharing.py --prompts 64 256 --ways 2 4 8 --plot sharing.svg

For each prompt length and K it trains (forward and backward pass, LoRA) on one group of K random completions with all
K(K-1)/2 preferences, in three ways that take turns: each prompt once; packed with the prompt before every completion;
and as TRL does, every preference as a padded pair of rows, 8 pairs at a time. Their losses must agree. Memory is what
autograd keeps for the backward pass: on a GPU the peak of a step above what lay there before it.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from sides import machine, ratios, shown, spread, synchronize, write_json

PAIRS_AT_ONCE = 8
WAYS = ("each prompt once", "packed, prompt before each", "padded pairs")


def build(options: argparse.Namespace) -> tuple[Any, int, int]:
    from rmtrain.cli.app import quiet_libraries
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.recipe.load import parse_recipe_text
    from rmtrain.training.train import build_model

    quiet_libraries()
    text = f"model: {{name: {options.model}, dtype: {options.dtype}}}\nlora: {{rank: 16}}\ndata: {{source: demo}}\n"
    pad_id = Renderer.for_tokenizer(load_tokenizer(options.model)).pad_id
    model = build_model(parse_recipe_text(text, "bench_sharing.yaml").recipe, pad_id)
    if model.packing != "shared_prompt":
        raise SystemExit("; ".join(model.notes))
    return model, pad_id, int(model.module.config.get_text_config().vocab_size)


def random_group(prompt: int, completion: int, ways: int, vocabulary: int, seed: int) -> Any:
    import numpy as np

    from rmtrain.data.tokenize import TokenizedGroup
    from rmtrain.data.types import Preference

    random = np.random.default_rng(seed)
    prefix, *suffixes = (random.integers(3, vocabulary, n).astype(np.int32) for n in (prompt, *[completion] * ways))
    preferences = tuple(Preference(i, j) for i in range(ways) for j in range(i + 1, ways))
    return TokenizedGroup("random", "", prefix, tuple(suffixes), preferences, False)


def parts_of(group: Any, way: str) -> list[list[Any]]:
    """The groups of each pass."""
    if way != "padded pairs":
        return [[group]]
    pairs = [
        group._replace(suffixes=(group.suffixes[p.better], group.suffixes[p.worse]), preferences=())
        for p in group.preferences
    ]
    return [pairs[i : i + PAIRS_AT_ONCE] for i in range(0, len(pairs), PAIRS_AT_ONCE)]


def step(model: Any, group: Any, way: str, pad_id: int, parts: Any = None) -> tuple[float, int]:
    """Loss of a forward and backward pass, and tokens through the backbone; of all parts, or of those given."""
    import torch
    from accelerate.utils import send_to_device
    from torch.nn.functional import softplus

    from rmtrain.model.attention import NAME
    from rmtrain.model.batch import pack

    model.module.zero_grad(set_to_none=True)
    model.module.get_base_model().set_attn_implementation("sdpa" if way == "padded pairs" else NAME)
    better, worse = ([p[k] for p in group.preferences] for k in (0, 1))
    if way == "padded pairs":
        better, worse = ([2 * i + k for i in range(PAIRS_AT_ONCE)] for k in (0, 1))
    total, tokens = 0.0, 0
    for part in parts or parts_of(group, way):
        packing = {WAYS[0]: "shared_prompt", WAYS[1]: "padding_free", WAYS[2]: "none"}[way]
        batch = send_to_device(pack(part, packing, pad_id), model.device)
        rewards = model.module(**batch).logits
        n = len(part) if way == "padded pairs" else len(better)
        chosen, rejected = (torch.tensor(side[:n], device=rewards.device) for side in (better, worse))
        weights = torch.full((n,), 1 / len(group.preferences), device=rewards.device)
        loss = (weights * softplus(rewards[rejected] - rewards[chosen])).sum()
        loss.backward()
        total, tokens = total + loss.item(), tokens + batch["input_ids"].numel()
    return total, tokens


def memory(model: Any, group: Any, way: str, pad_id: int) -> int:
    """Bytes that a step keeps for its backward pass, at most; on a GPU with all that it allocates."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, group, way, pad_id)
        return torch.cuda.max_memory_allocated() - before
    own = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    kept: dict[int, int] = {}
    peak = 0

    def pack(tensor: Any) -> Any:
        nonlocal peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            peak = max(peak, sum(kept.values()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for part in parts_of(group, way):
            kept.clear()  # a pass frees what it kept
            step(model, group, way, pad_id, [part])
    return peak


def save_plot(points: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
    panels = (("speed", "times as fast as"), ("memory", "times less memory kept than"))
    for axes, (quantity, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for colour, prompt in zip(colours, dict.fromkeys(point["prompt"] for point in points), strict=False):
            mine = [point for point in points if point["prompt"] == prompt]
            for other, style in ((WAYS[2], "-"), (WAYS[1], "--")):
                found = [point[quantity][other] for point in mine]
                if quantity == "memory":
                    found = [{"median": value, "min": value, "max": value} for value in found]
                errors = [[f["median"] - f["min"] for f in found], [f["max"] - f["median"] for f in found]]
                axes.errorbar(
                    [point["ways"] for point in mine],
                    [f["median"] for f in found],
                    yerr=errors,
                    color=colour,
                    linestyle=style,
                    marker="o",
                    markersize=4,
                    label=f"{other}; prompt of {prompt}",
                )
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} x")
        axes.set_xticks(sorted({point["ways"] for point in points}))
        axes.set_xlabel(f"completions of a prompt (of {points[0]['completion']} tokens each)")
        axes.set_title(f"each prompt once: {title} …", fontsize="medium", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize="x-small", frameon=False)
    figure.savefig(path, dpi=150)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 256], help="tokens of the prompt")
    parser.add_argument("--ways", type=int, nargs="+", default=[2, 4, 8], help="completions of a prompt")
    parser.add_argument("--completion", type=int, default=64, help="tokens of each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plot", type=Path, help="a .png, .svg or .pdf file")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, pad_id, vocabulary = build(options)
    points = []
    print(f"{'':>12}{'against padded pairs':<40}against packed, prompt before each")
    print(f"{'prompt':>6} {'K':>3}  {'speed':<30}{'memory':<10}{'speed':<30}memory")
    for prompt in options.prompts:
        for ways in options.ways:
            group = random_group(prompt, options.completion, ways, vocabulary, seed=ways)
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            losses, tokens = {}, {}
            step(model, group, WAYS[0], pad_id)  # warm up
            for _ in range(options.repeats):
                for way in WAYS:
                    synchronize()
                    start = time.perf_counter()
                    losses[way], tokens[way] = step(model, group, way, pad_id)
                    synchronize()
                    seconds[way].append(time.perf_counter() - start)
            kept = {way: memory(model, group, way, pad_id) for way in WAYS}
            speed = {way: ratios(seconds[way], seconds[WAYS[0]]) for way in WAYS[1:]}
            less = {way: kept[way] / kept[WAYS[0]] for way in WAYS[1:]}
            points.append(
                {
                    "prompt": prompt,
                    "completion": options.completion,
                    "ways": ways,
                    "tokens": tokens,
                    "seconds": {way: spread(values) for way, values in seconds.items()},
                    "speed": speed,
                    "kept_bytes": kept,
                    "memory": less,
                    "loss_difference": max(losses.values()) - min(losses.values()),
                }
            )
            cells = "".join(f"{shown(speed[way]):<30}{less[way]:<10.2f}" for way in (WAYS[2], WAYS[1]))
            print(f"{prompt:>6} {ways:>3}  {cells}", flush=True)
    print(f"greatest difference of a loss: {max(point['loss_difference'] for point in points):.1e}; {machine()}")
    if options.plot:
        save_plot(points, options.plot)
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "plot")}
    write_json(options.json, options=settings, machine=machine(), points=points)


if __name__ == "__main__":
    main()
