"""Write the figures of docs/alignment-gap.md from results of `rmtrain gap`.

    python scripts/alignment_gap_doc.py "PandaLM votes, the first 300 rows=results/…/gap.json" …
    python scripts/alignment_gap_doc.py --tuned dpo/dpo.json --trained RUN/metrics.jsonl "DPO=results/…/gap.json"
    python scripts/alignment_gap_doc.py

Results that are named are added to docs/alignment-gap.json, without their rows and without paths of this machine.
The document's part between its two marks is then made anew from that file. First come the results of policies that
scripts/dpo_policy.py tuned, one table each: --tuned is their log, and --trained, once for each reward model in order of
--ckpt, its metrics.jsonl, with `:STEPS` behind it for a checkpoint. Of the others, the first is shown in full, as the
command prints it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rmtrain.evaluation.gap_figures import GapResult
from rmtrain.evaluation.results import gaps_of, read_rows, with_lengths_as_rewards
from rmtrain.evaluation.rows_files import rows_of_result
from rmtrain.metrics.rankings import credits_of
from rmtrain.places import name_only, without_places
from rmtrain.reporting.gap import gap_tables, ideal_accuracies
from rmtrain.reporting.table import Table, to_markdown
from rmtrain.reporting.text import points

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: made by scripts/alignment_gap_doc.py -->", "<!-- end of the figures -->"


def add(results: dict[str, Any], named: str, tuned: Path | None, trained: Sequence[str]) -> None:
    title, _, path = named.rpartition("=")
    text = Path(path).read_text(encoding="utf-8")
    for number, name in enumerate(json.loads(text)["reward_models"], start=1):
        text = text.replace(json.dumps(name), f'"reward model {number}"')
    result = without_places(json.loads(text), name_only)
    result["data"]["source"] = Path(result["data"]["source"]).name
    results[title] = {key: value for key, value in result.items() if key not in ("rows", "log_ratios")}
    if tuned is not None:
        made = json.loads(tuned.read_text(encoding="utf-8"))
        asked = {key: made["settings"][key] for key in ("beta", "learning_rate", "max_length", "seed")}
        models = list(map(training_of, trained))
        lengths = gaps_of(with_lengths_as_rewards(read_rows(rows_of_result(Path(path)))))
        longer = {"longer_wins": float(credits_of(lengths.gaps).mean())}
        results[title]["tuned"] = {**made["rows"], **asked, **steps_of(made["log"]), **longer, "reward_models": models}


def training_of(named: str) -> dict[str, float]:
    """Steps, tokens and loss of a reward model's training, from `metrics.jsonl` or the first lines of it."""
    path, _, steps = named.partition(":")
    lines = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return steps_of([line for line in lines if "loss" in line][: int(steps) if steps else None])


def steps_of(log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How many steps a log has, their tokens, and the mean loss of the last half of them."""
    steps = [line for line in log if "loss" in line]
    last = steps[len(steps) // 2 :]
    tokens = steps[-1].get("tokens", steps[-1].get("num_tokens"))
    return {"steps": len(steps), "step_tokens": tokens, "loss": sum(line["loss"] for line in last) / len(last)}


def with_ends(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    return f"{points(value, 1, sign)} ({points(low, 1, sign)} to {points(high, 1, sign)})"


def summary(results: Mapping[str, GapResult]) -> Table:
    """One row a result: accuracies of the policy and of its ideal, and the gap between them."""
    rows = []
    for title, result in results.items():
        of, cells = result.figures, list[str]()
        gaps = of.gap["median"], of.gap["median"].normalised
        for policy, ideal, gap in zip((of.policy, of.policy.normalised), ideal_accuracies(of), gaps, strict=True):
            cells += [with_ends(policy.accuracy, policy.low, policy.high), points(median(ideal), 1)]
            cells.append(with_ends(gap.difference, gap.low, gap.high, "+"))
        rows.append((title, str(of.n), *cells))
    columns = ("rows", "n", "R", "R*", "gap", "R~", "R~*", "gap~")
    notes = ["In per cent and points, with 95 % intervals clustered by prompt; R* and the gap at the median over beta."]
    return Table(columns, rows, notes=notes)


def proof(result: GapResult, tuned: Mapping[str, Any]) -> Table:
    """A policy before and after DPO, its ideal, and reward models of the same rows, on held-out preferences."""
    of, own = result.figures, f"{tuned['beta']:g}"
    accuracies = {
        "policy before DPO": of.reference,
        "policy after DPO": of.policy,
        "implicit reward of DPO": of.implicit,
        f"ideal at beta {own}, that of DPO": of.idealised[own],
    }
    differences = {
        "after minus before DPO": (of.minus_reference, of.minus_reference and of.minus_reference.normalised),
        f"gap at beta {own}": (of.gap[own], of.gap[own].normalised),
        "gap at the median beta": (of.gap["median"], of.gap["median"].normalised),
    }
    rows = [
        (name, *(with_ends(each.accuracy, each.low, each.high) for each in (both, both.normalised) if each))
        for name, both in accuracies.items()
        if both
    ]
    rows.append(("ideal at the median beta", *(points(median(values), 1) for values in ideal_accuracies(of))))
    for name, model in of.reward_models.items():
        rows.append((name, *[with_ends(model.accuracy, model.low, model.high)] * 2))
        differences[f"{name} minus policy after DPO"] = (model.beside_policy, model.minus_policy_normalised)
    rows += [
        (name, *(with_ends(each.difference, each.low, each.high, "+") for each in both if each))
        for name, both in differences.items()
    ]
    for name, model in of.reward_models.items():
        closed = [
            share and with_ends(share.value, share.low, share.high) for share in (model.closed, model.closed_normalised)
        ]
        rows.append((f"of the gap at the median beta, {name} closes", *(each or "no gap" for each in closed)))
    rows.append(("the longer answer wins", *[points(tuned["longer_wins"], 1)] * 2))
    notes = [
        f"n = {of.n} held-out preferences. In per cent and points, with 95 % intervals clustered by prompt. No gap: "
        "its interval reaches 0.",
        *(
            f"{name.capitalize()} minus policy: McNemar p = {model.mcnemar_p:.2g}; normalised "
            f"{model.minus_policy_normalised.mcnemar_p:.2g}."
            for name, model in of.reward_models.items()
        ),
        how_trained(tuned),
    ]
    return Table(("", "summed", "length-normalised"), rows, notes=notes)


def how_trained(tuned: Mapping[str, Any]) -> str:
    """What the policy and the reward models were trained on, in sentences."""
    planned = -(-tuned["kept"] // 16)  # scripts/dpo_policy.py takes 16 pairs a step
    models = " ".join(
        f"Reward model {number}: {model['steps']} of {planned} steps, {model['step_tokens']:,.0f} tokens, as prompts "
        f"are shared, loss {model['loss']:.3f} in the last half of them."
        for number, model in enumerate(tuned["reward_models"], start=1)
    )
    return (
        f"All saw pairs of the same {tuned['kept']}, none of them twice, 16 a step: the first whose sequences have at "
        f"most {tuned['max_length']} tokens, of {tuned['read']:,} ({tuned['too_long']:,} are longer). DPO: beta "
        f"{tuned['beta']:g}, learning rate {tuned['learning_rate']:g}, {tuned['steps']} of {planned} steps, "
        f"{tuned['step_tokens']:,.0f} tokens and the reference's of all {tuned['tokens']:,}, loss {tuned['loss']:.3f} "
        f"nats in the last half of them (0.693 at first). {models} One seed, {tuned['seed']}."
    )


def figures_of(results: Mapping[str, Any]) -> str:
    read = {title: GapResult.from_json(result) for title, result in results.items()}
    parts = list[str]()
    for title in [title for title in read if "tuned" in results[title]]:
        parts += [f"### {title}", to_markdown(proof(read.pop(title), results[title]["tuned"]))]
    parts += ["### Policies as they were released", to_markdown(summary(read))]
    for number, (title, result) in enumerate(read.items()):
        tables = gap_tables(result)[0 if number == 0 else 2 :]
        parts += [f"### {title}", *map(to_markdown, tables)] if tables else []
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", metavar="TITLE=gap.json")
    parser.add_argument("--tuned", type=Path, metavar="dpo.json")
    parser.add_argument("--trained", action="append", default=[], metavar="metrics.jsonl[:STEPS]")
    asked = parser.parse_args()
    kept, page = DOCS / "alignment-gap.json", DOCS / "alignment-gap.md"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for named in asked.results:
        add(results, named, asked.tuned, asked.trained)
    lines = ",\n".join(f"{json.dumps(title)}: {json.dumps(result)}" for title, result in results.items())
    kept.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{figures_of(results)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
