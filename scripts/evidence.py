"""Run the protocol of scripts/evidence.yaml on real preferences, and write docs/evidence.md from its results.

    python scripts/evidence.py run --data DATA --model MODEL --work WORK
    python scripts/evidence.py run ours:1 --data DATA --model MODEL --work WORK
    python scripts/evidence.py write

`run` goes through the runs of the protocol, or those named, by `rmtrain train` and `rmtrain eval`: it skips what is
done, resumes what was stopped, and adds each finished run to docs/evidence.json, with the rewards of its rows and no
text. `write` makes the document from that file alone.
"""

import argparse
import gzip
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from sides import machine

from rmtrain.errors import InputError
from rmtrain.evaluation.calibration import calibrated_rows, fit
from rmtrain.evaluation.results import ScoredRow, gaps_of, read_rows
from rmtrain.evaluation.seeds import Seeds, seed_difference, seed_figures
from rmtrain.evaluation.sweep import rows_by_seed, rows_of
from rmtrain.metrics.calibration import expected_calibration_error
from rmtrain.recipe.grid import Setting
from rmtrain.recipe.load import load_recipe
from rmtrain.reporting.table import Table, to_markdown
from rmtrain.reporting.text import count, decimal, interval, percent, points
from rmtrain.runs import read_manifest
from rmtrain.training.sweep import Planned, Workers

PROTOCOL, DOCS = Path(__file__).with_suffix(".yaml"), Path(__file__).parents[1] / "docs"
SPLITS = ("train", "validation", "test")
Protocol = Mapping[str, Any]
PAGE = """\
# Evidence: does a recipe of rmtrain rank real preferences better than the plain one?

```
python scripts/evidence.py run --data DATA --model MODEL --work WORK   # goes on where it was stopped
python scripts/evidence.py write                                       # this page, from docs/evidence.json alone
```

{about}

{train} training questions, {validation} for validation and {test} for the test, chosen by a digest of their ids. Base
model: SmolLM2-135M-Instruct, LoRA of rank {rank} on all linear layers, float32. The protocol is
`scripts/evidence.yaml`; no figure here is written by hand.

| arm | what it is | settings |
| --- | --- | --- |
{arms}

## On the test questions

{tested}

{differences}

{calibrated}

Intervals are 95 %, over questions: they say what other questions would give with these seeds. A difference counts as
found where its interval excludes 0 and all seeds have its sign. Detectable: the smallest true difference that a
comparison of this size and disagreement finds four times in five; a smaller one may exist and not show here.

## On the validation questions

The learning rate was chosen by the loss of seed 0 on these questions, and by nothing else.

{validated}

## What these figures do not say

{limits}

Runs: commit {commits}, torch {torch}, transformers {transformers}, one thread of a CPU ({device}) that other work
shared, so the seconds of two arms are not to be compared.
"""


@dataclass(frozen=True)
class Place:
    """Where data and model are, and where the runs go."""

    data: Path
    model: Path
    work: Path


def prepare(protocol: Protocol, place: Place) -> Path:
    """Write the rows of each split and the recipe that all arms share, unless they are there; returns the recipe."""
    settings, taken = protocol["data"], set[str]()
    place.work.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        with gzip.open(place.data / settings[split]["file"], "rt", encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
        rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
        kept = [row for row in rows if json.dumps(row["prompt"]) not in taken][: settings[split]["rows"]]
        taken |= {json.dumps(row["prompt"]) for row in kept}
        (place.work / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    source = {split: str(place.work / f"{split}.jsonl") for split in SPLITS}
    recipe = {**protocol["recipe"], "data": {"source": source, "max_length": settings["max_length"]}}
    recipe["model"] = {**recipe["model"], "name": str(place.model)}
    path = place.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def planned(protocol: Protocol, arm: str, seed: int, recipe: Path) -> Planned:
    """The run of an arm with a seed."""
    of = protocol["arms"][arm]
    settings = {**of["set"], "run.name": f"{arm}-seed{seed}", "run.seed": seed}
    if "validation" not in of["splits"]:
        settings["evaluation.splits"] = of["splits"]
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())
    setting = Setting([*protocol["arms"]].index(arm) + 1, arm, overrides, load_recipe(recipe, overrides))
    return Planned(setting, seed, setting.with_seed(0), recipe.parent / "runs")


def run(protocol: Protocol, names: Sequence[str], place: Place, kept: Path) -> None:
    """Train and score what is not done yet, and add it to the results."""
    recipe = prepare(protocol, place)
    workers = Workers(1, (), place.work / "logs", print)
    for name in names or [f"{arm}:{seed}" for arm, of in protocol["arms"].items() for seed in of["seeds"]]:
        arm, _, seed = name.rpartition(":")
        of = protocol["arms"][arm]
        if "average" in of:
            parts = [planned(protocol, part, int(seed), recipe).finished() for part in of["average"]]
            if None not in parts:
                add(kept, name, {"average": of["average"]}, average(parts, place.work, name), protocol)
            continue
        one = planned(protocol, arm, int(seed), recipe)
        if workers.train([one]):
            continue
        folder = one.finished()
        assert folder is not None
        if "test" in of["splits"] and not rows_of(folder, "test").exists():
            workers.evaluate(folder, "test")
        rows = {split: rows_by_seed({0: folder}, split)[0] for split in of["splits"]}
        add(kept, name, trained(folder, of["set"]), rows, protocol)


def average(parts: Sequence[Path | None], work: Path, name: str) -> dict[str, Sequence[ScoredRow]]:
    """Average the weights of runs, and score the test split with the result."""
    folder = work.absolute() / "averages" / name.replace(":", "-seed")
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        rmtrain(work, "average", *(str(part.absolute()) for part in parts if part), "--output", str(folder))
    result = rmtrain(work, "eval", "--ckpt", str(folder), "--data", str(work.absolute() / "test.jsonl"))
    return {"test": read_rows(work / result["rows"])}


def rmtrain(work: Path, *arguments: str) -> Any:
    """The JSON document of a command, whose results lie in the work folder."""
    line = [sys.executable, "-m", "rmtrain", *arguments, "--json"]
    return json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True, cwd=work).stdout)


def trained(run: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a finished run: its settings and costs."""
    manifest = read_manifest(run)
    totals = manifest["totals"]
    costs = {"steps": totals["steps"], "tokens": totals["tokens"], "seconds": round(totals["seconds"], 1)}
    return {"settings": settings, **costs, "commit": manifest["git_commit"]}


def add(
    kept: Path, name: str, record: dict[str, Any], scored: Mapping[str, Sequence[ScoredRow]], protocol: Protocol
) -> None:
    """Put a model among the results: its record and rewards, and the preferences of the rows once."""
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"rows": {}, "runs": {}}
    record["machine"] = {key: machine()[key] for key in ("device", "torch", "transformers")}
    record["rewards"] = {}
    for split, rows in scored.items():
        same = [{"id": row.id, "preferences": row.preferences, "lengths": row.lengths} for row in rows]
        known = results["rows"].setdefault(split, json.loads(json.dumps(same)))
        assert known == json.loads(json.dumps(same)), f"{name}: {split} has other rows than the runs before"
        record["rewards"][split] = [[float(f"{reward:.6g}") for reward in row.rewards] for row in rows]
    results["protocol"] = {key: protocol[key] for key in ("title", "data", "recipe")}
    results["runs"] = dict(sorted({**results["runs"], name: record}.items()))
    kept.write_text(_lines(results), encoding="utf-8")


def _lines(results: Mapping[str, Any]) -> str:
    """JSON with a line for each run."""
    runs = ",\n".join(f"{json.dumps(name)}: {json.dumps(of)}" for name, of in results["runs"].items())
    rest = "".join(f"{json.dumps(key)}: {json.dumps(results[key])},\n" for key in ("protocol", "rows"))
    return f'{{\n{rest}"runs": {{\n{runs}\n}}\n}}\n'


def seeds_of(results: Mapping[str, Any], arm: str, split: str) -> Seeds:
    """The scored rows of an arm, by seed."""
    found: dict[int, list[ScoredRow]] = {}
    for name, record in results["runs"].items():
        of, _, seed = name.rpartition(":")
        if of == arm and split in record["rewards"]:
            found[int(seed)] = [
                ScoredRow(
                    id=row["id"],
                    source="",
                    rewards=tuple(rewards),
                    preferences=tuple((better, worse) for better, worse in row["preferences"]),
                    truncated=False,
                    lengths=tuple(row["lengths"]),
                )
                for row, rewards in zip(results["rows"][split], record["rewards"][split], strict=True)
            ]
    return dict(sorted(found.items()))


def averaged(seeds: Seeds) -> Seeds:
    """The mean reward of all seeds, in the place of each seed's own."""
    mean = [
        row._replace(rewards=tuple(sum(own) / len(seeds) for own in zip(*(of.rewards for of in rows), strict=True)))
        for row, *rows in ((rows[0], *rows) for rows in zip(*seeds.values(), strict=True))
    ]
    return dict.fromkeys(seeds, mean)


def figures_table(results: Mapping[str, Any], protocol: Protocol, split: str) -> Table:
    """A line for each arm; the note says on what they were measured."""
    rows, noted = [], ""
    for arm, of in protocol["arms"].items():
        if split not in of["splits"]:
            continue
        seeds = seeds_of(results, arm, split)
        if not seeds:
            rows.append((arm, "not run yet", *[""] * 6))
            continue
        figures = seed_figures(seeds)
        runs = [results["runs"][f"{arm}:{seed}"] for seed in seeds]
        each = [points(seed["accuracy"], 1) for seed in figures.by_seed.values()]
        rows.append(
            (
                arm,
                percent(figures.accuracy),
                interval(figures.low, figures.high),
                ", ".join(each),
                decimal(figures.loss),
                decimal(figures.length_correlation, 2),
                *(mean_of(runs, key) for key in ("tokens", "seconds")),
            )
        )
        noted = (
            f"n = {count(figures.n)} preferences of {count(figures.prompts)} questions for each seed. The longer "
            f"answer is the better one in {percent(figures.length_baseline)} of them."
        )
    headings = ("arm", "accuracy", "95 % interval", "each seed, %", "loss", "length corr.", "tokens a run", "seconds")
    return Table(headings, rows, notes=[noted] if noted else [])


def mean_of(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """A cost of a run; an average of weights has none of its own."""
    return count(sum(run[key] for run in runs) / len(runs)) if key in runs[0] else ""


def differences_table(results: Mapping[str, Any], protocol: Protocol) -> Table:
    """Each arm minus the arm that the protocol names, on the same test rows and seeds."""
    rows = []
    for arm, of in protocol["arms"].items():
        ours, theirs = (seeds_of(results, name, "test") for name in (arm, of.get("against", arm)))
        if "against" in of and ours.keys() & theirs.keys():
            rows.append(_difference_line(f"{arm} − {of['against']}", ours, theirs))
        if arm in ("plain", "ours") and len(ours) > 1:
            title = f"mean reward of the {len(ours)} seeds of {arm} − one seed"
            rows.append(_difference_line(title, averaged(ours), ours))
    headings = ("difference on test, points", "", "95 % interval", "each seed", "detectable", "")
    return Table(headings, rows)


def calibration_table(results: Mapping[str, Any], protocol: Protocol) -> Table:
    """Test figures of the arms that were scored on both splits, before and after a calibration that validation fits."""
    rows = []
    for arm in protocol["arms"]:
        fitted_on, before = (seeds_of(results, arm, split) for split in ("validation", "test"))
        if not fitted_on or not before:
            continue
        for by_length in (False, True):
            label = f"{arm}{', length too' if by_length else ''}"
            try:
                fits = {seed: fit(fitted_on[seed], "", by_length, {}) for seed in before}
            except InputError:  # a seed ranks the validation questions no better than chance
                rows.append((label, "no temperature fits", *[""] * 5))
                continue
            after = {seed: calibrated_rows(fits[seed], of_seed) for seed, of_seed in before.items()}
            loss, (was, now) = seed_difference(after, before, "loss"), map(_means, (before, after))
            rows.append(
                (
                    label,
                    *(f"{decimal(old)} → {decimal(new)}" for old, new in zip(was, now, strict=True)),
                    f"{loss.difference:+.3f}",
                    f"{loss.low:+.3f} to {loss.high:+.3f}",
                )
            )
    headings = (
        "calibrated",
        "accuracy",
        "loss",
        "calibration error",
        "length corr.",
        "change of loss",
        "95 % interval",
    )
    note = (
        "As the command calibrate does it: offset and temperature, and for (length too) a curve over lengths, fitted "
        "on the validation questions. Means over the seeds; losses in nats. A temperature ranks nothing anew. "
        "The length of an answer is counted here after the tokens that all answers to its question begin with."
    )
    return Table(headings, rows, notes=[note])


def _means(seeds: Seeds) -> tuple[float, float, float, float]:
    """Accuracy, loss, calibration error and length correlation, each a mean over seeds."""
    figures = seed_figures(seeds)
    errors = [expected_calibration_error(gaps_of(rows).gaps) for rows in seeds.values()]
    known = [error for error in errors if error is not None]
    return figures.accuracy, figures.loss, sum(known) / len(known), figures.length_correlation or math.nan


def _difference_line(title: str, ours: Seeds, theirs: Seeds) -> tuple[str, ...]:
    found = seed_difference(ours, theirs)
    return (
        title,
        points(found.difference, 1, "+"),
        f"{points(found.low, 1, '+')} to {points(found.high, 1, '+')}",
        ", ".join(points(value, 1, "+") for value in found.by_seed),
        points(found.detectable, 1),
        f"found{' (on one seed)' if found.seeds == 1 else ''}" if found.found else "no difference found",
    )


def settings_of(arm: Mapping[str, Any], protocol: Protocol) -> str:
    """What an arm sets, and only that where it is "as ours, with"."""
    common = protocol["arms"]["ours"]["set"] if arm.get("against") == "ours" else {}
    values = {key: value for key, value in arm.get("set", {}).items() if common.get(key) != value}
    return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in values.items())


def document(results: Mapping[str, Any], protocol: Protocol) -> str:
    """The whole of docs/evidence.md."""
    arms = [f"| {arm} | {of['why']} | {settings_of(of, protocol)} |" for arm, of in protocol["arms"].items()]
    values = {
        "about": protocol["title"].strip(),
        "limits": protocol["limits"].strip(),
        **{split: protocol["data"][split]["rows"] for split in SPLITS},
        "rank": protocol["recipe"]["lora"]["rank"],
        "arms": "\n".join(arms),
        "tested": to_markdown(figures_table(results, protocol, "test")),
        "differences": to_markdown(differences_table(results, protocol)),
        "calibrated": to_markdown(calibration_table(results, protocol)),
        "validated": to_markdown(figures_table(results, protocol, "validation")),
        **{key: next(iter(results["runs"].values()))["machine"][key] for key in ("torch", "transformers", "device")},
        "commits": ", ".join(sorted({of["commit"][:7] for of in results["runs"].values() if "commit" in of})),
    }
    return PAGE.format(**values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "write"))
    parser.add_argument("names", nargs="*", metavar="ARM:SEED", help="default: all runs of the protocol")
    for name in ("data", "model", "work"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--protocol", type=Path, default=PROTOCOL)
    parser.add_argument("--results", type=Path, default=DOCS / "evidence.json")
    parser.add_argument("--page", type=Path, default=DOCS / "evidence.md")
    asked = parser.parse_args()
    protocol = yaml.safe_load(asked.protocol.read_text(encoding="utf-8"))
    if asked.action == "run":
        if None in (asked.data, asked.model, asked.work):
            parser.error("run needs --data, --model and --work")
        run(protocol, asked.names, Place(asked.data, asked.model, asked.work), asked.results)
    else:
        results = json.loads(asked.results.read_text(encoding="utf-8"))
        asked.page.write_text(document(results, protocol), encoding="utf-8")


if __name__ == "__main__":
    main()
