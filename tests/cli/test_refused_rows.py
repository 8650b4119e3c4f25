"""Rows that a chat template refuses or cuts short, through the commands: booked, named, and never passed over."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TEMPLATE, write_base, write_lines

from rmtrain.cli.data import data
from rmtrain.cli.evaluate import evaluate
from rmtrain.cli.score import score
from rmtrain.errors import DataError, InputError
from rmtrain.recipe.load import load_recipe
from rmtrain.recipe.schema import Recipe

pytestmark = pytest.mark.usefixtures("inside")

CUT = TEMPLATE.replace("{{ m['content'] }} {{ eos_token }}", "{{ m['content'].split('</think>')[-1] }} {{ eos_token }}")
REASON = "the chat template refuses a conversation with the roles user, tool, assistant: only user and assistant roles"


def rows(count: int = 12, refused: tuple[int, ...] = (), cut: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for index in range(count):
        prompt: list[dict[str, Any]] = [{"role": "user", "content": f"w{index}"}]
        if index in refused:
            prompt.append({"role": "tool", "content": "w1"})
        chosen = "<think> w3 </think> w4" if index in cut else "w3 w4"
        made.append({"prompt": prompt, "chosen": chosen, "rejected": "w5"})
    return made


def recipe_of(base: Path, source: dict[str, str]) -> Path:
    Path("recipe.yaml").write_text(
        json.dumps({"model": {"name": str(base), "chat_template": CUT}, "data": {"source": source}, "optim": {}})
    )
    return Path("recipe.yaml")


def test_data_books_them_in_every_split_and_says_it_again_from_the_cache(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {
        "train": write_lines("train.jsonl", rows(refused=(4, 7), cut=(2, 5, 9))),
        "validation": write_lines("validation.jsonl", [*rows(40, refused=(3,))[20:], *rows(40, refused=(23,))[23:24]]),
    }
    recipe = recipe_of(base, source)
    for _ in range(2):
        data(recipe, json=True)
        books = json.loads(capsys.readouterr().out)
        train, validation = books["splits"]["train"], books["splits"]["validation"]
        assert train["rows"] == {"total": 12, "kept": 10, "dropped": {"refused by the chat template": 2}}
        assert train["preferences"]["dropped"] == {"refused by the chat template": 2}
        assert train["completions"]["dropped"] == {"refused by the chat template": 4}
        assert train["first_dropped"] == {"refused by the chat template": "train.jsonl:5"}
        assert train["left_out_by_template"] == {"assistant": 3}
        assert validation["rows"] == {"total": 21, "kept": 20, "dropped": {"refused by the chat template": 1}}
        assert (
            f"train: rows refused by the chat template, dropped: 2; the first: train.jsonl:5: {REASON}"
            in books["notes"]
        )
        assert (
            "train: rows whose assistant text the chat template leaves out, wholly or in part: 3; the first: "
            "train.jsonl:3: '<think> w3 </think> w4'"
        ) in books["notes"]
        assert any(note.startswith("validation: rows refused") and ":21:" in note for note in books["notes"])


def test_more_than_a_fifth_is_an_error(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(base, {"train": write_lines("train.jsonl", rows(refused=(4, 7, 8)))})
    with pytest.raises(DataError, match=r"3 of 12 rows are refused by the chat template; the first: train.jsonl:5: "):
        data(recipe)


def test_eval_leaves_them_out_and_score_refuses_them(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = rows(refused=(4, 7))
    evaluate(ckpt=str(models / "rm"), data=write_lines("some.jsonl", made), json=True)
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert (result["n"], result["groups"], result["refused"]) == (10, 10, 2)
    assert "some.jsonl:5" in " ".join(told.err.split())
    kept = [row for row in made if len(row["prompt"]) == 1]
    evaluate(ckpt=str(models / "rm"), data=write_lines("kept.jsonl", kept), json=True)
    alone = json.loads(capsys.readouterr().out)
    assert (alone["accuracy"], alone["refused"]) == (result["accuracy"], 0)
    with pytest.raises(InputError, match=r"some.jsonl:5: the chat template refuses"):
        score("some.jsonl", Path("out.jsonl"), ckpt=str(models / "rm"))
    assert not Path("out.jsonl").exists()
    score("some.jsonl", Path("out.jsonl"), ckpt=str(models / "rm"), skip_refused=True)
    score("kept.jsonl", Path("alone.jsonl"), ckpt=str(models / "rm"))
    assert "with null rewards: 2; the first: some.jsonl:5" in " ".join(capsys.readouterr().err.split())
    scored, alone = ([*map(json.loads, Path(name).read_text().splitlines())] for name in ("out.jsonl", "alone.jsonl"))
    assert [row["rewards"] for row in scored if row["refused"] is None] == [
        pytest.approx(row["rewards"], abs=1e-5) for row in alone
    ]
    assert [(n, row["rewards"], row["refused"]) for n, row in enumerate(scored) if row["refused"]] == [
        (4, None, REASON),
        (7, None, REASON),
    ]
    pq.write_table(pa.Table.from_pylist(made), "some.parquet")
    score("some.parquet", Path("out.parquet"), ckpt=str(models / "rm"), skip_refused=True)
    tabled = pq.read_table("out.parquet").to_pylist()
    assert [(row["rewards"], row["refused"]) for row in tabled] == [(row["rewards"], row["refused"]) for row in scored]
    with pytest.raises(DataError, match="3 of 12 rows"):
        evaluate(ckpt=str(models / "rm"), data=write_lines("more.jsonl", rows(refused=(1, 4, 7))))


def test_tools_reach_the_tokens_of_a_row(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rows that differ in their tools alone are two rows, and the tools are rendered."""
    from rmtrain.data.prepare import prepare
    from rmtrain.data.render import Renderer
    from rmtrain.data.tokenizer import load_tokenizer
    from rmtrain.display import Silent

    template = "{{ bos_token }}{% for t in tools or [] %} {{ t.name }}{% endfor %}" + TEMPLATE.removeprefix(
        "{{ bos_token }}"
    )
    made = [{**rows(1)[0], "tools": tools} for tools in (None, [{"name": "w8"}], json.dumps([{"name": "w9"}]))]
    recipe = recipe_of(base, {"train": write_lines("train.jsonl", made)})
    loaded: Recipe = load_recipe(recipe, []).recipe
    renderer = Renderer.for_tokenizer(load_tokenizer(str(base), chat_template=template))
    tokens = prepare(loaded, renderer, Silent()).splits["train"].tokens
    plain, *with_tools = ([*group.prefix.tolist(), *group.suffixes[0].tolist()] for group in tokens.groups())
    for ids, word in zip(with_tools, (13, 14), strict=True):
        assert ids == [1, word, *plain[1:]]


def test_a_base_model_without_a_template_is_told_of_raw_and_takes_it(tmp_path: Path) -> None:
    bare = write_base(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    write_lines("train.jsonl", rows())
    Path("recipe.yaml").write_text(f"model: {{name: {bare}}}\ndata: {{source: {{train: train.jsonl}}}}\n")
    with pytest.raises(InputError, match="no chat template") as error:
        data(Path("recipe.yaml"))
    assert "raw" in error.value.hint
    data(Path("recipe.yaml"), ["model.chat_template=raw"])
