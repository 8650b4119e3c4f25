"""Turn round the labels of a tenth of real rows, have `rmtrain curate --folds` find them, and show what it found.

    python scripts/flipped_labels.py run hh_helpful --data DATA --model MODEL --work WORK
    python scripts/flipped_labels.py write

`run` goes through `rmtrain curate` as a user starts it, goes on where it was stopped, and adds what the judges say of
every row to docs/flipped-labels.json, without its text. `write` makes the table of docs/data.md from that file alone.
"""

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sides import machine

from rmtrain.data.judged import Rule, agreements
from rmtrain.metrics.intervals import clustered_interval
from rmtrain.reporting.table import Table, to_markdown
from rmtrain.reporting.text import count, interval, percent
from rmtrain.runs import list_runs

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: made by scripts/flipped_labels.py -->", "<!-- end of the figures -->"
RULES = ("majority", "hardest=0.1")
FOLDS, SHARE = 5, 0.1
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Rows of which a tenth is turned round, and how the models of the folds are trained."""

    title: str
    file: str
    rows: int
    max_length: int  # tokens of prompt and one completion: rows with more are left out
    epochs: float


EXPERIMENTS = {
    "hh_helpful": Experiment("hh-rlhf helpful, short pairs", "train_hh_helpful.jsonl.gz", 400, 160, 2.0),
    "truthfulqa": Experiment(
        "TruthfulQA, all answers of a question", "train_truthfulqa_groups.jsonl.gz", 652, 160, 1.0
    ),
}
RECIPE = {
    "lora": {"rank": 16, "alpha": 32},
    "optim": {
        "learning_rate": 1.5e-3,
        "schedule": "cosine",
        "warmup_ratio": 0.1,
        "global_batch_size": 8,
        "tokens_per_microbatch": 4096,
    },
}


def chosen(experiment: Experiment, data: Path, model: Path) -> list[dict[str, Any]]:
    """The first rows that are short enough, in the order of a digest of their ids; every tenth is turned round."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with gzip.open(data / experiment.file, "rt", encoding="utf-8") as stream:
        rows = sorted(map(json.loads, stream), key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
    kept = list[dict[str, Any]]()
    for row in rows:
        prompt, texts = row["prompt"], row.get("completions") or [row["chosen"], row["rejected"]]
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        talks = [[*asked, {"role": "assistant", "content": text}] for text in texts]
        lengths = [len(tokenizer.apply_chat_template(talk, return_dict=False)) for talk in talks]
        if max(lengths) <= experiment.max_length and len(kept) < experiment.rows:
            kept.append(turned(row) if len(kept) % round(1 / SHARE) == 0 else row)
    return kept


def turned(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all its labels turned round."""
    if "scores" in row:
        return {**row, "scores": [min(row["scores"]) + max(row["scores"]) - score for score in row["scores"]]}
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def run(name: str, data: Path, model: Path, work: Path, results: Path) -> None:
    """Curate the rows of an experiment, and add what came out of it to the results."""
    experiment, folder = EXPERIMENTS[name], work / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = chosen(experiment, data, model)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"source": {"train": str(folder / "rows.jsonl")}, "max_length": experiment.max_length}
    settings = {"model": {"name": str(model), "dtype": "float32"}, "data": source, **RECIPE}
    settings["optim"] = {**RECIPE["optim"], "epochs": experiment.epochs}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "rmtrain", "curate", "recipe.yaml", "--output", "kept.jsonl", "--mark"]
    start = time.monotonic()
    with (folder / "shown.txt").open("w", encoding="utf-8") as shown:
        subprocess.run([*command, "--folds", str(FOLDS)], cwd=folder, check=True, stdout=shown)
    judged = [json.loads(line) for line in (folder / "kept.jsonl").read_text(encoding="utf-8").splitlines()]
    flipped = {row["id"] for row in rows[:: round(1 / SHARE)]}
    runs = [manifest for _, manifest in list_runs(folder / "kept.jsonl.judges")]
    record = {
        "experiment": asdict(experiment),
        "recipe": RECIPE,
        "folds": FOLDS,
        "steps": [int(manifest["totals"]["steps"]) for manifest in runs],
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=DOCS, text=True).strip(),
        "seconds": round(time.monotonic() - start),
        "machine": {key: machine()[key] for key in ("device", "torch", "transformers")},
        **verdicts(judged, flipped),
    }
    known = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    lines = (f"{json.dumps(key)}: {json.dumps(of)}" for key, of in sorted({**known, name: record}.items()))
    results.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def verdicts(judged: Sequence[Mapping[str, Any]], flipped: set[str]) -> dict[str, Any]:
    """Of each judged row: whether it was turned round, its preferences, and how many judges and rules reject."""
    ends = np.cumsum([len(row["preferences"]) for row in judged])
    margins = np.array([own for row in judged for own in row["margins"]], dtype=np.float64)

    def by_row(values: Any) -> list[float]:
        return [round(float(part.sum()), 4) for part in np.split(values, ends[:-1])]

    return {
        "flipped": [int(row["id"] in flipped) for row in judged],
        "preferences": [len(row["preferences"]) for row in judged],
        "agreement": by_row(agreements(margins)),
        "rejected": {
            rule: [int(n) for n in by_row(Rule.of(rule).rejects(margins, np.zeros(len(margins), dtype=np.bool_)))]
            for rule in RULES
        },
    }


def share_of(part: Sequence[float], whole: Sequence[float]) -> tuple[float, float, float]:
    """A share of preferences, with its 95 % interval over rows.

    Args:
        part: preferences of each row that are counted.
        whole: preferences of each row.
    """
    sizes, counted = np.array(whole, dtype=np.int64), np.array(part, dtype=np.float64)
    rows, credit = np.repeat(np.arange(len(sizes)), sizes), np.repeat(counted / sizes.clip(min=1), sizes)
    ends = clustered_interval(credit, rows)
    assert ends is not None, "nothing was rejected"
    return float(credit.mean()), ends.low, ends.high


def found_table(results: Results) -> Table:
    """A line for each experiment and rule: precision and recall, beside what a draw by chance would give."""
    lines = []
    for of in results.values():
        flipped, total = np.array(of["flipped"]), np.array(of["preferences"])
        base = float((flipped * total).sum() / total.sum())
        for rule, counts in of["rejected"].items():
            rejected = np.array(counts)
            precision, low, high = share_of(flipped * rejected, rejected)
            recall = share_of(flipped * rejected, flipped * total)
            better = low > base
            lines.append(
                (
                    of["experiment"]["title"],
                    rule,
                    count(int(rejected.sum())),
                    f"{percent(precision)} ({interval(low, high)})",
                    percent(base),
                    f"{percent(recall[0])} ({interval(*recall[1:])})",
                    percent(float(rejected.sum() / total.sum())),
                    "better than chance" if better else "no better than chance",
                )
            )
    headings = ("rows", "rule", "rejected", "precision", "by chance", "recall", "by chance", "")
    return Table(headings, lines, texts=2, notes=notes(results))


def notes(results: Results) -> list[str]:
    """What was judged, and how often the judges agree with the labels that were left as they are."""
    said = []
    for of in results.values():
        flipped, total = np.array(of["flipped"]), np.array(of["preferences"])
        left, turned_round = (
            share_of(np.array(of["agreement"]) * part, total * part) for part in (1 - flipped, flipped)
        )
        said.append(
            f"{of['experiment']['title']}: n = {count(len(total))} rows with {count(int(total.sum()))} preferences, "
            f"{count(int(flipped.sum()))} rows turned round; {of['folds']} judges of {min(of['steps'])} to "
            f"{max(of['steps'])} steps each. They agree with {percent(left[0])} ({interval(*left[1:])}) of the labels "
            f"that were left, and with {percent(turned_round[0])} ({interval(*turned_round[1:])}) of the others."
        )
    return said


def write(results: Results, page: str) -> str:
    """The page with its part between the two marks made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{to_markdown(found_table(results))}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "write"))
    parser.add_argument("name", nargs="?", choices=EXPERIMENTS)
    for name in ("data", "model", "work"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--results", type=Path, default=DOCS / "flipped-labels.json")
    parser.add_argument("--page", type=Path, default=DOCS / "data.md")
    asked = parser.parse_args()
    if asked.action == "run":
        if None in (asked.name, asked.data, asked.model, asked.work):
            parser.error("run needs a name, --data, --model and --work")
        run(asked.name, asked.data, asked.model.resolve(), asked.work.resolve(), asked.results)
    else:
        results = json.loads(asked.results.read_text(encoding="utf-8"))
        asked.page.write_text(write(results, asked.page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
