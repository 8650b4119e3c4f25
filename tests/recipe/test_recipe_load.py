"""Loading: every fault at once, in words, at its place; overrides; origins."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.errors import RecipeError
from rmtrain.recipe import hints
from rmtrain.recipe.data_schema import EntrySection
from rmtrain.recipe.load import dump_recipe, load_recipe, parse_recipe_text
from rmtrain.recipe.schema import Recipe

SMALL = "model: {name: m}\ndata: {source: d}\n"


def faults(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        parse_recipe_text(text, "r.yaml", overrides)
    assert raised.value.exit_code == 2
    return f"error: {raised.value}"  # as the command line shows it


def test_a_recipe_is_read_with_its_defaults() -> None:
    recipe = parse_recipe_text(SMALL + "optim: {learning_rate: 2e-5, betas: [0.9, 0.95], epochs: 2}", "r.yaml").recipe
    assert recipe.model.name == "m"
    assert recipe.optim.learning_rate == 2e-5
    assert recipe.optim.betas == (0.9, 0.95)
    assert recipe.optim.epochs == 2.0
    assert recipe.lora is None
    assert recipe.data.splits["test"] == "test"


def test_every_fault_is_reported_in_one_message_each_with_its_line() -> None:
    text = """\
model:
  nam: x
  dtype: bf16
lora: 5
data:
  source: d
  source: e
  splits: {trian: train}
  limit: {train: 0}
optim:
  learning_rate: 2e-5x
  betas: [0.9, 1.5]
  epochs: .nan
  gradient_checkpointing: yes please
evaluation: [1]
run: {seed: -1, save_every: 1.5}
"""
    message = faults(text, "optim.epoch=3", "foo")
    starts = [
        line.removeprefix("error: ").split(": ")[0] for line in message.splitlines() if line.startswith("error: ")
    ]
    assert starts == [
        "model.name",
        "model.nam",
        "model.dtype",
        "lora",
        "data.source",
        "data.splits.trian",
        "data.limit.train",
        "optim.learning_rate",
        "optim.betas[1]",
        "optim.epochs",
        "optim.gradient_checkpointing",
        "evaluation",
        "run.seed",
        "run.save_every",
        "optim.epoch",
        "expected KEY=VALUE",
    ]
    assert message.endswith("16 errors in the recipe; nothing was started")


def test_a_fault_shows_its_line_a_caret_and_the_nearest_key() -> None:
    text = SMALL + "optim:\n  epochs: 1\n  learning_rat: 1e-5  # too high?\n"
    assert faults(text) == "\n".join(
        [
            "error: optim.learning_rat: unknown key",
            " --> r.yaml:5:3",
            "  |",
            "5 |   learning_rat: 1e-5  # too high?",
            "  |   ^^^^^^^^^^^^",
            "help: did you mean learning_rate?",
        ]
    )


def test_a_fault_of_the_command_line_shows_the_argument() -> None:
    assert faults(SMALL, "optim.learning_rate=2e-5x") == "\n".join(
        [
            'error: optim.learning_rate: expected a valid number, found "2e-5x"',
            " --> command line: optim.learning_rate=2e-5x",
            "                                       ^^^^^",
            "help: Peak learning rate of the adapters, or of the backbone in full fine-tuning.",
        ]
    )


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("optim: {rank: 8}", "optim.rank: unknown key", "rank belongs to the lora section"),
        ("optim: {seed: 8}", "optim.seed: unknown key", "seed belongs to the data.holdout or the run section"),
        ("learning_rate: 8", "learning_rate: unknown key", "learning_rate belongs to the optim section"),
        ("optim.epochs: 8", "optim.epochs: unknown key", "epochs belongs to the optim section"),
        ("optim: {lr: 8}", "optim.lr: unknown key", "did you mean learning_rate?"),
        ("num_train_epochs: 8", "num_train_epochs: unknown key", "did you mean optim.epochs?"),
        ("distributd: {}", "distributd: unknown key", "did you mean distributed?"),
        ("loss: {qqq: 1}", "loss.qqq: unknown key", "its keys are objective, average_over, centering, margin"),
        (
            "distributed: {strategy: zeor2}",
            "distributed.strategy: expected 'auto', 'ddp', 'zero2', 'zero3' or 'fsdp', found \"zeor2\"",
            "did you mean zero2?",
        ),
        ("tracking: {wandb: false}", "found false", "did you mean off?"),
        ("optim: {max_steps: '5'}", 'expected a valid integer, found "5"', "write 5, wi"),
        ("optim: {max_steps: 1_000}", 'found "1_000"', "write 1000"),
        ("optim: {max_steps: 1e3}", "expected a valid integer, found 1000.0", "write 1000"),
        ("optim: {max_steps: true}", "expected a valid integer, found true", "Stop after"),
        ("optim: {activation_offloading: on}", 'expected true or false, found "on"', "write true"),
        (
            "optim: {gradient_checkpointing: on}",
            "expected 'auto', 'none', 'selective' or 'full', found \"on\"",
            "Activations recomputed",
        ),
        ("optim: {warmup_ratio: 1.5}", "expected at most 1, found 1.5", "Share of"),
        ("optim: {betas: [1, 2, 3]}", "optim.betas: expected a tuple with at most 2 items, found [1, 2, 3]", "AdamW"),
        ("optim: {betas: [0.9]}", "optim.betas: expected one more item, found [0.9]", "AdamW"),
        ("lora: {targets: [q, 5]}", "lora.targets[1]: expected a valid string, found 5", "Layers that get an adapter"),
        ("lora: {targets: 'q('}", "lora.targets: not a regular expression: missing )", "write all-linear, a list"),
        (
            "lora: {targets: []}",
            "expected a valid string or a list with at least 1 item, found []",
            "Layers that get an adapter",
        ),
        ("run: {name: ../x}", "run.name: expected a folder name (up to 100 letters", "First part"),
        ("loss: 1", "loss: expected a section with keys, found 1", "The training objective."),
        ("lora:", "lora: has no value", "write null, {} for a section's defaults"),
        ("model: {}", "model: duplicate key", "keep one of the two"),
    ],
)
def test_the_wording(line: str, message: str, hint: str) -> None:
    shown = faults(SMALL + line)
    assert shown.count("error: ") == 1
    assert message in shown
    assert f"help: {hint}" in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {source: d}", ["error: model: missing", " --> r.yaml\n"]),
        ("model: {dtype: float32}\ndata: {source: d}", ["error: model.name: missing", " --> r.yaml:1:1", "  | ^^^^^"]),
        ("just text", ['a recipe is a mapping of sections, found "just text"', " --> r.yaml:1:1"]),
        ("", ["error: the recipe is empty"]),
    ],
)
def test_what_is_missing_is_named(text: str, expected: list[str]) -> None:
    message = faults(text)
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model: {name: m, quantization: nf4}\ndata: {source: d}", "model.quantization"),
        ("model: {name: m}\ndata: {source: d, splits: {test: t}}", "data.splits"),
        (SMALL + "optim: {tokens_per_microbatch: null}", "optim.tokens_per_microbatch"),
        (SMALL + "distributed: {strategy: ddp, offload: all}", "distributed.offload"),
        (SMALL + "distributed: {offload: optimizer}", "distributed.offload"),
        (SMALL + "distributed: {strategy: fsdp, offload: optimizer}", "distributed.offload"),
        ("data: {source: d}\nmodel: {name: m, dtype: float16}\ndistributed: {strategy: zero2}", "model.dtype"),
        (SMALL + "distributed: {strategy: fsdp, deepspeed_config: x.json}", "distributed.deepspeed_config"),
        (SMALL + "evaluation: {every: 2.5}", "evaluation.every"),
    ],
)
def test_sections_that_disagree_are_reported_beside_other_faults(text: str, key: str) -> None:
    alone = faults(text)
    assert alone.startswith(f"error: {key}: ")
    line = alone.splitlines()[3]
    marked = line[alone.splitlines()[4].index("^") :]
    assert marked.startswith(key.rpartition(".")[2])
    both = faults(text + "\nrun: {seed: x}")
    assert f"error: {key}: " in both
    assert "error: run.seed: " in both


def test_a_disagreement_with_a_value_that_is_wrong_itself_is_not_reported() -> None:
    assert faults("model: {name: m, quantization: nf4}\ndata: {source: d}\nlora: 5").count("error: ") == 1


@pytest.mark.parametrize("before", ["", "# é 你好\n", "\n\n", "# a\r\n", "\ufeff"])
@pytest.mark.parametrize("indent", ["  ", "      "])
@pytest.mark.parametrize("value", ["x", "'x'", "你好", "[a, b]", "x # comment"])
def test_the_caret_stands_beneath_the_value(before: str, indent: str, value: str) -> None:
    message = faults(f"{before}{SMALL}optim:\n{indent}epochs: {value}\n".replace("\ufeff", ""))
    _, place, _, shown, carets, *_ = message.splitlines()
    line = before.count("\n") + 4
    assert place.strip() == f"--> r.yaml:{line}:{len(indent) + 9}"
    marked = value.removesuffix(" # comment")
    cells = sum(2 if c > "\u2e80" else 1 for c in marked)
    start = shown.index(value)
    assert carets == " " * len(str(line)) + " | " + " " * (start - len(f"{line} | ")) + "^" * cells


def test_a_long_line_is_cut_around_its_caret() -> None:
    message = faults(f"{{model: {{name: {'m' * 500}, dtype: no}}, data: {{source: {'d' * 500}}}}}")
    _, _, _, shown, carets, *_ = message.splitlines()
    assert len(shown) < 130
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "no"


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    assert "\x1b" not in faults("a: \x1b[31m")
    assert "\x1b" not in faults(SMALL, "optim.epochs=\x1b[31m")


# overrides


def test_overrides_replace_the_files_values_and_make_sections() -> None:
    text = SMALL + "lora: {rank: 8}\noptim: {learning_rate: bad}\n"
    overrides = ["lora=null", "optim.learning_rate=2e-5", "data.splits={train: t}", "data.holdout.test=0.1"]
    recipe = parse_recipe_text(text, "r.yaml", overrides).recipe
    assert recipe.lora is None
    assert recipe.optim.learning_rate == 2e-5
    assert recipe.data.splits == {"train": "t"}
    assert recipe.data.holdout.test == 0.1
    assert parse_recipe_text(SMALL, "r.yaml", ["lora.rank=4"]).recipe.lora is not None


def test_the_last_of_several_overrides_wins() -> None:
    recipe = parse_recipe_text(SMALL, "r.yaml", ["run.seed=1", "lora=null", "run.seed=2", "lora.rank=4"]).recipe
    assert recipe.run.seed == 2
    assert recipe.lora is not None


def test_faults_of_overrides_come_in_their_order_after_the_files() -> None:
    message = faults(SMALL + "run: {seed: x}", "optim.epochs=x", "a=1", "loss.margin=-1")
    keys = [line.split(": ")[1] for line in message.splitlines() if line.startswith("error: ")]
    assert keys == ["run.seed", "optim.epochs", "a", "loss.margin"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("run.=3", "expected KEY=VALUE"),
        ("run..seed=3", "expected KEY=VALUE"),
        ("run.seed=", "run.seed: has no value"),
        ("run.seed=# 3", "run.seed: has no value"),
        ("data.source.train=x", 'data.source is "d" and has no keys'),
        ("lora.targets.0=x", 'lora.targets is ["a"] and has no keys'),
        ("run.seed=*x", "not valid YAML: found undefined alias"),
        ("run.seed={", "not valid YAML"),
        ("optim.learning_rat=1", "optim.learning_rat: unknown key"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    shown = faults(SMALL + "lora: {targets: [a]}", override)
    assert f"error: {message}" in shown or f": {message}" in shown
    assert f" --> command line: {override}\n" in shown
    assert "^" in shown


# origins


def test_origins_name_the_line_the_command_line_or_the_default() -> None:
    text = SMALL + "optim:\n  epochs: 2\n  learning_rate: 1e-5\nlora: {rank: 4}\n"
    loaded = parse_recipe_text(text, "dir/r.yaml", ["optim.learning_rate=2e-5", "data.limit.train=5"])
    assert loaded.origins["model.name"] == "dir/r.yaml:1"
    assert loaded.origins["optim.epochs"] == "dir/r.yaml:4"
    assert loaded.origins["optim.learning_rate"] == "command line"
    assert loaded.origins["data.limit"] == "command line"
    assert loaded.origins["lora.rank"] == "dir/r.yaml:6"
    assert loaded.origins["lora.alpha"] == "default"
    assert "lora" not in loaded.origins
    without = parse_recipe_text(text, "r.yaml", ["lora=null"]).origins
    assert without["lora"] == "command line"
    assert not any(key.startswith("lora.") for key in without)


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("configs/mistral_lora.yaml", "mistral_lora"),
        ("a b (1).yaml", "a-b-1-"),
        ("..x..yaml", "x"),
        ("é.yaml", "recipe"),
    ],
)
def test_the_name_is_fit_for_a_folder(filename: str, name: str) -> None:
    assert parse_recipe_text(SMALL, filename).name == name
    assert parse_recipe_text(SMALL, filename, ["run.name=my.run-2"]).name == "my.run-2"


# files


def test_a_file_is_read_and_keeps_its_path(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    loaded = load_recipe(path)
    assert loaded.path == path
    assert loaded.name == "r"
    assert loaded.origins["data.source"] == f"{path}:2"


def test_a_missing_file_lists_the_bundled_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file") as raised:
        load_recipe(tmp_path / "nope.yaml")
    assert "mistral_lora" in raised.value.hint
    assert "rmtrain recipes copy NAME" in raised.value.hint
    with pytest.raises(RecipeError) as raised:
        load_recipe("mistral_lora")
    assert "rmtrain recipes copy mistral_lora" in raised.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"model:\n  name: \xff\n", "r.yaml:2: not UTF-8 text (byte 0xff at offset 15)"),
        ("model: 1".encode("utf-16"), "r.yaml:1: not UTF-8 text"),
        (b"#" * 100_001, "longer than 100,000 characters"),
        (b"#" * (2 << 20), "r.yaml: the file has more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "r.yaml")
    assert message in raised.value.message


@pytest.mark.parametrize("path", ["", ".", "a\0b", "/dev/zero", "/dev/full", "n" * 256])
def test_a_path_that_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(path)


# any input


def outcome(text: str, *overrides: str) -> str | None:
    """The error's message, None for a recipe; anything else raised fails the test."""
    try:
        parse_recipe_text(text, "r.yaml", overrides)
    except RecipeError as error:
        return f"error: {error}"
    return None


_values = st.sampled_from(
    ["1", "-1", "1.5", "x", "null", "true", "[1, x]", "{a: 1}", "[]", "{}", "*x", ".nan", "", "'"]
)
_keys = st.sampled_from([*hints.KEYS, "optim", "lora", "data.splits.train", "data.source.x", "run.a.b", "..", "q"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_keys, _values), max_size=6), st.text(max_size=40) | st.just(SMALL), st.booleans())
def test_any_input_gives_a_recipe_or_a_recipe_error(pairs: list[tuple[str, str]], text: str, nested: bool) -> None:
    if nested:  # the same pairs as a file
        sections = {key.partition(".")[0] for key, _ in pairs}
        text = SMALL + "".join(
            f"{section}:\n"
            + "".join(f"  {k.partition('.')[2]}: {v}\n" for k, v in pairs if k.startswith(f"{section}."))
            for section in sorted(sections - {"model", "data"})
        )
    message = outcome(text, *([] if nested else [f"{key}={value}" for key, value in pairs]))
    assert message is None or not message.startswith("error: error: ")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(hints.KEYS), _values)
def test_every_fault_of_one_override_names_that_key(key: str, value: str) -> None:
    message = outcome(SMALL, f"{key}={value}")
    if message is not None:
        assert message.startswith((f"error: {key}", "error: not valid YAML"))
        assert "pydantic" not in message


def test_the_names_of_other_trainers_lead_to_keys_that_exist() -> None:
    assert set(hints.OTHER_NAMES.values()) <= set(hints.KEYS)


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from rmtrain.recipe import bundled, load\n"
        "from rmtrain.cli import recipes\n"
        "try: load.parse_recipe_text('optim: {epochs: x}', 'r.yaml')\n"
        "except Exception as error: assert 'optim.epochs' in str(error)\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'wandb', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("answers: [a, b]", "data.answers: no key says which answer is better"),
        ("scores: [s, t]", "data.scores: scores need answers"),
        ("better: {x: 0}", "data.better: needs the column of the label"),
        (
            "answers: [a, b], label: w, row_schema: pair",
            "data.row_schema: pair already says which columns",
        ),
        ("answers: [a, b], label: w, better: {x: 2}", "data.better: names an answer beyond the 2 of data.answers"),
        ("answers: [a, b], scores: [s]", "data.scores: 1 for 2 answers"),
        ("answers: [a, b], label: w, better: {positive: 0}", "data.better: has only one of negative and positive"),
    ],
)
def test_a_layout_that_does_not_say_enough_is_refused(tmp_path: Path, data: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{name: m}}\ndata: {{source: s, {data}}}\n")
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(path)


# Values that nothing can be done with


def _numeric(
    schema: dict[str, Any], definitions: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The numbers that a schema takes, by the dotted key that takes them."""
    schema = {**definitions.get(str(schema.get("$ref")).rpartition("/")[2], {}), **schema}
    if schema.get("type") in ("integer", "number"):
        yield path, schema
    for key, inner in schema.get("properties", {}).items():
        yield from _numeric(inner, definitions, f"{path}.{key}" if path else key)
    others = [schema.get("items"), schema.get("additionalProperties"), *schema.get("prefixItems", ())]
    for inner in [*schema.get("anyOf", ()), *(other for other in others if isinstance(other, dict))]:
        yield from _numeric(inner, definitions, path)


def test_every_number_has_a_least_and_a_greatest_value() -> None:
    schema = Recipe.model_json_schema()
    numbers = [
        (key, one) for key, one in _numeric(schema, schema["$defs"]) if not key.endswith(".ties")
    ]  # compared as they are
    assert len(numbers) > 30
    for key, one in numbers:
        assert {"minimum", "exclusiveMinimum"} & {*one}, f"{key} has no least value"
        assert {"maximum", "exclusiveMaximum"} & {*one}, f"{key} has no greatest value"


NUMBERS = sorted({key for key, _ in _numeric(Recipe.model_json_schema(), Recipe.model_json_schema()["$defs"])})


@pytest.mark.parametrize("value", [str(2**63 - 1), str(1 - 2**63), "1e308", "-1e308"])
def test_absurd_numbers_are_refused_by_key(value: str) -> None:
    mappings = ("data.limit", "data.demo_groups", "data.better", "data.ties", "optim.betas")
    keys = [key for key in NUMBERS if key not in mappings and not key.startswith("data.source.")]  # of entries
    assert len(keys) > 25
    lines = [line for line in faults(SMALL, *(f"{key}={value}" for key in keys)).splitlines() if "error: " in line]
    refused = {line.removeprefix("error: ").partition(": expected ")[0] for line in lines}
    assert (sorted(refused), len(lines)) == (keys, len(keys))


MIXTURE = """model: {name: x}
data:
  source:
    train:
      - {source: org/a@main, weight: 2}
      - {source: [x/b.jsonl.gz, x/c.jsonl], tags: [code]}
      - source: org/a
        answers: [a, b]
    validation:
      - {source: org/b, weight: 1}
      - {source: org/c, min_gap: 0.5, tied: half, gap_scale: 2.0}
"""


def test_the_entries_of_a_mixture_are_checked_one_by_one() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe_text(MIXTURE, "r.yaml")
    for said in (
        "data.source.train: some entries have a weight, and b, a has none",
        "data.source.train[2].name: the name a is that of another entry",
        "data.source.train[2].answers: no key says which answer is better",
        "data.source.validation[0].weight: a weight is a share of the training groups",
        "data.source.validation[1].min_gap: applies to training rows only",
        "data.source.validation[1].tied: applies to training rows only",
        "data.source.validation[1].gap_scale: applies to training rows only",
    ):
        assert said in caught.value.message
    unknown = MIXTURE.replace("weight: 2", "colums: {a: b}").replace("tags: [code]", "min_gap: -1")
    with pytest.raises(RecipeError) as caught:
        parse_recipe_text(unknown, "r.yaml")
    assert "data.source.train[0].colums: unknown key" in caught.value.message
    assert "did you mean columns?" in caught.value.message
    assert "data.source.train[1].min_gap: expected at least 0, found -1" in caught.value.message
    assert "train[2]:" not in caught.value.message  # a sound entry


def test_entries_are_named_after_their_sources_and_dump_as_they_were_written() -> None:
    sources = {
        "org/name@main": "name",
        "org/n:config": "n",
        "x/b.jsonl.gz": "b",
        "my/folder/": "folder",
        "d/*.csv": "d",
    }
    for source, title in sources.items():
        assert EntrySection(source=source).title == title
    assert EntrySection(source=["x/b-1.parquet", "x/b-2.parquet"]).title == "b-1"
    text = MIXTURE.partition("      - source: org/a")[0].replace("weight: 2", "min_gap: 0.5")
    recipe = parse_recipe_text(text, "r.yaml").recipe
    assert recipe.model_dump(mode="json")["data"]["source"]["train"] == [
        {"source": "org/a@main", "min_gap": 0.5},
        {"source": ["x/b.jsonl.gz", "x/c.jsonl"], "tags": ["code"]},
    ]
    assert parse_recipe_text(dump_recipe(recipe), "r.yaml").recipe == recipe
