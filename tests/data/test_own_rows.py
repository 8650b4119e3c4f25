"""Rows as other trainers and annotation tools write them: the reading of each equals what was meant, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmtrain.data.load import CuratedData, load_data
from rmtrain.data.types import PreferenceGroup
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

Row = dict[str, Any]


def asked(text: str) -> Row:
    return {"role": "user", "content": text}


def said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def read(folder: Path, rows: list[Row], kind: str = "jsonl", **data: Any) -> CuratedData:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data(DataSection(source={"train": str(path)}, **data), 0)


def groups(folder: Path, rows: list[Row], kind: str = "jsonl", **data: Any) -> list[PreferenceGroup]:
    return list(read(folder, rows, kind, **data).splits["train"].groups)


def preferred(group: PreferenceGroup) -> list[tuple[str, str]]:
    texts = [completion[-1].content for completion in group.completions]
    return sorted((texts[each.better], texts[each.worse]) for each in group.preferences)


def refusal(folder: Path, rows: list[Row], **data: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, rows, **data)
    return caught.value


# null keys of objects


def call(name: str, **arguments: Any) -> Row:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def tool(name: str, **properties: Any) -> Row:
    return {"function": {"name": name, "parameters": {"properties": properties}}}


def test_tools_and_calls_are_the_same_from_parquet_which_adds_the_keys_of_other_rows_as_null(tmp_path: Path) -> None:
    tools = [tool("find", city={"type": "string", "enum": ["a", None]}), tool("add", number={"type": "integer"})]
    documents = [{"title": "t"}, {"text": "x", "meta": {"page": 1}}]
    rows = [
        {"prompt": [asked("where")], "chosen": [call("find", city="x")], "rejected": [call("add", number=1)]},
        {"prompt": [asked("sum")], "chosen": [call("add", number=2)], "rejected": [call("find", city="y")]},
        {"prompt": [asked("hm")], "chosen": [said("no")], "rejected": [call("find", city="z", exact=True)]},
    ]
    rows = [{**row, "tools": tools, "documents": documents, "chat_template_kwargs": {"a": {"b": 1}}} for row in rows]
    rows[1]["chat_template_kwargs"] = {"a": {"c": 1}}
    lines = groups(tmp_path, rows)
    assert groups(tmp_path, rows, "parquet") == lines
    assert "null" not in lines[1].arguments.replace('["a", null]', "")
    assert json.loads(lines[0].completions[0][0].fields)["tool_calls"] == rows[0]["chosen"][0]["tool_calls"]


# ranks and labels


@pytest.mark.parametrize(
    ("row", "data"),
    [
        ({"a": "good", "b": "bad", "rank_a": 1, "rank_b": 2}, {"answers": ["a", "b"], "scores": ["rank_a", "rank_b"]}),
        ({"replies": ["bad", "good"], "ranking": [2, 1]}, {"answers": ["replies"], "scores": ["ranking"]}),
        ({"replies": ["bad", "good"], "Human-Rank": "[1, 0]"}, {"answers": ["replies"], "scores": ["Human-Rank"]}),
        (  # NeMo-RL
            {"completions": [{"rank": n, "completion": [said(text)]} for n, text in enumerate(("good", "bad"))]},
            {"answers": ["completions.completion"], "scores": ["completions.rank"]},
        ),
    ],
)
def test_the_smallest_rank_is_the_best_and_a_note_says_so(tmp_path: Path, row: Row, data: Any) -> None:
    read_so = read(tmp_path, [{"prompt": "q", **row}], **data)
    assert [preferred(group) for group in read_so.splits["train"].groups] == [[("good", "bad")]]
    assert f"{', '.join(data['scores'])} taken as ranks: the smallest is the best" in " ".join(read_so.notes)


@pytest.mark.parametrize("name", ["rank_score", "ranker", "frank", "rank_rewards", "votes"])
def test_of_other_columns_the_largest_is_the_best(tmp_path: Path, name: str) -> None:
    row = {"prompt": "q", "replies": ["bad", "good"], name: [1, 2]}
    assert preferred(groups(tmp_path, [row], answers=["replies"], scores=[name])[0]) == [("good", "bad")]


def test_ranks_are_neither_renamed_to_scores_nor_mixed_with_them(tmp_path: Path) -> None:
    row = {"prompt": "q", "replies": ["good", "bad"], "ranks": [1, 2]}
    told = refusal(tmp_path, [row], columns={"completions": "replies", "scores": "ranks"})
    assert "data.columns makes ranks the column scores" in told.message
    assert "data.answers with data.scores" in told.hint
    pair = {"prompt": "q", "a": "good", "b": "bad", "rank_a": 1, "grade_b": 2}
    assert "beside scores" in refusal(tmp_path, [pair], answers=["a", "b"], scores=["rank_a", "grade_b"]).message


@pytest.mark.parametrize("last", [2, "2", 2.0])
def test_a_label_that_counts_from_one_is_refused_though_few_rows_show_it(tmp_path: Path, last: Any) -> None:
    rows = [{"prompt": f"q{n}", "a": "good", "b": "bad", "label": 1} for n in range(9)]
    rows.append({"prompt": "q9", "a": "bad", "b": "good", "label": last})
    told = refusal(tmp_path, rows, answers=["a", "b"], label="label")
    assert told.message.startswith(f"{tmp_path / 'rows.jsonl'}:10: label beyond the last answer: column label holds")
    assert 'data.better: {"1": 0, "2": 1}' in told.hint
    mended = groups(tmp_path, rows, answers=["a", "b"], label="label", better={"1": 0, "2": 1})
    assert [preferred(group) for group in mended] == [[("good", "bad")]] * 10
