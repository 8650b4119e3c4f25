"""Score the same preferences with rmtrain and in padded batches of 8 in dataset order, as reward benchmarks do.

    python scripts/bench_scoring.py --model models/smollm2-135m-instruct --data rewardbench.jsonl

Both sides load the same weights and a score head of the same seed. The padded side runs the chosen and then the
rejected completions of 8 preferences at a time, padded to the longest, and reads the reward at the last token of each
row; rmtrain sorts by length, packs to a token budget and runs each prompt once. Each run is a fresh process, and sides
take turns; loading is not counted, tokenisation neither.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sides import Result, machine, peak_bytes, ratios, shown, spread, synchronize, take_turns, write_json

ROWS_AT_ONCE = 8


def load(settings: dict[str, Any], packing: str) -> Any:
    """The model on its device, and groups of one preference each."""
    import torch

    from rmtrain.cli.app import quiet_libraries
    from rmtrain.data.load import load_data
    from rmtrain.data.prepare import tokenize_splits
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenize import Tokenization
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.display import Silent
    from rmtrain.model.reward_model import BackboneOptions, load_backbone
    from rmtrain.recipe.load import parse_recipe_text

    quiet_libraries()
    text = (
        "model: {{name: {model}}}\ndata: {{source: {source}, splits: {{train: {split}}}, limit: {{train: {limit}}}}}\n"
    )
    recipe = parse_recipe_text(text.format(**settings, source=json.dumps(settings["data"])), "rows.yaml").recipe
    renderer = Renderer.for_tokenizer(load_tokenizer(settings["model"]))
    data = load_data(recipe.data, recipe.run.seed, ["train"])
    tokens = tokenize_splits(data, Tokenization(renderer, settings["max_length"], "truncate_prompt"), Silent())[
        "train"
    ].tokens
    groups = [tokens.group(i) for i in range(len(tokens))]
    options = BackboneOptions(settings["dtype"], packing=packing)
    model = load_backbone(settings["model"], None, options, renderer.pad_id, seed=0)
    model.module.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, groups, renderer.pad_id


def packed(settings: dict[str, Any]) -> Result:
    from rmtrain.scoring.batches import score_groups

    model, groups, pad_id = load(settings, "shared_prompt")
    score_groups(model, groups[:ROWS_AT_ONCE], pad_id, settings["tokens_per_batch"])  # warm up
    synchronize()
    start = time.perf_counter()
    rewards = score_groups(model, groups, pad_id, settings["tokens_per_batch"])
    synchronize()
    return report(start, groups, [list(pair) for pair in rewards])


def padded(settings: dict[str, Any]) -> Result:
    import torch
    from accelerate.utils import send_to_device

    from rmtrain.data.tokenize import TokenizedGroup

    model, groups, pad_id = load(settings, "none")
    model.module.eval()

    @torch.no_grad()
    def run(part: list[TokenizedGroup]) -> list[list[float]]:
        columns = []
        for side in range(len(part[0].spread(part[0].suffixes))):
            alone = [(group, group.spread(group.suffixes)[side]) for group in part]
            single = [group._replace(suffixes=(suffix,), suffix_of=(), preferences=()) for group, suffix in alone]
            batch = send_to_device(model.batch(single, pad_id), model.device)
            columns.append(model.module(**batch).logits.flatten().tolist())
        return [list(row) for row in zip(*columns, strict=True)]

    run(groups[:ROWS_AT_ONCE])  # warm up
    synchronize()
    start = time.perf_counter()
    rewards = [row for i in range(0, len(groups), ROWS_AT_ONCE) for row in run(groups[i : i + ROWS_AT_ONCE])]
    synchronize()
    return report(start, groups, rewards)


def report(start: float, groups: Any, rewards: list[list[float]]) -> Result:
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "preferences": sum(len(group.preferences) for group in groups),
        "distinct_tokens": sum(len(g.prefix) + sum(map(len, g.suffixes)) for g in groups),
        "rewards": rewards,
        "peak_bytes": peak_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="demo", help="any SOURCE of pairs")
    parser.add_argument("--split", default="train", help="the source's name of the split")
    parser.add_argument("--limit", type=int, default=128, help="preferences")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    results = take_turns({"rmtrain": packed, "padded": padded}, settings, options.repeats)
    rates = {name: [run["preferences"] / run["seconds"] for run in runs] for name, runs in results.items()}
    both = zip(results["rmtrain"][0]["rewards"], results["padded"][0]["rewards"], strict=True)
    difference = max(abs(a - b) for mine, theirs in both for a, b in zip(mine, theirs, strict=True))
    first = results["rmtrain"][0]
    print(f"\n{first['preferences']} preferences, {first['distinct_tokens']:,} distinct tokens; {machine()}")
    summary: dict[str, Any] = {"sides": {}, "reward_difference": difference}
    for name, runs in results.items():
        peak = spread([run["peak_bytes"] / 2**30 for run in runs])
        summary["sides"][name] = {"preferences_per_second": spread(rates[name]), "peak_gib": peak}
        print(f"{name:<8} {shown(spread(rates[name]), 3)} preferences/s, peak {shown(peak)} GiB")
    summary["speed"] = ratios(rates["rmtrain"], rates["padded"])
    print(
        f"rmtrain: {shown(summary['speed'])} times the preferences a second; rewards differ by {difference:.1e} at most"
    )
    write_json(options.json, options=settings, machine=machine(), **summary, runs=results)


if __name__ == "__main__":
    main()
