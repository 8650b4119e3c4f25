"""Run the protocols of scripts/evidence on real preferences, and write docs/evidence.md from their results.

    python scripts/evidence.py run --data DATA --model MODEL --work WORK
    python scripts/evidence.py run truthfulqa/ours:1 --data DATA --model MODEL --work WORK
    python scripts/evidence.py merge RESULTS/truthfulqa.json     # runs that another machine has done
    python scripts/evidence.py write

`run` goes through the runs of the protocols, or those named, by `rmtrain train` and `rmtrain eval`: it skips what is
done, resumes what was stopped, and adds each finished run to the protocol's file in docs/evidence, with the rewards of
its rows and no text. `write` makes the page from these files alone.
"""

import argparse
import functools
import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evidence_trl
import yaml
from evidence_page import Protocol, page
from sides import machine

from rmtrain.evaluation.results import ScoredRow, read_rows
from rmtrain.evaluation.sweep import rows_by_seed, rows_of
from rmtrain.recipe.grid import Setting
from rmtrain.recipe.load import load_recipe
from rmtrain.runs import read_manifest
from rmtrain.training.sweep import Planned, Workers

PROTOCOLS, DOCS = Path(__file__).with_suffix(""), Path(__file__).parents[1] / "docs"
NAMES = (  # in the page's order
    "truthfulqa",
    "safety",
    "graded",
    "helpful",
    "helpful_1200",
    "helpful_all",
    "sources",
    "sources_all",
    "scaling",
)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Place:
    """Where data and model are, and where the runs go."""

    data: Path
    model: Path
    work: Path


def prepare(protocol: Protocol, place: Place) -> Path:
    """Write the rows of each split and the recipe that all arms share, unless they are there; returns the recipe."""
    settings, source, taken = protocol["data"], dict[str, Any](), set[str]()
    place.work.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        if split in settings:
            source[split] = str(place.work / f"{split}.jsonl")
            write_rows(place, settings, settings[split], Path(source[split]), taken)
        named = {name: of[split] for name, of in settings.get("sources", {}).items() if split in of}
        for name, wanted in named.items():
            path = place.work / f"{split}-{name}.jsonl"
            write_rows(place, settings, wanted, path, taken)
            source.setdefault(split, []).append({"source": str(path), "name": name})
    recipe = {**protocol["recipe"], "data": {"source": source, "max_length": settings["max_length"]}}
    recipe["model"] = {**recipe["model"], "name": str(place.model)}
    path = place.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def write_rows(
    place: Place, settings: Mapping[str, Any], wanted: Mapping[str, Any], path: Path, taken: set[str]
) -> None:
    """Write as many rows as a split wants, those with the least digests of their ids; no prompt is taken twice."""
    file = place.data / wanted["file"]
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
        found = (shortened(json.loads(line), settings.get("answers")) for line in stream)
        rows = [row for row in found if row and fits(row, wanted, settings.get("characters"))]
    rows.sort(key=lambda row: hashlib.sha256(str(row["id"]).encode()).hexdigest())
    kept = [row for row in rows if json.dumps(row["prompt"]) not in taken][: wanted["rows"]]
    taken |= {json.dumps(row["prompt"]) for row in kept}
    if "having" in wanted:  # a benchmark's other columns say nothing of the preference
        kept = [{name: row[name] for name in ("id", "prompt", "chosen", "rejected")} for row in kept]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def fits(row: Mapping[str, Any], wanted: Mapping[str, Any], characters: int | None) -> bool:
    """Whether a row has the wanted values, and its prompt and longest answer have at most so many characters."""
    if any(row[name] not in values for name, values in wanted.get("having", {}).items()):
        return False
    answers = row.get("completions") or [row["chosen"], row["rejected"]]
    return characters is None or length_of(row["prompt"]) + max(map(length_of, answers)) <= characters


def length_of(text: Any) -> int:
    """Characters of a text, or of the texts of messages."""
    return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)


def shortened(row: dict[str, Any], answers: Mapping[str, int] | None) -> dict[str, Any] | None:
    """A scored row without its long answers; None where too few are left."""
    if answers is None:
        return row
    kept = [number for number, text in enumerate(row["completions"]) if len(text) <= answers["characters"]]
    columns = {name: [row[name][number] for number in kept] for name in ("completions", "scores")}
    return {"id": row["id"], "prompt": row["prompt"], **columns} if len(kept) >= answers["at_least"] else None


def planned(protocol: Protocol, arm: str, seed: int, recipe: Path) -> Planned:
    """The run of an arm with a seed."""
    of = protocol["arms"][arm]
    settings = {**of["set"], "run.name": f"{arm}-seed{seed}", "run.seed": seed}
    if "validation" not in of["splits"]:
        settings["evaluation.splits"] = of["splits"]
    if "base" in of:  # another base model, which lies beside the protocol's
        settings["model.name"] = str(Path(load_recipe(recipe).recipe.model.name).parent / of["base"])
    if "train" in of:
        settings["data.source.train"] = [{"source": str(recipe.parent / "train.jsonl"), "name": "train", **of["train"]}]
    if "rows" in of:  # of each source
        settings["data.source.train"] = [
            {"source": str(recipe.parent / f"train-{name}.jsonl"), "name": name, "limit": most}
            for name, most in of["rows"].items()
        ]
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())
    setting = Setting([*protocol["arms"]].index(arm) + 1, arm, overrides, load_recipe(recipe, overrides))
    return Planned(setting, seed, setting.with_seed(0), recipe.parent / "runs")


def execute(protocol: Protocol, names: Sequence[str], place: Place, kept: Path) -> None:
    """Train and score what is not done yet, and add it to the results."""
    recipe = prepare(protocol, place)
    workers = Workers(1, (), place.work / "logs", print)
    for name in names or [f"{arm}:{seed}" for arm, of in protocol["arms"].items() for seed in of["seeds"]]:
        arm, _, seed = name.rpartition(":")
        of = protocol["arms"][arm]
        if "average" in of:
            parts = [planned(protocol, part, int(seed), recipe).finished() for part in of["average"]]
            if None not in parts:
                add(kept, name, {"average": of["average"]}, average(parts, place.work, name), protocol, place)
            continue
        if "trl" in of:
            add(kept, name, *trained_by_trl(protocol, arm, int(seed), recipe, place), protocol, place)
            continue
        one = planned(protocol, arm, int(seed), recipe)
        if workers.train([one]):
            continue
        folder = one.finished()
        assert folder is not None
        if "test" in of["splits"] and not rows_of(folder, "test").exists():
            workers.evaluate(folder, "test")
        rows = {split: rows_by_seed({0: folder}, split)[0] for split in of["splits"]}
        add(kept, name, trained(folder, of["set"]), rows, protocol, place)


def trained_by_trl(
    protocol: Protocol, arm: str, seed: int, recipe: Path, place: Place
) -> tuple[dict[str, Any], dict[str, Sequence[ScoredRow]]]:
    """TRL's run with a seed, in the processor time of the arm of rmtrain that the protocol names."""
    of, work = protocol["arms"][arm], place.work.absolute() / "trl"
    output, steps, budget = work / f"{arm}-seed{seed}", work / f"{arm}.json", work / "seconds"
    limits = protocol["arms"][of["trl"]].get("rows", {"": None})  # of each source
    pairs = evidence_trl.write_pairs(
        {file_of(place, "train", name): most for name, most in limits.items()}, work / "data"
    )
    peer = evidence_trl.Peer(place.model.absolute(), work / "data", of.get("options", ()))
    if not budget.exists():
        like = planned(protocol, of["trl"], 0, recipe).setting.overrides
        line = [sys.executable, "-m", "rmtrain", "train", str(recipe.absolute()), *like]
        line += [f"run.folder={work / 'timed'}", "evaluation.splits=[]"]
        budget.write_text(str(evidence_trl.processor_seconds(line, work)), encoding="utf-8")
    if not steps.exists():
        found = peer.plan(float(budget.read_text(encoding="utf-8")), work / f"{arm}-probe")
        steps.write_text(json.dumps(found), encoding="utf-8")
    record = json.loads(steps.read_text(encoding="utf-8"))
    if not (output / "adapter_model.safetensors").exists():
        peer.train(output, seed, record["steps"])
    named = [name for name, of in protocol["data"].get("sources", {"": {"test": {}}}).items() if "test" in of]
    rows = [row for name in named for row in scored(output, name, protocol["data"]["max_length"], place)]
    seen = {"pairs": pairs, "pairs_seen": min(pairs, evidence_trl.PAIRS * record["steps"])}
    return record | seen, {"test": rows}


def file_of(place: Place, split: str, name: str) -> Path:
    """The rows of a split, or of one source of it."""
    return place.work.absolute() / f"{split}{name and '-'}{name}.jsonl"


def scored(model: Path, name: str, max_length: int, place: Place) -> list[ScoredRow]:
    """The test rows, or those of one source of it, scored by a model of TRL's, and named as rmtrain names them."""
    wanted = ("--data", str(file_of(place, "test", name)), "--max-length", str(max_length), "--dtype", "float32")
    rows = read_rows(place.work / rmtrain(place.work, "eval", "--ckpt", str(model), *wanted)["rows"])
    if not name:
        return rows
    return [row._replace(id=f"{name}/{row.id}", source="/".join(filter(None, (name, row.source)))) for row in rows]


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
    """The record of a finished run: its settings, the prompts that it trained on by source, and its costs."""
    manifest = read_manifest(run)
    totals = manifest["totals"]
    costs = {"steps": totals["steps"], "tokens": totals["tokens"], "seconds": round(totals["seconds"], 1)}
    prompts = {name: of["groups"] for name, of in manifest["data"]["train"].get("entries", {}).items()}
    return {"settings": settings, "prompts": prompts, **costs, "commit": manifest["git_commit"]}


def decided(rows: Sequence[ScoredRow], source: Path, least_gap: float) -> Sequence[ScoredRow]:
    """The rows with those preferences alone whose scores lie so far apart."""
    if not least_gap:
        return rows
    scores = {row["id"]: row["scores"] for row in map(json.loads, source.read_text(encoding="utf-8").splitlines())}
    kept = []
    for row in rows:
        of = scores[row.id]
        far = tuple((better, worse) for better, worse in row.preferences if of[better] - of[worse] >= least_gap)
        kept.append(row._replace(preferences=far))
    return [row for row in kept if row.preferences]


def add(
    kept: Path,
    name: str,
    record: dict[str, Any],
    scored: Mapping[str, Sequence[ScoredRow]],
    protocol: Protocol,
    place: Place,
) -> None:
    """Put a model among the results: its record and rewards, and the preferences of the rows once."""
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"rows": {}, "runs": {}}
    record["machine"] = {key: machine()[key] for key in ("device", "torch", "transformers")}
    record["rewards"] = {}
    for split, every in scored.items():
        rows = decided(every, place.work / f"{split}.jsonl", protocol["data"].get(split, {}).get("least_gap", 0.0))
        same = [{"id": row.id, "preferences": row.preferences, "lengths": row.lengths} for row in rows]
        if "sources" in protocol["data"]:
            same = [{**of, "source": row.source} for of, row in zip(same, rows, strict=True)]
        same = json.loads(json.dumps(same))
        known = results["rows"].setdefault(split, same)
        if "base" in protocol["arms"][name.rpartition(":")[0]]:  # another tokenizer counts other lengths
            record.setdefault("lengths", {})[split] = [of["lengths"] for of in same]
            same = [{**of, "lengths": first["lengths"]} for of, first in zip(same, known, strict=True)]
        assert known == same, f"{name}: {split} has other rows than the runs before"
        record["rewards"][split] = [[float(f"{reward:.6g}") for reward in row.rewards] for row in rows]
    results["protocol"] = {key: protocol[key] for key in ("title", "data", "recipe")}
    results["runs"] = dict(sorted({**results["runs"], name: record}.items()))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(_lines(results), encoding="utf-8")


def _lines(results: Mapping[str, Any]) -> str:
    """JSON with a line for each run."""
    compact = functools.partial(json.dumps, separators=(",", ":"))
    runs = ",\n".join(f"{compact(name)}: {compact(of)}" for name, of in results["runs"].items())
    rest = "".join(f"{compact(key)}: {compact(results[key])},\n" for key in ("protocol", "rows"))
    return f'{{\n{rest}"runs": {{\n{runs}\n}}\n}}\n'


def extends(new: Any, old: Any) -> bool:
    """Whether settings state all that older ones do, with the same values."""
    if isinstance(new, dict) and isinstance(old, dict):
        return all(key in new and extends(new[key], value) for key, value in old.items())
    return bool(new == old)


def _same_rows(kept: Sequence[Any], other: Sequence[Any], runs: Iterable[Mapping[str, Any]]) -> bool:
    """Whether rows are the same; runs of other base models alone have their own lengths, and their rows count those."""
    if all("lengths" in run for run in runs):
        kept, other = ([{**row, "lengths": None} for row in rows] for rows in (kept, other))
    return kept == other


def merge(found: Path, kept: Path) -> None:
    """Add the runs of a results file of the same protocol and rows; a new arm may have rows of its own to train on."""
    other, name = json.loads(found.read_text(encoding="utf-8")), kept.name
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {**other, "runs": {}}
    older, newer = results["protocol"], other["protocol"]
    if extends(older["data"], newer["data"]):
        older, newer = newer, older
    same = {
        "data": extends(newer["data"], older["data"]),
        "recipe": older["recipe"] == newer["recipe"],
        "rows": bool(both := results["rows"].keys() & other["rows"].keys())
        and all(_same_rows(results["rows"][split], other["rows"][split], other["runs"].values()) for split in both),
    }
    if different := [part for part, equal in same.items() if not equal]:
        raise SystemExit(f"{found}: other {' and '.join(different)} than in {name}")
    results["protocol"] = newer
    results["rows"] = {**other["rows"], **results["rows"]}  # not every arm scores all splits
    results["runs"] = dict(sorted({**results["runs"], **other["runs"]}.items()))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(_lines(results), encoding="utf-8")


def protocol_named(name: str) -> Protocol:
    """A protocol of scripts/evidence."""
    protocol: Protocol = yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text(encoding="utf-8"))
    return protocol


def written(results: Path) -> str:
    """The page of the results in a folder: of each protocol, and of the benchmarks that have run."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")}
    sections = [(protocol_named(name), found[name]) for name in NAMES if name in found]
    losses = {dtype: found[f"losses-{dtype}"] for dtype in ("float32", "bfloat16") if f"losses-{dtype}" in found}
    return page(sections, found.get("costs"), losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "merge", "write"))
    parser.add_argument("names", nargs="*", metavar="PROTOCOL/ARM:SEED", help="default: all runs; for merge, files")
    for name in ("data", "model", "work"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--results", type=Path, default=DOCS / "evidence", help="folder of the protocols' results")
    parser.add_argument("--page", type=Path, default=DOCS / "evidence.md")
    asked = parser.parse_args()
    if asked.action == "run" and None in (asked.data, asked.model, asked.work):
        parser.error("run needs --data, --model and --work")
    if asked.action == "merge":
        for found in map(Path, asked.names):
            merge(found, asked.results / found.name)
        return
    if asked.action == "write":
        asked.page.write_text(written(asked.results), encoding="utf-8")
        return
    for name in NAMES:
        runs = [run.removeprefix(f"{name}/") for run in asked.names if run.startswith(f"{name}/")]
        if runs or not asked.names:
            place = Place(asked.data, asked.model, asked.work / name)
            execute(protocol_named(name), runs, place, asked.results / f"{name}.json")


if __name__ == "__main__":
    main()
