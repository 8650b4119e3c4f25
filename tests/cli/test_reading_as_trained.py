"""Rows of other files: read by the checkpoint's own columns, by those that are given, or by what the columns tell."""

import json
from pathlib import Path

import pytest
from conftest import make_tokenizer, write_lines
from test_compare_command import write_model

from rmtrain.cli.app import run as rmtrain
from rmtrain.data.render import Renderer
from rmtrain.evaluation.results import read_rows
from rmtrain.files import write_json
from rmtrain.recipe.schema import Recipe

pytestmark = pytest.mark.usefixtures("inside")

ROWS = [{"q": f"w{i}", "answer_1": f"w{i + 1} w3", "answer_2": "w4", "id": i} for i in range(6)]
RENAMED = {"prompt": "q", "chosen": "answer_1", "rejected": "answer_2"}
COLUMNS = "prompt=q,chosen=answer_1,rejected=answer_2"
PLAIN = [{"id": i, **{ours: row[theirs] for ours, theirs in RENAMED.items()}} for i, row in enumerate(ROWS)]


@pytest.fixture(autouse=True)
def _checkpoints(inside: None, tmp_path: Path) -> None:
    contract = Renderer.for_tokenizer(make_tokenizer()).contract()
    for name, columns in {"trained": RENAMED, "plain": {}}.items():
        write_model(tmp_path / name, 0)
        recipe = Recipe.model_validate({"model": {"name": "b"}, "data": {"source": "own.jsonl", "columns": columns}})
        values = json.loads(recipe.model_dump_json())
        write_json(tmp_path / name / "rmtrain.json", {"format": 1, "contract": contract, "recipe": values})
    write_lines("own.jsonl", ROWS)
    write_lines("plain.jsonl", PLAIN)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = rmtrain([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


def rewards(path: str) -> list[list[float]]:
    return [json.loads(line)["rewards"] for line in Path(path).read_text().splitlines()]


def test_the_file_that_was_trained_on_is_read_as_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    results = {}
    for data in ("own.jsonl", "plain.jsonl"):
        code, out, err = run(capsys, "eval", "--ckpt", "trained", "--data", data, "--json")
        assert code == 0, err
        results[data] = json.loads(out)
        told = "read as in training, with" if data == "own.jsonl" else "the columns do not fit"
        assert f"{data}: {told} data.columns={{prompt: q, chosen: answer_1, rejected: answer_2}}" in err
        assert run(capsys, "score", data, "--ckpt", "trained", "--output", f"scored-{data}")[0] == 0
    assert results["own.jsonl"]["data"]["read_as"] == {"columns": RENAMED}
    assert results["own.jsonl"]["accuracy"] == results["plain.jsonl"]["accuracy"]
    assert rewards("scored-own.jsonl") == rewards("scored-plain.jsonl")
    code, out, err = run(capsys, "compare", "plain", "trained", "--data", "own.jsonl", "--json")
    assert (code, "own.jsonl: read as in training" in err) == (0, True)
    assert json.loads(out)["groups"] == 6


def test_the_trained_columns_come_before_what_the_columns_tell(capsys: pytest.CaptureFixture[str]) -> None:
    both = [{**row, "prompt": row["q"], "chosen": row["answer_2"], "rejected": row["answer_1"]} for row in ROWS]
    write_lines("both.jsonl", both)
    found = {}
    for name in ("trained", "plain"):
        code, _, err = run(capsys, "score", "both.jsonl", "--ckpt", name, "--output", f"{name}-out.jsonl")
        assert code == 0, err
        assert ("read as in training" in err) == (name == "trained")
        found[name] = rewards(f"{name}-out.jsonl")
    assert found["trained"] == [row[::-1] for row in found["plain"]]


def test_given_columns_override(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "eval", "--ckpt", "plain", "--data", "own.jsonl")
    assert (code, "--columns" in err, "data.columns" in err) == (2, True, False)
    for name in ("plain", "trained"):  # the other way round than trained, without a fallback
        turned = ("--columns", "prompt=q,chosen=answer_2,rejected=answer_1", "--row-schema", "pair")
        assert run(capsys, "eval", "--ckpt", name, "--data", "own.jsonl", *turned)[0] == 0
        assert run(capsys, "score", "own.jsonl", "--ckpt", name, "--output", f"{name}-out.jsonl", *turned)[0] == 0
    assert run(capsys, "score", "own.jsonl", "--ckpt", "trained", "--output", "own-way.jsonl")[0] == 0
    assert rewards("plain-out.jsonl") == rewards("trained-out.jsonl") == [row[::-1] for row in rewards("own-way.jsonl")]
    code, out, err = run(capsys, "compare", "plain", "trained", "--json")  # on the rows, as they were read
    assert (code, json.loads(out)["groups"]) == (0, 6)
    code, out, err = run(capsys, "compare", "plain", "trained", "--data", "own.jsonl", "--columns", COLUMNS, "--json")
    assert [len(read_rows(Path(path))) for path in json.loads(out)["rows"]] == [6, 6]
    assert {Path(path).parent.name for path in json.loads(out)["rows"]} == {"compare"}  # not those read otherwise


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--columns", "chosen"), "--columns chosen: must be KEY=COLUMN,…"),
        (("--columns", "chosen=a,chosen=b"), "must be KEY=COLUMN,…"),
        (("--columns", ""), "must be KEY=COLUMN,…"),
        (("--row-schema", "pears"), "--row-schema pears: no such row schema\n  hint: choose from 'auto', "),
        (("--columns", "chosen=gone"), "there is no column 'gone' to rename to 'chosen'"),
    ],
)
def test_what_is_no_mapping_is_told(capsys: pytest.CaptureFixture[str], given: tuple[str, str], told: str) -> None:
    for command in (
        ("eval", "--data", "own.jsonl", "--ckpt", "plain"),
        ("compare", "plain", "trained", "--data", "own.jsonl"),
        ("score", "own.jsonl", "--output", "o.jsonl", "--ckpt", "plain"),
    ):
        code, out, err = run(capsys, *command, *given)
        assert (code, out, told in err) == (2, "", True), err
