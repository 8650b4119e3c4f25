import pytest

from rmtrain.data.benchmarks import benchmark_named
from rmtrain.data.benchmarks.load import benchmark_groups, with_unique_ids
from rmtrain.data.benchmarks.rewardbench2 import ties_id
from rmtrain.data.types import Message
from rmtrain.errors import DataError

RB1 = {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "hep-go", "id": 7, "chosen_model": "m"}
RB2 = {"id": "12", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Focus"}
TIES = {"id": "tied:3", "prompt": "p", "chosen": ["a", "b"], "rejected": ["c"], "num_correct": 2, "subset": "ties"}
RM = {"id": "5", "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "safety-refuse"}
JUDGE = {
    "pair_id": "u-1",
    "source": "mmlu-pro-law",
    "question": "q",
    "response_A": "aa",
    "response_B": "bb",
    "label": "B>A",
}


def group_of(name, row, **kwargs):
    return benchmark_groups(benchmark_named(name), [row], **kwargs)[0]


def texts(group):
    return ["".join(message.content for message in completion) for completion in group.completions]


def pairs(group):
    return [(preference.better, preference.worse) for preference in group.preferences]


def test_rewardbench_1_row():
    group = group_of("rewardbench-1", RB1)
    assert (group.id, group.source) == ("hep-go/7", "hep-go")
    assert group.prompt == (Message("user", "p"),)
    assert texts(group) == ["good", "bad"]
    assert pairs(group) == [(0, 1)]


def test_prior_set_row_has_messages_and_takes_its_split_as_subset():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    group = group_of("rewardbench-1", {**RB1, "prompt": turns, "subset": "askbaking"}, subset="shp")
    assert (group.id, group.source) == ("shp/7", "shp")
    assert group.prompt == (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))


def test_an_empty_completion_is_scored_and_not_dropped():
    assert texts(group_of("rewardbench-1", {**RB1, "rejected": ""})) == ["good", ""]


def test_rewardbench_2_row():
    group = group_of("rewardbench-2", RB2)
    assert (group.id, group.source) == ("Focus/12", "Focus")
    assert texts(group) == ["a", "b", "c", "d"]
    assert pairs(group) == [(0, 1), (0, 2), (0, 3)]


def test_rewardbench_2_ties_row_keeps_its_id():
    group = group_of("rewardbench-2", TIES)
    assert (group.id, group.source) == ("tied:3", "Ties")
    assert texts(group) == ["a", "b", "c"]
    assert pairs(group) == [(0, 2), (1, 2)]


def test_rm_bench_row():
    group = group_of("rm-bench", RM)
    assert (group.id, group.source) == ("safety-refuse/5", "safety-refuse")
    assert texts(group) == list("abcdef")
    assert pairs(group) == [(i, j) for i in range(3) for j in range(3, 6)]


@pytest.mark.parametrize(("label", "first"), [("A>B", "aa"), ("B>A", "bb")])
def test_judgebench_row_puts_the_right_answer_first(label, first):
    group = group_of("judgebench", {**JUDGE, "label": label})
    assert (group.id, texts(group)[0], pairs(group)) == ("u-1", first, [(0, 1)])


@pytest.mark.parametrize(
    ("source", "section"),
    [
        ("mmlu-pro-computer science", "Knowledge"),
        ("livebench-reasoning", "Reasoning"),
        ("livebench-math", "Math"),
        ("livecodebench", "Coding"),
        ("new", "new"),
    ],
)
def test_judgebench_sections(source, section):
    assert group_of("judgebench", {**JUDGE, "source": source}).source == section


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "rewardbench-1",
            {**RB1, "rejected": None},
            "no rejected; the row has: prompt, chosen, subset, id, chosen_model",
        ),
        ("rewardbench-1", {k: v for k, v in RB1.items() if k != "subset"}, "no subset"),
        ("rewardbench-1", {**RB1, "chosen": ["good"]}, "chosen is not text"),
        ("rewardbench-1", {**RB1, "prompt": 3}, "prompt is neither text nor messages: wrong type"),
        ("rewardbench-1", {**RB1, "id": 1.5}, "id is neither text nor a whole number"),
        ("rewardbench-2", {**RB2, "chosen": "a"}, "chosen is not a list of texts"),
        ("rewardbench-2", {**RB2, "rejected": []}, "rejected is not a list of texts"),
        ("rewardbench-2", {**RB2, "num_correct": 2}, "num_correct is 2, but chosen holds 1 completions"),
        ("rewardbench-2", {**RB2, "chosen": ["a", "b"], "num_correct": 2}, "chosen holds 2 completions, expected 1"),
        ("rewardbench-2", {**TIES, "id": "3"}, "id '3' of a Ties row is neither ref:N nor tied:N"),
        ("rm-bench", {**RM, "chosen": ["a"]}, "chosen and rejected hold 1 and 3 completions, expected 3 and 3"),
        ("judgebench", {**JUDGE, "label": "A=B"}, "label is 'A=B', expected A>B or B>A"),
        ("judgebench", {**JUDGE, "response_A": None}, "no response_A"),
    ],
)
def test_a_bad_row_is_named(name, row, message):
    good = {"rewardbench-1": RB1, "rewardbench-2": RB2, "rm-bench": RM, "judgebench": JUDGE}[name]
    first = {**good, "id": "first", "pair_id": "first"}
    with pytest.raises(DataError) as caught:
        benchmark_groups(benchmark_named(name), [first, row])
    assert caught.value.message.startswith(f"row 2: {message}")
    assert benchmark_named(name).hub_id in caught.value.hint


def test_the_caller_says_where_a_row_is():
    with pytest.raises(DataError, match=r"^rows\.jsonl:4: no chosen"):
        benchmark_groups(
            benchmark_named("rewardbench-1"), [{"subset": "x", "id": 1, "prompt": ""}], where=lambda i: "rows.jsonl:4"
        )


def test_rows_of_one_id_are_renamed_and_that_is_said_once():
    rows = [RB1, {**RB1, "id": 8}, RB1, RB1, {**RB1, "id": "7#2"}, {**RB1, "subset": "hep-js"}]
    said = []
    groups = with_unique_ids(benchmark_groups(benchmark_named("rewardbench-1"), rows), said.append)
    ids = ["hep-go/7", "hep-go/8", "hep-go/7#3", "hep-go/7#4", "hep-go/7#2", "hep-js/7"]
    assert [group.id for group in groups] == ids
    assert said == ["2 rows have the id of an earlier row; a number is added to it, as in hep-go/7#3"]
    twice = benchmark_groups(benchmark_named("rewardbench-2"), [TIES, TIES])
    assert [ties_id(group.id)[1] for group in with_unique_ids(twice, said.append)] == ["3", "3#2"]


def test_texts_of_a_benchmark_are_taken_as_they_stand() -> None:
    asked, answer = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", '[{"role": "user", "content": "x"}]'
    group = group_of("rewardbench-1", {**RB1, "prompt": asked, "chosen": answer})
    assert group.prompt == (Message("user", asked),)
    assert group.completions[0] == (Message("assistant", answer),)
