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


SIGN = {"negative": 0, "positive": 1}


@pytest.mark.parametrize(
    ("values", "better", "told"),
    [
        ([1, 2, 6, 7, 3], SIGN, True),  # a scale from 1 to 7
        ([-1, 2, -3, 0, 1], SIGN, False),
        ([0, 0, 0, 0, 0], SIGN, False),  # ties alone
        (["x", "x", "y", "x", "x"], {"x": 0, "y": 1}, False),
        (["x", "y", "y", "x", "x"], {"x": 1, "y": 1}, True),
        ([0, 1, 0, 0, 0], {}, False),
    ],
)
def test_a_note_says_where_a_label_prefers_the_same_answer_in_every_row(
    tmp_path: Path, values: list[Any], better: Any, told: bool
) -> None:
    rows = [{"prompt": f"q{n}", "a": "x", "b": "y", "label": values[n % 5]} for n in range(25)]
    notes = read(tmp_path, rows, answers=["a", "b"], label="label", better=better, tied="half").notes
    assert ("the label label calls b the better answer in each of the first 25 rows" in " ".join(notes)) == told
    few = read(tmp_path, rows[:15], answers=["a", "b"], label="label", better=better, tied="half").notes
    assert "calls" not in " ".join(few)


def test_of_many_columns_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", **{f"c{n:04}": n for n in range(2040)}}
    (note,) = read(tmp_path, [row]).notes
    assert note.endswith("c0038, c0039, and 2,000 more")
    told = refusal(tmp_path, [{**row, "prompt": None, "c": 1}], columns={"prompt": "missing"})
    assert told.hint.endswith("c0037, c0038, and 2,004 more")


def test_an_output_list_beside_a_label_is_not_taken_as_best_first(tmp_path: Path) -> None:
    row = {"instruction": "q", "output": ["bad", "good"]}
    for column, value in (("preference", 2), ("ratings", [1, 5]), ("winner", "b"), ("human_rank", [2, 1])):
        told = refusal(tmp_path, [{**row, column: value}])
        assert f"the column {column} seems to say" in told.message
    assert preferred(groups(tmp_path, [{**row, "ratings": [1, 5]}], row_schema="alpaca")[0]) == [("bad", "good")]
    scored = groups(tmp_path, [{**row, "ratings": [1, 5]}], answers=["output"], scores=["ratings"])
    assert preferred(scored[0]) == [("good", "bad")]


def test_answers_and_scores_may_be_keys_of_two_objects(tmp_path: Path) -> None:
    row = {"prompt": "q", "a": {"text": "bad", "grade": 1}, "b": {"text": "good", "grade": "2"}}
    read_so = groups(tmp_path, [row], answers=["a.text", "b.text"], scores=["a.grade", "b.grade"])
    assert preferred(read_so[0]) == [("good", "bad")]
    assert read_so[0].scores == (1.0, 2.0)


# lists and objects written as text


@pytest.mark.parametrize("write", [json.dumps, str], ids=["json", "python"])
@pytest.mark.parametrize("names", [("role", "content", "assistant"), ("value", "from", "gpt")])
def test_a_message_written_as_text_is_a_message(tmp_path: Path, write: Any, names: tuple[str, str, str]) -> None:
    def written(text: str) -> str:
        return write(dict(zip(names[:2], (names[2], text) if names[0] == "role" else (text, names[2]), strict=True)))

    row = {"prompt": "q", "chosen": written("it's good"), "rejected": written("bad")}
    assert preferred(groups(tmp_path, [row])[0]) == [("it's good", "bad")]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "find", "role": "x"}',
        '{"content": "x"}',
        '{"role": "x"',
        '{"role": "judge", "content": "x"}',
        '{"role": ["x"], "content": "x"}',
        '[{"role": ["x"], "content": 1}]',
    ],
)
def test_an_answer_that_is_another_object_stays_text(tmp_path: Path, text: str) -> None:
    row = {"prompt": "q", "chosen": text.replace('"x"', '"good"'), "rejected": text}
    assert preferred(groups(tmp_path, [row])[0]) == [(row["chosen"], text)]


def test_texts_that_numpy_prints_without_commas_are_not_joined(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completions": "['it is' \"it's\"\n 'a \\'b\\' c']", "scores": "[1, 2, 3]"}]
    texts = [completion[0].content for completion in groups(tmp_path, rows)[0].completions]
    assert texts == ["it is", "it's", "a 'b' c"]
    turns = {"prompt": "['q1' 'q2']", "response_a": "['a1' 'a2']", "response_b": "['b1' 'b2']", "winner": "model_b"}
    assert preferred(groups(tmp_path, [turns])[0]) == [("b2", "a2")]


def test_lists_written_as_text_are_no_answers_unless_the_recipe_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "['a']", "rejected": "['b' 'c']"} for n in range(3)]
    assert "JSON lines or Parquet" in refusal(tmp_path, rows).hint
    assert preferred(groups(tmp_path, rows, row_schema="pair")[0]) == [("['a']", "['b' 'c']")]
    rows.append({"prompt": "q3", "chosen": "plain", "rejected": "['b']"})
    assert len(groups(tmp_path, rows)) == 4


# prompts


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("be a pirate and greet", "hello"),  # a text that no message holds
        ([asked("other")], "hello"),
        ([asked("a"), said("b"), asked("hello")], "hello"),  # the last turn twice
    ],
)
def test_a_prompt_that_is_not_that_of_the_answers_is_a_fault(tmp_path: Path, prompt: Any, first: str) -> None:
    row = {"prompt": prompt, "chosen": [asked(first), said("good")], "rejected": [asked(first), said("bad")]}
    told = refusal(tmp_path, [row])
    assert "the prompt is not that of the answers" in told.message
    assert "data.columns: {other: prompt}" in told.hint
    mended = groups(tmp_path, [row], columns={"other": "prompt"})
    assert [message.content for message in mended[0].prompt] == [first]


@pytest.mark.parametrize(
    "prompt",
    ["hello", " hello\n", "", None, "<|user|>hello<|end|>", "\n\nHuman: hello\n\nAssistant:", [asked("hello")]],
)
def test_a_prompt_that_the_answers_repeat_in_any_form_is_theirs(tmp_path: Path, prompt: Any) -> None:
    row = {"prompt": prompt, "chosen": [asked("hello"), said("good")], "rejected": [asked("hello"), said("bad")]}
    read_so = groups(tmp_path, [row, {**row, "prompt": [asked("hello")]}], duplicates="keep")
    assert [message.content for message in read_so[0].prompt] == ["hello"]
    assert read_so[0].prompt == read_so[1].prompt


def test_a_note_says_where_texts_repeat_their_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n} is", "chosen": f"q{n} is good", "rejected": f"q{n} is bad"} for n in range(4)]
    (note,) = (note for note in read(tmp_path, rows).notes if "begin with their prompt" in note)
    assert "4 of the first 4 rows" in note
    mended = groups(tmp_path, rows, columns={"other": "prompt"}, row_schema="pair")
    assert [preferred(group) for group in mended] == [[(" good", " bad")]] * 4
    rows[:2] = [{**row, "chosen": "good"} for row in rows[:2]]
    assert "begin with their prompt" not in " ".join(read(tmp_path, rows).notes)


@pytest.mark.parametrize(
    "more", [{"chosen": "a", "rejected": "b"}, {"response_1": "a", "response_2": "b", "preference_strength": -2}]
)
def test_a_system_text_does_not_hide_an_empty_prompt(tmp_path: Path, more: Row) -> None:
    rows = [{"system": "be brief", "prompt": "q" * n, **more} for n in range(2)]
    assert "1 of 2 rows are not valid" in (told := refusal(tmp_path, rows).message)
    assert told.endswith(":1: empty prompt")
