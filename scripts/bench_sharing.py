"""How the gain of sharing prompts grows with the prompt's length and with the number of answers.

    python scripts/bench_sharing.py --prompts 64 256 --ways 2 4 8 --plot sharing.svg

For each prompt length and K it trains (forward and backward pass, LoRA) on one group of K random completions with all
K(K-1)/2 preferences, in three ways that take turns: each prompt once; packed with the prompt before every completion;
and as TRL does, every preference as a padded pair of rows, 8 pairs at a time. Their losses must agree.
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
    from rmtrain.data.render import Renderer, load_tokenizer
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


def step(model: Any, group: Any, way: str, pad_id: int) -> tuple[float, int]:
    """Loss of a forward and backward pass, and tokens through the backbone."""
    import torch
    from accelerate.utils import send_to_device

    from rmtrain.model.attention import NAME
    from rmtrain.model.batch import pack
    from rmtrain.training.loss import bradley_terry_loss

    model.module.zero_grad(set_to_none=True)
    model.module.get_base_model().set_attn_implementation("sdpa" if way == "padded pairs" else NAME)
    if way == "padded pairs":
        pairs = [
            group._replace(suffixes=(group.suffixes[p.better], group.suffixes[p.worse]), preferences=())
            for p in group.preferences
        ]
        parts = [pairs[i : i + PAIRS_AT_ONCE] for i in range(0, len(pairs), PAIRS_AT_ONCE)]
        better, worse = ([2 * i + k for i in range(PAIRS_AT_ONCE)] for k in (0, 1))
    else:
        parts = [[group]]
        better, worse = ([p[k] for p in group.preferences] for k in (0, 1))
    total, tokens = 0.0, 0
    for part in parts:
        packing = {WAYS[0]: "shared_prompt", WAYS[1]: "padding_free", WAYS[2]: "none"}[way]
        batch = send_to_device(pack(part, packing, pad_id), model.device)
        rewards = model.module(**batch).logits
        n = len(part) if way == "padded pairs" else len(better)
        chosen, rejected = (torch.tensor(side[:n], device=rewards.device) for side in (better, worse))
        weights = torch.full((n,), 1 / len(group.preferences), device=rewards.device)
        loss = bradley_terry_loss(rewards, chosen, rejected, weights, torch.zeros_like(weights)).loss
        loss.backward()
        total, tokens = total + loss.item(), tokens + batch["input_ids"].numel()
    return total, tokens


def save_plot(points: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
    for colour, prompt in zip(colours, dict.fromkeys(point["prompt"] for point in points), strict=False):
        mine = [point for point in points if point["prompt"] == prompt]
        for other, style in ((WAYS[2], "-"), (WAYS[1], "--")):
            found = [point["speed"][other] for point in mine]
            errors = [[f["median"] - f["min"] for f in found], [f["max"] - f["median"] for f in found]]
            axes.errorbar(
                [point["ways"] for point in mine],
                [f["median"] for f in found],
                yerr=errors,
                color=colour,
                linestyle=style,
                marker="o",
                markersize=4,
                label=f"prompt of {prompt}, against {other}",
            )
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} x")
    axes.set_xticks(sorted({point["ways"] for point in points}))
    axes.set_xlabel(f"completions of a prompt (of {points[0]['completion']} tokens each)")
    axes.set_ylabel("speed-up of each prompt once")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="x-small", frameon=False)
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
    print(f"{'prompt':>6} {'K':>3}  {'against padded pairs':<30} against packed, prompt before each")
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
            speed = {way: ratios(seconds[way], seconds[WAYS[0]]) for way in WAYS[1:]}
            points.append(
                {
                    "prompt": prompt,
                    "completion": options.completion,
                    "ways": ways,
                    "tokens": tokens,
                    "seconds": {way: spread(values) for way, values in seconds.items()},
                    "speed": speed,
                    "loss_difference": max(losses.values()) - min(losses.values()),
                }
            )
            print(f"{prompt:>6} {ways:>3}  {shown(speed[WAYS[2]]):<30} {shown(speed[WAYS[1]])}", flush=True)
    print(f"greatest difference of a loss: {max(point['loss_difference'] for point in points):.1e}; {machine()}")
    if options.plot:
        save_plot(points, options.plot)
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "plot")}
    write_json(options.json, options=settings, machine=machine(), points=points)


if __name__ == "__main__":
    main()
