"""Row schemas: what each makes of its rows, how they are told apart, and that no row can raise."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.curate import make_candidate
from rmtrain.data.curation import Candidate, Curation
from rmtrain.data.digests import digests
from rmtrain.data.parse import UnusableRow
from rmtrain.data.schemas.detect import find_schema
from rmtrain.data.schemas.published import SCHEMAS
from rmtrain.data.schemas.readers import ASPECTS, RECORDING_FAULT, read_ultrafeedback
from rmtrain.data.schemas.rows import ParsedRow, RowFault, template_arguments
from rmtrain.data.schemas.schema import RowSchema
from rmtrain.data.splits import leak_key
from rmtrain.data.types import Message, Preference
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import DataSection

SYSTEM, USER, OTHER = Message("system", "be brief"), Message("user", "q"), Message("user", "other")
GOOD, BAD = Message("assistant", "good"), Message("assistant", "bad")


def messages(*turns: Message) -> list[dict[str, str]]:
    return [turn.as_dict() for turn in turns]


def parse(schema: str, row: dict[str, Any], score: Any = "fine_grained") -> ParsedRow:
    return find_schema(row.keys(), row, DataSection(source="x", row_schema=schema, score=score)).read(row)


def cause(schema: str, row: dict[str, Any]) -> str:
    with pytest.raises(RowFault) as caught:
        parse(schema, row)
    return caught.value.cause


def completion(response: str, ratings: list[Any], overall: Any = 5.0, **more: Any) -> dict[str, Any]:
    annotations = {aspect: {"Rating": rating} for aspect, rating in zip(ASPECTS, ratings, strict=True)}
    return {"response": response, "annotations": annotations, "overall_score": overall, **more}


# pair


def test_pair_of_texts() -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "id": 7, "source": "flan"}
    assert parse("pair", row) == ParsedRow(
        (USER,), ((GOOD,), (BAD,)), (Preference(0, 1, None),), None, None, "7", "flan", 0
    )


CALL = {"type": "function", "function": {"name": "search", "arguments": {"q": "x"}}}


def test_what_messages_hold_beside_role_and_content_is_kept() -> None:
    asked = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "q", "name": "Ann", "tool": None},
    ]
    acted = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    told = {"role": "tool", "content": [{"type": "text", "text": "a", "image": None}, "b"], "tool_call_id": "7"}
    row = {"prompt": asked, "chosen": [acted, told, *messages(GOOD)], "rejected": messages(BAD)}
    parsed = parse("pair", row)
    assert [message.as_dict() for message in parsed.prompt] == [asked[0], {k: v for k, v in asked[1].items() if v}]
    assert [m.as_dict() for m in parsed.completions[0]] == [acted, {**told, "content": "ab"}, GOOD.as_dict()]
    assert parsed.completions[1] == (BAD,)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "content of type image_url"),
        ([{"type": "text", "text": "a"}, {"type": "audio"}], "content of type audio"),
        ([{"image": "x", "text": None}], "content of type image"),
        ([{"type": "text", "text": 3}], "wrong type"),
        ({"text": "a"}, "wrong type"),
        (None, "wrong type"),
    ],
)
def test_content_that_is_no_text_is_refused_by_name(content: Any, expected: str) -> None:
    row = {"prompt": "q", "chosen": [{"role": "assistant", "content": content}], "rejected": messages(BAD)}
    assert cause("pair", row) == expected


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("images", [{"bytes": b"x", "path": None}], "image"),
        ("image", b"x", "image"),
        ("image", "cat.png", "image"),
        ("videos", ["a.mp4"], "video"),
        ("audio", {"array": [0.1], "sampling_rate": 16000}, "audio"),
    ],
)
@pytest.mark.parametrize("answers", ["texts", "messages", "many"])
def test_a_column_that_is_no_text_is_refused_by_name(column: str, value: Any, kind: str, answers: str) -> None:
    row = {
        "texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
        "messages": {"chosen": messages(USER, GOOD), "rejected": messages(USER, BAD)},
        "many": {"prompt": "q", "completions": ["good", "bad"], "scores": [1, 0]},
    }[answers]
    schema = "completions" if answers == "many" else "pair"
    assert cause(schema, {**row, column: value}) == f"content of type {kind}"
    for nothing in (None, [], "", {}):  # of a row without one, beside rows with one
        assert parse(schema, {**row, column: nothing}) == parse(schema, row)


TOOL = {"type": "function", "function": {"name": "search"}}


def test_what_a_row_gives_the_template_is_read_as_json_or_as_it_is() -> None:
    expected = json.dumps({"tools": [TOOL], "thinking": False})
    row = {"tools": [TOOL], "documents": None, "chat_template_kwargs": {"thinking": False, "none": None}}
    assert template_arguments(row) == expected
    assert template_arguments({k: json.dumps(v) for k, v in row.items()}) == expected
    assert template_arguments({"prompt": "q", "tools": [], "documents": ""}) == ""
    for tools, told in (("search", "text 'search'"), (["search"], "list of 1"), ({"a": 1}, "a list of objects")):
        with pytest.raises(RowFault) as caught:
            template_arguments({"tools": tools})
        assert told in caught.value.detail


def test_pair_with_the_prompt_repeated_inside_the_messages() -> None:
    row = {"prompt": "q", "chosen": messages(SYSTEM, USER, GOOD), "rejected": messages(SYSTEM, USER, BAD)}
    parsed = parse("pair", row)
    assert parsed.prompt == (SYSTEM, USER)
    assert parsed.completions == ((GOOD,), (BAD,))


def test_pair_with_messages_that_follow_a_prompt_beside_them() -> None:
    row = {"prompt": messages(SYSTEM, USER), "chosen": messages(GOOD), "rejected": messages(BAD, OTHER, GOOD)}
    parsed = parse("pair", row)
    assert parsed.prompt == (SYSTEM, USER)
    assert parsed.completions == ((GOOD,), (BAD, OTHER, GOOD))


def test_pair_keeps_a_system_message_that_only_the_prompt_column_has() -> None:
    row = {"prompt": messages(SYSTEM, USER), "chosen": messages(USER, GOOD), "rejected": messages(USER, BAD)}
    assert parse("pair", row).prompt == (SYSTEM, USER)


def test_pair_whose_messages_go_on_from_the_prompt_column() -> None:
    row = {"prompt": messages(USER, GOOD), "chosen": messages(OTHER, GOOD), "rejected": messages(OTHER, BAD)}
    parsed = parse("pair", row)
    assert parsed.prompt == (USER, GOOD, OTHER)
    assert parsed.completions == ((GOOD,), (BAD,))


def test_pair_of_equal_conversations_leaves_each_a_message() -> None:
    parsed = parse("pair", {"chosen": messages(USER, GOOD), "rejected": messages(USER, GOOD)})
    assert parsed.prompt == (USER,)
    assert parsed.completions == ((GOOD,), (GOOD,))


@pytest.mark.parametrize(
    ("more", "scores", "gap"),
    [
        ({"score_chosen": 8, "score_rejected": 6.5}, (8.0, 6.5), 1.5),
        ({"metadata": {"score_chosen": 8, "score_rejected": 6.5}}, (8.0, 6.5), 1.5),
        ({"score_chosen": "8", "score_rejected": "6.5"}, (8.0, 6.5), 1.5),
        ({"score_chosen": 8, "score_rejected": None}, None, None),
        ({"margin": 0.25}, None, 0.25),
        ({"margin": 0}, None, 0.0),  # a tie
        ({"margin": None}, None, None),
        ({"chosen_score": 8, "rejected_score": "6.5"}, (8.0, 6.5), 1.5),
        ({"chosen-rating": 8, "rejected-rating": 6.5}, (8.0, 6.5), 1.5),
        ({"chosen_rating": 8, "rejected_rating": 6.5, "margin": 3}, (8.0, 6.5), 1.5),
        ({}, None, None),
    ],
)
def test_pair_scores(more: dict[str, Any], scores: Any, gap: Any) -> None:
    parsed = parse("pair", {"prompt": "q", "chosen": "good", "rejected": "bad", **more})
    assert parsed.scores == scores
    assert parsed.stated == (Preference(0, 1, gap),)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": "a", "rejected": "b"}, "no common prompt"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "missing value"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}, "negative margin"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "missing value"),
        ({"prompt": "q", "chosen": [], "rejected": []}, "missing value"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": messages(BAD)}, "wrong type"),
        ({"prompt": "q", "chosen": 1, "rejected": 2}, "wrong type"),
        ({"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": messages(BAD)}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": True, "score_rejected": 1}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "1e999"}, "wrong type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, "wrong type"),
        ({"prompt": "q", "chosen": [{"role": "bot", "content": "a"}], "rejected": messages(BAD)}, "unknown role"),
        ({"chosen": messages(USER), "rejected": messages(USER, BAD)}, "does not end with the assistant"),
        ({"chosen": messages(USER, GOOD), "rejected": messages(OTHER, BAD)}, "no common prompt"),
    ],
)
def test_pair_faults(row: dict[str, Any], expected: str) -> None:
    assert cause("pair", row) == expected


# hh_rlhf


def test_hh_rlhf_transcripts_split_at_their_common_turns() -> None:
    start = "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\nlines"
    parsed = parse("hh_rlhf", {"chosen": f"{start}\n\nAssistant: good ", "rejected": f"{start}\n\nAssistant: bad"})
    assert parsed.prompt == (USER, Message("assistant", "a"), Message("user", "more\nlines"))
    assert parsed.completions == ((GOOD,), (BAD,))


def test_hh_rlhf_sides_may_differ_early_and_in_length() -> None:
    chosen = "\n\nHuman: q\n\nAssistant: good\n\nHuman: other\n\nAssistant: bad"
    parsed = parse("hh_rlhf", {"chosen": chosen, "rejected": "\n\nHuman: q\n\nAssistant: bad"})
    assert parsed.prompt == (USER,)
    assert parsed.completions == ((GOOD, OTHER, BAD), (BAD,))


@pytest.mark.parametrize(
    "transcript",
    [
        "no turns",
        "",
        "\n\nHuman: q",
        "\n\nAssistant: a",
        "stray\n\nHuman: q\n\nAssistant: a",
        "\n\nHuman: q\n\nHuman: q\n\nAssistant: a",
        "\n\nHuman: q\n\nAssistant: a\n\nHuman: q",
    ],
)
def test_malformed_transcripts(transcript: str) -> None:
    row = {"chosen": transcript, "rejected": "\n\nHuman: q\n\nAssistant: bad"}
    assert cause("hh_rlhf", row) == "malformed transcript"


def test_hh_rlhf_without_a_common_prompt() -> None:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}
    assert cause("hh_rlhf", row) == "no common prompt"


# rewardbench


def test_rewardbench_pairs_carry_their_subset_and_may_hold_prompt_messages() -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "subset": "alpacaeval-easy", "id": 0}
    parsed = parse("rewardbench", row)
    assert (parsed.id, parsed.source, parsed.stated) == ("0", "alpacaeval-easy", (Preference(0, 1),))
    prior = parse("rewardbench", {**row, "prompt": messages(USER, GOOD, OTHER), "subset": "shp"})
    assert prior.prompt == (USER, GOOD, OTHER)


def test_rewardbench_lists_prefer_each_right_text_to_each_wrong_one() -> None:
    row = {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d", "e"], "domain": "math", "id": "tied:1"}
    parsed = parse("rewardbench", row)
    assert [c[0].content for c in parsed.completions] == list("abcde")
    assert parsed.stated == tuple(Preference(right, wrong) for right in (0, 1) for wrong in (2, 3, 4))
    assert (parsed.id, parsed.source) == ("tied:1", "math")
    assert cause("rewardbench", {**row, "rejected": []}) == "missing value"
    assert cause("rewardbench", {**row, "rejected": ["a", 3]}) == "wrong type"


# completions


def test_completions_with_preferences_and_scores() -> None:
    row = {"prompt": "q", "completions": ["a", "b", "c"], "preferences": [[2, 0], [1, 0]], "scores": [1, 2.5, 3]}
    parsed = parse("completions", row)
    assert parsed.stated == (Preference(2, 0, 2.0), Preference(1, 0, 1.5))
    assert parsed.scores == (1.0, 2.5, 3.0)


def test_completions_alone_state_nothing() -> None:
    parsed = parse("completions", {"prompt": messages(SYSTEM, USER), "completions": ["a"]})
    assert (parsed.prompt, parsed.stated, parsed.scores) == ((SYSTEM, USER), None, None)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"completions": []}, "missing value"),
        ({"completions": "a"}, "wrong type"),
        ({"completions": ["a", None]}, "missing value"),
        ({"completions": ["a", 1]}, "wrong type"),
        ({"scores": [1]}, "wrong type"),
        ({"preferences": [[0, 2]]}, "bad preference"),
        ({"preferences": [[-1, 0]]}, "bad preference"),
        ({"preferences": [[0, 0]]}, "bad preference"),
        ({"preferences": [[0, True]]}, "bad preference"),
        ({"preferences": [[0, 1], [1, 0]]}, "bad preference"),
        ({"preferences": [[0, 1, 2]]}, "bad preference"),
    ],
)
def test_completions_faults(more: dict[str, Any], expected: str) -> None:
    assert cause("completions", {"prompt": "q", "completions": ["a", "b"], **more}) == expected


# ultrafeedback


def test_ultrafeedback_fine_grained_is_the_mean_of_the_ratings_given() -> None:
    row = {
        "source": "evol_instruct",
        "instruction": "q",
        "completions": [
            completion("a", ["5", "4", "4", "2"]),
            completion("b", ["5", "N/A", "4", "N/A"]),
            completion("c", ["N/A"] * 4, **{"fine-grained_score": 2.25}),
            completion("d", [None, "N/A", None, None]),
            {"response": "e", "annotations": None, "overall_score": 1},
        ],
    }
    parsed = parse("ultrafeedback", row)
    assert parsed.scores == (3.75, 4.5, 2.25, None, None)
    assert parsed.faults == (None, None, None, "unrated completion", "unrated completion")
    assert (parsed.prompt, parsed.source, parsed.stated) == ((USER,), "evol_instruct", None)


@pytest.mark.parametrize(("ratings", "faulty"), [(["1", "2", "3", "2"], True), (["2", "2", "3", "2"], False)])
def test_ultrafeedback_recording_fault(ratings: list[str], faulty: bool) -> None:
    row = {"instruction": "q", "completions": [completion("a", ratings, 10), completion("b", ["1"] * 4, 9)]}
    by_overall = parse("ultrafeedback", row, "overall")
    assert by_overall.scores == (10.0, 9.0)
    assert by_overall.faults == (RECORDING_FAULT if faulty else None, None)
    assert parse("ultrafeedback", row).faults == (None, None)
    assert by_overall.suspect == parse("ultrafeedback", row).suspect == int(faulty)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": None, "completions": [completion("a", ["1"] * 4)]},
        {"instruction": "q", "completions": None},
        {"instruction": "q", "completions": ["a"]},
        {"instruction": "q", "completions": [{"response": 3}]},
        {"instruction": "q", "completions": [{"response": "a", "annotations": ["1"]}]},
        {"instruction": "q", "completions": [completion("a", ["five", "1", "1", "1"])]},
    ],
)
def test_ultrafeedback_faults(row: dict[str, Any]) -> None:
    assert cause("ultrafeedback", row) in ("missing value", "wrong type")


# telling them apart

TRANSCRIPT = "\n\nHuman: q\n\nAssistant: a"


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        ({"source": "", "instruction": "q", "models": [], "completions": []}, "ultrafeedback"),
        ({"prompt": "q", "completions": ["a"]}, "completions"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "pair"),
        ({"prompt": "q", "chosen": messages(USER, GOOD), "rejected": messages(USER, BAD)}, "pair"),
        ({"chosen": messages(USER, GOOD), "rejected": messages(USER, BAD)}, "pair"),
        ({"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}, "hh_rlhf"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "subset": "s", "id": 1}, "rewardbench"),
        ({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}, "rewardbench"),
    ],
)
def test_schemas_are_told_apart_by_columns(row: dict[str, Any], schema: str) -> None:
    assert find_schema(row.keys(), row, DataSection(source="x")).name == schema


def test_the_recipe_knows_every_schema() -> None:
    names = get_args(DataSection.model_fields["row_schema"].annotation)
    assert {*names} == {"auto", *(schema.name for schema in SCHEMAS)}


@pytest.mark.parametrize(
    "row", [{"question": "q", "answer": "a"}, {"asked": "by me", "chosen": "a", "rejected": "b"}, {"prompt": "q"}]
)
def test_unknown_columns_are_named_beside_the_schemas(row: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        find_schema(row.keys(), row, DataSection(source="x"))
    assert ", ".join(sorted(row)) in caught.value.message
    assert all(schema.name in caught.value.hint for schema in SCHEMAS)
    assert "hh_rlhf (chosen, rejected)" in caught.value.hint
    assert ("if asked holds the prompt, data.columns: {prompt: asked}" in caught.value.hint) == ("asked" in row)


# any row at all

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["system", "user", "assistant", "tool"]) | SCALARS, "content": SCALARS}
)
SPEECH = st.lists(st.sampled_from(["\n\nHuman:", "\n\nAssistant:", " q", " a", "\n"]), max_size=8).map("".join)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "response": SCALARS,
        "annotations": SCALARS
        | st.dictionaries(st.sampled_from(ASPECTS), SCALARS | st.fixed_dictionaries({"Rating": SCALARS})),
        "overall_score": SCALARS,
        "fine-grained_score": SCALARS,
    },
)
VALUE = st.one_of(
    SCALARS,
    SPEECH,
    st.lists(MESSAGE, max_size=4),
    st.lists(SCALARS, max_size=4),
    st.lists(ENTRY, max_size=4),
    st.lists(st.lists(st.integers(-1, 4), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
)
SPOKEN = st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), SCALARS | st.just("gpt"), max_size=2)
VALUE = VALUE | SPOKEN | st.lists(SPOKEN, max_size=3) | st.lists(SPOKEN, max_size=3).map(str)
ANSWERS = st.lists(
    st.fixed_dictionaries(
        {"text": st.text(max_size=2) | SCALARS}, optional=dict.fromkeys(("answer", "rank", "pm_score"), SCALARS)
    ),
    max_size=4,
)
COLUMNS = sorted({column for schema in SCHEMAS for column in schema.columns})
EXTRA = st.dictionaries(st.sampled_from(COLUMNS), VALUE, max_size=4)


LIKELY: dict[str, Any] = {
    "completions": st.lists(st.text(max_size=2), min_size=1, max_size=4) | st.lists(ENTRY, min_size=1, max_size=4),
    "chosen": SPEECH | st.lists(MESSAGE, min_size=1, max_size=4),
    "rejected": SPEECH | st.lists(MESSAGE, min_size=1, max_size=4),
    "prompt": st.text(max_size=3),
    "instruction": st.text(max_size=3),
    "answers": ANSWERS,
    "summaries": ANSWERS,
    "choice": st.integers(-1, 4),
    "winner": st.sampled_from(["model_a", "model_b", "tie", "neither"]),
}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SCHEMAS), st.sampled_from(["train", "evaluation", "scoring"]), st.data())
def test_any_row_is_a_group_or_a_counted_drop(schema: RowSchema, purpose: Any, data: Any) -> None:
    names = {column.partition(".")[0] for column in (*schema.needs, *schema.answers)}
    likely = st.fixed_dictionaries({column: LIKELY.get(column, VALUE) | VALUE for column in names})
    row = {**data.draw(EXTRA), **data.draw(likely)}
    mode = data.draw(st.sampled_from(["all", "best_vs_rest", "best_vs_worst", "as_given"]))
    score = data.draw(st.sampled_from(["fine_grained", "overall"]))
    made, unusable = list[Candidate](), list[UnusableRow]()
    try:
        parsed = schema.read(row) if schema.name != "ultrafeedback" else read_ultrafeedback(row, score)
    except RowFault as fault:
        unusable = [UnusableRow(0, fault.cause, fault.detail)]
    else:
        assert len(parsed.completions) > 0
        assert all(parsed.completions)
        made = [make_candidate(0, parsed, parsed.id or "train-0", purpose, mode, 0.0)]
    curation = Curation.of(made, digests(leak_key(each.group.prompt) for each in made))
    curation.unusable = unusable
    report = curation.report("train", schema.name, 1, str)  # raises when a ledger does not balance
    for group in curation.groups:
        k = len(group.completions)
        assert purpose == "scoring" or (k >= 2 and group.preferences)
        assert all(0 <= p.better < k and 0 <= p.worse < k and p.better != p.worse for p in group.preferences)
        assert group.scores is None or len(group.scores) == k
    assert report.rows.kept == len(curation.kept)
    assert purpose != "scoring" or report.completions.dropped == {}
