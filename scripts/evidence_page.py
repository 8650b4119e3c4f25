"""The page docs/evidence.md, made from the protocols and their results alone."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evidence_tables import (
    Protocol,
    calibration_table,
    costs_table,
    differences_table,
    figures_table,
    laws_table,
    losses_table,
    sources_tables,
    trained_table,
)

from rmtrain.reporting.table import to_markdown
from rmtrain.reporting.text import count, decimal

PAGE = """\
# Evidence: does a recipe of rmtrain rank real preferences better than the plain one?

```
python scripts/evidence.py run --data DATA --model MODEL --work WORK   # goes on where it was stopped
python scripts/evidence.py write                                       # this page, from docs/evidence alone
```

Arms are compared on the same test prompts, which no run trained on. The base model is SmolLM2-135M-Instruct, in float32
where nothing else is said, with LoRA of rank 16 on all linear layers. Each section has a protocol in `scripts/evidence`
and its results in `docs/evidence`; no figure here is written by hand.

Intervals are 95 %, over prompts: they say what other prompts would give with these seeds. A difference counts as
found where its interval excludes 0 and all seeds have its sign. Detectable: the smallest true difference that a
comparison of this size and disagreement finds four times in five; a smaller one may exist and not show here.

{sections}
Runs, of commits {commits}: {machines}. On a CPU they had one thread, and other work ran beside them, so the seconds of
two arms are not to be compared.
"""
SECTION = """\
## {heading}

{about}

Prompts: {rows}, chosen by a digest of their ids.

| arm | what it is | settings |
| --- | --- | --- |
{arms}

{tables}

**What these figures do not say.** {limits}
"""
LOSSES = """\
## The losses of TRL, step by step

```
python scripts/bench_training.py --model MODEL --data train_hh_helpful.jsonl.gz --max-length {max_length} \\
    --steps {steps} --repeats {repeats} --sides rmtrain TRL --dtype {dtype} --json docs/evidence/losses-{dtype}.json
```

{table}

SmolLM2-135M-Instruct with LoRA of rank {rank}, pairs of hh-rlhf helpful of at most {max_length} tokens, {groups} a
step. Both sides begin with the same weights, score head and adapters and see the same pairs in the same order; TRL runs
the prompt of a pair twice and pads: {trl:,} tokens, where rmtrain runs {rmtrain:,}. The losses differ by at most
{apart}; in bfloat16 the two sides round the sums of different rows.
"""
COSTS = """\
## What each objective costs

```
python scripts/bench_objectives.py --json docs/evidence/costs.json
```

{table}

SmolLM2-135M-Instruct, LoRA, {dtype}, {threads} thread, {groups} prompts and {tokens} tokens a step of the demo rows.
Each objective ran {repeats} times, in turns with the others, and {steps} steps were timed; a run counts with its
median. Seconds are those of the processor; the machine's load was {load} at the end. `sum_to_zero` and
`length_decorrelation` make one more forward pass, and `text_loss` reads the language head.
"""


def settings_of(arm: Mapping[str, Any], protocol: Protocol) -> str:
    """What an arm sets, and only that where it is "as ours, with"."""
    common = protocol["arms"]["ours"]["set"] if arm.get("against") == "ours" else {}
    values = {key: value for key, value in arm.get("set", {}).items() if common.get(key) != value}
    values |= {f"data.source.train.{key}": value for key, value in arm.get("train", {}).items()}
    if "options" in arm:
        return f"`{' '.join(arm['options'])}`"
    return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in values.items())


def section(protocol: Protocol, results: Mapping[str, Any]) -> str:
    """The figures of one protocol."""
    arms = [f"| {arm} | {of['why']} | {settings_of(of, protocol)} |" for arm, of in protocol["arms"].items()]
    splits = {"train": "for training", "validation": "for validation", "test": "for the test"}
    named = [f"{protocol['data'][split]['rows']} {use}" for split, use in splits.items() if split in protocol["data"]]
    if "sources" in protocol["data"]:
        named = ["those of the tables below"]
        tables = [trained_table(results, protocol), *sources_tables(results, protocol)]
    else:
        tables = [figures_table(results, protocol, "test"), differences_table(results, protocol)]
        tables.append(laws_table(results, protocol) if "laws" in protocol else calibration_table(results, protocol))
    parts = [to_markdown(table) for table in tables if table.rows]
    parts += [peer_note(arm, of["trl"], results["runs"]) for arm, of in protocol["arms"].items() if "trl" in of]
    if "validation" in protocol["data"]:
        parts += [f"On the validation prompts: {protocol['tuned'].strip()}"]
        parts += [to_markdown(figures_table(results, protocol, "validation"))]
    return SECTION.format(
        heading=protocol["heading"],
        about=protocol["title"].strip(),
        rows=" and ".join(", ".join(named).rsplit(", ", 1)),
        arms="\n".join(arms),
        tables="\n\n".join(parts),
        limits=protocol["limits"].strip(),
    )


def peer_note(arm: str, like: str, runs: Mapping[str, Any]) -> str:
    """How far TRL came in the processor time of an arm of rmtrain."""
    record = next((run for name, run in runs.items() if name.startswith(f"{arm}:")), None)
    if record is None:
        return f"{arm}: not run yet."
    return (
        f"{arm}: {count(record['steps'])} steps of {record['step']} s, in which it saw {count(record['pairs_seen'])} "
        f"of {count(record['pairs'])} pairs in the {count(record['budget'])} processor seconds, start included, in "
        f"which {like} sees all of them. The number of steps was set by two short runs beforehand."
    )


def machines_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the runs ran on, and how many on each."""
    found = Counter(tuple(run["machine"][key] for key in ("device", "torch", "transformers")) for run in runs)
    return "; ".join(
        f"{number} on {device} with torch {torch} and transformers {transformers}"
        for (device, torch, transformers), number in found.most_common()
    )


def losses_section(losses: Mapping[str, Mapping[str, Any]]) -> str:
    """rmtrain's losses beside those of TRL, by data type."""
    first = next(iter(losses.values()))
    tokens = {name.lower(): of["tokens"] for name, of in first["sides"].items()}
    apart = " and ".join(f"{farthest(found):.1e} in {dtype}" for dtype, found in losses.items())
    return LOSSES.format(table=to_markdown(losses_table(losses)), apart=apart, **tokens, **first["options"])


def farthest(found: Mapping[str, Any]) -> float:
    """The largest difference of the two sides' losses in a step."""
    ours, theirs = (found["sides"][side]["losses"] for side in ("rmtrain", "TRL"))
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def page(
    sections: Sequence[tuple[Protocol, Mapping[str, Any]]],
    costs: Mapping[str, Any] | None = None,
    losses: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The whole of docs/evidence.md.

    Args:
        sections: a protocol and its results each.
        costs: of the objectives, by scripts/bench_objectives.py.
        losses: of rmtrain and TRL, by data type, by scripts/bench_training.py.
    """
    runs = [run for _, results in sections for run in results["runs"].values()]
    commits = ", ".join(sorted({run["commit"][:7] for run in runs if run.get("commit")}))
    parts = [section(*pair) for pair in sections]
    if losses:
        parts.append(losses_section(losses))
    if costs is not None:
        asked, where = costs["options"], costs["machine"]
        about = {key: asked[key] for key in ("repeats", "steps", "groups", "dtype", "threads")}
        load = decimal(where["load"], 1)
        parts += [
            COSTS.format(table=to_markdown(costs_table(costs)), tokens=costs["tokens_a_step"], load=load, **about)
        ]
    return PAGE.format(sections="\n".join(parts), commits=commits, machines=machines_of(runs))
