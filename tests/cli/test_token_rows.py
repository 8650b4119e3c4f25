"""Rows of token ids through the commands: the figures of the texts that they were made of."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_groups, make_tokenizer, write_lines

from rmtrain.cli.app import run as rmtrain
from rmtrain.data.render import Renderer

pytestmark = pytest.mark.usefixtures("inside")
GROUPS = make_groups(10, seed=3, k=2)


@pytest.fixture
def files() -> tuple[str, str, list[dict[str, Any]]]:
    """The same pairs as texts and as token ids, of which the last are the prompt's and the answer's alone."""
    renderer, texts, tokens = Renderer.for_tokenizer(make_tokenizer()), [], []
    for place, group in enumerate(GROUPS):
        ids = renderer.tokenize([group.prompt + completion for completion in group.completions])
        start = len(renderer.tokenize_prompt(group.prompt)) if place > 6 else 0
        best = group.preferences[0].better
        order = (best, 1 - best)
        said = dict(zip(("chosen", "rejected"), (group.completions[k][0].content for k in order), strict=True))
        texts.append({"prompt": group.prompt[0].content, **said})
        own = dict(zip(("chosen_ids", "rejected_ids"), (ids[k][start:] for k in order), strict=True))
        tokens.append({"prompt_ids": ids[0][:start] or None, **own})
    return write_lines("texts.jsonl", texts), write_lines("tokens.jsonl", tokens), tokens


def answer(capsys: Any, *arguments: str) -> Any:
    capsys.readouterr()
    assert rmtrain([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def rewards(capsys: Any, *arguments: str) -> list[list[float]]:
    assert rmtrain(["score", *arguments, "--output", "out.jsonl", "--overwrite"]) == 0, capsys.readouterr().err
    return [json.loads(line)["rewards"] for line in Path("out.jsonl").read_text().splitlines()]


def test_eval_and_score_give_the_figures_of_the_texts(models: Path, files: Any, capsys: Any) -> None:
    texts, tokens, _ = files
    rm = ("--ckpt", str(models / "rm"))
    one, other = (answer(capsys, "eval", *rm, "--data", source) for source in (texts, tokens))
    for key in ("n", "groups", "accuracy", "accuracy_strict", "loss", "length_baseline", "truncated"):
        assert one[key] == pytest.approx(other[key], abs=1e-6), key
    expected = rewards(capsys, texts, *rm)
    assert rewards(capsys, tokens, *rm) == [pytest.approx(row, abs=1e-6) for row in expected]
    assert "rows hold token ids, which are used without the chat template" in " ".join(capsys.readouterr().err.split())
    policy = ("--ckpt", str(models / "policy"), "--reference", str(models / "sft"))
    expected, found = rewards(capsys, texts, *policy), rewards(capsys, tokens, *policy)
    assert found[7:] == [pytest.approx(row, abs=1e-5) for row in expected[7:]]
    # where no column says what the prompt is, tokens that both answers begin with count for neither
    gaps = ([row[0] - row[1] for row in rows] for rows in (expected, found))
    assert next(gaps) == pytest.approx(next(gaps), abs=1e-5)


def test_ids_that_the_tokenizer_lacks_are_named(models: Path, files: Any, capsys: Any) -> None:
    rows = files[2]
    rows[4]["rejected_ids"] = [*rows[4]["rejected_ids"][:-1], 900, 2]
    source, rm = write_lines("beyond.jsonl", rows), ("--ckpt", str(models / "rm"))
    found = answer(capsys, "eval", *rm, "--data", source)
    assert (found["n"], found["refused"]) == (9, 1)
    assert rmtrain(["score", source, *rm, "--output", "out.jsonl"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "beyond.jsonl:5: it holds the token id 900, but the tokenizer's ids go from 0 to 64" in told


def test_data_counts_them_and_what_does_not_end(base: Path, files: Any, capsys: Any) -> None:
    rows = files[2]
    for place in (2, 5):
        rows[place]["chosen_ids"] = rows[place]["chosen_ids"][:-1]
    rows[3]["chosen_ids"] = [1, 2.5]
    rows[6]["rejected_ids"] = [*rows[6]["rejected_ids"][:-1], 65, 2]
    source = {"train": write_lines("train.jsonl", [*rows, rows[0]])}
    Path("recipe.yaml").write_text(json.dumps({"model": {"name": str(base)}, "data": {"source": source}}))
    books = answer(capsys, "data", "recipe.yaml")
    train = books["splits"]["train"]
    beyond = "of token ids that the tokenizer does not have"
    assert train["rows"] == {"total": 11, "kept": 8, "dropped": {"wrong type": 1, "duplicate": 1, beyond: 1}}
    assert train["first_dropped"]["wrong type"].startswith("train.jsonl:4: column chosen_ids[1] holds the number 2.5")
    told = " | ".join(books["notes"])
    assert f"train: rows {beyond}, dropped: 1; the first: train.jsonl:7: it holds the token id 65" in told
    assert "train: rows of token ids without an end token at the end: 2; the first: train.jsonl:3" in told
    assert "train: rows hold token ids, which are used without the chat template" in told
    assert "leaves out" not in told
