"""Hostile and damaged input for every command: what a case changes, and which command is run on it."""

import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import typer
import yaml

from rmtrain.cli.app import app

SECRET = "hunter2"
DEEP = "[" * 1000 + "]" * 1000
HUGE = "9" * 400
TEXTS = [
    *(
        "",
        " ",
        ".",
        "..",
        "../..",
        "a/b/",
        "~nouser/x",
        "-",
        "--",
        "-1",
        "0",
        "nan",
        "inf",
        "1e999",
        HUGE,
        "null",
        "[]",
    ),
    *(
        "\x1b[31mred",
        "\x1b]0;t\x07",
        "a\nb",
        "\t",
        "\u202egnp",
        "x" * 300,
        "日" * 100,
        "\udcff\udcfe",
        "{{ 1/0 }}",
        "{x}",
        "%s",
    ),
    *("[bold]", "[/]", "\\", "'", '"', "`", "<script>", "&", "$HOME", "*", "?", "@", ":", "a:b:c@d@e", "org/name@rev"),
    *(
        "org/name",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "none",
        "true",
        "test",
        "train",
        "demo",
        "text",
        "float32",
    ),
    f"http://user:{SECRET}@host/x",
    f"https://user:{SECRET}@127.0.0.1:9/org/name",
]
FILES = [
    "rows.jsonl",
    "pairs.csv",
    "recipe.yaml",
    "runs",
    "runs/r",
    "runs/r/final",
    "base",
    "published.json",
    "gone.jsonl",
]
RESULTS = ["manifest.json", "eval/test.json", "eval/test.rows.jsonl", "rewardbench/rewardbench-1.json"]
RESULTS += ["metrics.jsonl", "recipe.yaml", "final/rmtrain.json"]
MODEL = ["final/adapter_model.safetensors", "final/adapter_config.json", "final/rmtrain.json", "final/tokenizer.json"]
MODEL += ["final/tokenizer_config.json", "final/config.json", "final/chat_template.jinja"]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 5, 1e308, -0.0, 10**400, 2**63, -(2**63) - 1, [], {}, [1], {"a": 1}, [[]], [None]),
    *TEXTS,
    *(float("nan"), float("inf"), "999", ["x"] * 50, {"x": {"y": {"z": []}}}, "2026-01-01T00:00:00+00:00", "2026"),
]
LINES = ["&a [*a]", "!!python/object:os.system {}", "<<: *x", "? [a]: b", "---", "- " * 2000, "{" * 2000, "[" * 2000]
LINES += [f"x: {HUGE}", "\t", "%YAML 9", "key: 12:30:00", "run: {name: ../x}", "\x85"]
CHOICES = {"benchmark": "rewardbench-1", "era": "2024-03", "sort": "with-prior", "form": "markdown", "dtype": "float32"}
CHOICES |= {"reference_free": "avg", "parity": "float32", "max_length": "32", "tokens_per_batch": "50"}
OUTPUTS = ["out/x", "out/x.json", "out/x.png", "", "rows.jsonl", "runs", "/dev/null", "/dev/full", f"out/{'x' * 240}"]


class Case(NamedTuple):
    """One command on a world that was changed."""

    argv: list[str]
    changed: str = ""  # what was done before, for the message
    outputs: tuple[str, ...] = ()  # beginnings of the paths that the command may write, in the world


def draw(kind: str, seed: int, world: Path) -> Case:
    """The case of a kind and seed; changes the world."""
    return KINDS[kind](random.Random(f"{kind} {seed}"), world)


# Values and bytes


def spoil_value(rng: random.Random, value: Any) -> Any:
    """The same with one part of it replaced, left out, doubled or nested."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        way = rng.random()
        if way < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.2:
            return {**value, rng.choice(TEXTS): value[key]}
        return {**value, key: spoil_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index, way = rng.randrange(len(value)), rng.random()
        if way < 0.1:
            return value[:index] + value[index + 1 :]
        if way < 0.2:
            return [*value, value[index]]
        return [*value[:index], spoil_value(rng, value[index]), *value[index + 1 :]]
    return rng.choice(VALUES)


def dump(value: Any) -> str:
    """JSON, strict or not."""
    try:
        return json.dumps(value)
    except ValueError:  # an integer of more digits than Python writes
        return json.dumps(value, default=str)


def spoil_json(rng: random.Random, text: str) -> str:
    way = rng.random()
    if way < 0.05:
        return rng.choice(
            [DEEP, '{"a":' * 1000 + "1" + "}" * 1000, "", "null", HUGE, "[" * 100_000, '{"a": 1, "a": 2}']
        )
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        value = spoil_value(rng, value)
    text = dump(value)
    if way < 0.2:  # a number grows beyond what a float or an integer holds
        digits = [i for i, c in enumerate(text) if c.isdigit()]
        if digits:
            place = rng.choice(digits)
            text = text[:place] + rng.choice([HUGE, "1e999", DEEP]) + text[place + 1 :]
    return text


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return rng.randbytes(10)
    place, way = rng.randrange(len(data)), rng.randrange(6)
    if way == 0:
        return data[:place]
    if way == 1:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if way == 2:
        return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
    if way == 3:
        return data[:place] + b"\xff\xfe" + data[place:]
    if way == 4:
        return rng.choice([b"", b"\x00" * 100, b"\x89PNG\r\n", b"version https://git-lfs", b"<html>", b"\xef\xbb\xbf"])
    return data + data[:place]


def spoil_file(rng: random.Random, path: Path) -> str:
    """Damage a file in place; returns how."""
    way = rng.random()
    if way < 0.04:
        path.unlink()
        return f"{path.name} removed"
    if way < 0.12:
        path.unlink()
        kind = rng.choice(["folder", "loop", "dangling", "device", "pipe"])
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"loop": path.name, "dangling": "gone", "device": "/dev/zero"}[kind])
        return f"{path.name} made a {kind}"
    if way < 0.4 or path.suffix not in (".json", ".jsonl", ".yaml"):
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))
        return f"{path.name} with other bytes"
    text = path.read_text()
    if path.suffix == ".yaml":
        path.write_text(spoil_yaml(rng, text))
    elif path.suffix == ".jsonl":
        lines = text.splitlines() or ["{}"]
        index = rng.randrange(len(lines))
        lines[index] = spoil_json(rng, lines[index])
        path.write_text("".join(line + "\n" for line in lines))
    else:
        path.write_text(spoil_json(rng, text))
    return f"{path.name} with other values"


def spoil_yaml(rng: random.Random, text: str) -> str:
    if rng.random() < 0.5:
        return yaml.safe_dump(spoil_value(rng, yaml.safe_load(text)), allow_unicode=rng.random() < 0.5)
    lines = text.splitlines()
    index = rng.randrange(len(lines))
    lines[index] = rng.choice([lines[index] * 2, f"  {lines[index]}", *LINES])
    return "\n".join(lines)


# Kinds


def _pick(rng: random.Random, options: list[list[str]]) -> list[str]:
    chosen = rng.choice(options)
    return [*chosen, "--json"] if rng.random() < 0.5 and chosen[0] not in ("score", "recipes") else chosen


def of_results(rng: random.Random, world: Path) -> Case:
    """A run folder whose results are hostile, beside a whole one."""
    told = [spoil_file(rng, world / "runs" / "r" / name) for name in rng.choices(RESULTS, k=rng.choice([1, 1, 2]))[:1]]
    argv = _pick(
        rng,
        [
            ["runs", "list"],
            ["runs", "list"],
            ["runs", "show", "runs/r"],
            ["leaderboard"],
            ["leaderboard", "--format", "markdown", "--sort", rng.choice(["with-prior", "chat-hard", "published"])],
            ["leaderboard", "runs/r/rewardbench/rewardbench-1.json"],
            ["compare", "runs/r", "runs/s"],
            ["compare", "runs/r/eval/test.json", "runs/s:test"],
            ["rewardbench", "--results", "runs/r/rewardbench/rewardbench-1.json", "--output", "out/flat.json"],
            ["eval", "--split", "test"],
            ["train", "--resume", "runs/r", "--dry-run"],
        ],
    )
    outputs = ("runs/s/eval/", "runs/r/eval/", "results/", "runs/r/compare/", "runs/s/compare/", "out/flat.json")
    return Case(argv, "; ".join(told), outputs if argv[0] in ("eval", "compare", "rewardbench") else ())


def of_checkpoints(rng: random.Random, world: Path) -> Case:
    """A damaged checkpoint, adapter or base."""
    folder = world / "runs" / "r"
    names = [name for name in MODEL if (folder / name).exists()]
    paths = [*(folder / name for name in names), *(p for p in sorted((world / "base").iterdir()) if p.is_file())]
    told = spoil_file(rng, rng.choice(paths))
    argv = _pick(
        rng,
        [
            ["eval", "--ckpt", "runs/r", "--data", "rows.jsonl"],
            ["score", "rows.jsonl", "--ckpt", "runs/r/final", "--output", "out/scored.jsonl"],
            ["score", "rows.jsonl", "--ckpt", "base", "--output", "out/scored.jsonl"],
            ["rewardbench", "--ckpt", "runs/r", "--data", "bench.jsonl"],
            ["compare", "runs/r", "runs/s"],
            ["runs", "show", "runs/r"],
        ],
    )
    return Case(
        argv,
        told,
        ("runs/r/eval/", "runs/r/rewardbench/", "runs/r/compare/", "results/", "out/scored.jsonl", "runs/s/compare/"),
    )


def of_rows(rng: random.Random, world: Path) -> Case:
    """Hostile rows in each kind of file."""
    rows = [json.loads(line) for line in (world / rng.choice(["rows.jsonl", "bench.jsonl"])).read_text().splitlines()]
    for _ in range(rng.choice([1, 1, 2, 6])):
        index = rng.randrange(len(rows))
        rows[index] = spoil_value(rng, rows[index])
    suffix = rng.choice([".jsonl", ".jsonl", ".json", ".csv", ".jsonl.gz", ".parquet"])
    path = world / f"hostile{suffix}"
    path.write_bytes(_as_file(rng, rows, suffix))
    told = f"{path.name}"
    if rng.random() < 0.25:
        told = spoil_file(rng, path)
    argv = _pick(
        rng,
        [
            ["score", path.name, "--ckpt", "runs/r", "--output", "out/scored.jsonl"],
            ["eval", "--ckpt", "runs/r", "--data", path.name],
            ["eval", "--ckpt", "runs/r", "--data", path.name, "--split", rng.choice(["train", "../x", *TEXTS])],
            ["rewardbench", "--ckpt", "runs/r", "--data", path.name, "--output", "out/flat.json"],
            ["data", "recipe.yaml", f"data.source={path.name}", "data.splits={train: train}"],
            ["train", "recipe.yaml", "--dry-run", f"data.source={{train: {path.name}, test: {path.name}}}"],
        ],
    )
    return Case(argv, told, ("runs/r/eval/", "runs/r/rewardbench/", "results/", "out/"))


def _as_file(rng: random.Random, rows: list[Any], suffix: str) -> bytes:
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        for attempt in (rows, [{k: str(v) for k, v in r.items()} for r in rows if isinstance(r, dict)], [{"a": 1}]):
            try:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(attempt), buffer)
                return buffer.getvalue()
            except Exception:
                buffer = io.BytesIO()
        return b""
    if suffix == ".csv":
        columns = sorted({str(key) for row in rows if isinstance(row, dict) for key in row})
        cells = [[_cell(row.get(c, "")) for c in columns] for row in rows if isinstance(row, dict)]
        return "\n".join(",".join(line) for line in [list(map(_cell, columns)), *cells]).encode("utf-8", "replace")
    if suffix == ".json":
        text = dump(rng.choice([rows, {"train": rows}, {"train": rows, rng.choice(TEXTS): rows}]))
    else:
        text = "".join(dump(row) + "\n" for row in rows)
    data = text.encode("utf-8", "surrogatepass")
    return gzip.compress(data, 1) if suffix == ".jsonl.gz" else data


def _cell(value: Any) -> str:
    return '"' + (value if isinstance(value, str) else dump(value)).replace('"', '""') + '"'


def of_recipes(rng: random.Random, world: Path) -> Case:
    """A recipe with hostile values, or overrides of it."""
    path, told, overrides = world / "recipe.yaml", "", list[str]()
    recipe = yaml.safe_load(path.read_text())
    if rng.random() < 0.6:
        told = spoil_file(rng, path)
    else:
        keys = [f"{section}.{key}" for section, part in recipe.items() for key in part]
        keys += [
            "lora.targets",
            "model.chat_template",
            "optim.betas",
            "loss.margin",
            "run.name",
            "run.seed",
            "optim.max_steps",
        ]
        keys += ["data.limit", "data.columns", "evaluation.splits", "distributed.deepspeed_config", "model.revision"]
        for key in rng.sample(keys, rng.choice([1, 1, 2])):
            value = rng.choice(VALUES)
            overrides.append(f"{key}={value if isinstance(value, str) else dump(value)}")
    argv = _pick(
        rng,
        [
            ["train", "recipe.yaml", "--print-config", *overrides],
            ["train", "recipe.yaml", "--dry-run", *overrides],
            ["data", "recipe.yaml", *overrides],
        ],
    )
    return Case(argv, told)


def of_arguments(rng: random.Random, world: Path) -> Case:
    """Any command with arguments and options drawn from all that it has."""
    command: Any = typer.main.get_command(app)
    argv = list[str]()
    while hasattr(command, "commands"):
        name = rng.choice([name for name in command.commands if name not in ("doctor",)])
        argv.append(name)
        command = command.commands[name]
    writes = ("output", "plot", "destination")
    for parameter in command.params:
        values = [rng.choice(TEXTS + FILES) if rng.random() < 0.6 else rng.choice(FILES)]
        if parameter.name in writes:
            values = [rng.choice(OUTPUTS)]
        elif parameter.name == "num_processes":
            values = [rng.choice(["0", "-1", "1", HUGE, "x", "1000000"])]
        elif parameter.name in CHOICES and rng.random() < 0.7:
            values = [CHOICES[parameter.name]]
        elif parameter.name == "ckpt" and rng.random() < 0.7:
            values = ["runs/r"]
        if parameter.name in ("push", "private", "help", "resume", "install_completion"):
            continue
        if getattr(parameter, "param_type_name", "") == "argument":
            argv += values if parameter.required or rng.random() < 0.5 else []
        elif rng.random() < (0.9 if parameter.required or parameter.name == "output" else 0.15):
            option = rng.choice(parameter.opts)
            argv += [option] if parameter.is_flag else [option, *values]
    if argv[0] == "train":
        argv.append(rng.choice(["--dry-run", "--print-config"]))
    return Case(argv, "", ("out/", "results/", "runs/r/", "runs/s/"))


KINDS: dict[str, Callable[[random.Random, Path], Case]] = {
    "results": of_results,
    "checkpoints": of_checkpoints,
    "rows": of_rows,
    "recipes": of_recipes,
    "arguments": of_arguments,
}
