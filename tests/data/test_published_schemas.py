"""Published layouts: hand-made rows with the columns, labels and ties that their authors give them.

What confirms columns, splits and the sign of the preference, of the data sets that the shipped recipes name:

- HelpSteer3: `overall_preference` is -3 to 3, and below 0 where response 1 is better; configuration `preference`,
  splits `train` and `validation`. nemo_rl/data/hf_datasets/helpsteer3.py of NeMo-RL (as in github.com/yzjiao/BR-RM),
  and the cards of the data sets AIR-hl/helpsteer3_preference and CarlOwOs/HelpSteer3-Processed, which were made from
  it.
- Unified-Feedback: `conv_A` and `conv_B` are messages, and the larger of `conv_A_rating` and `conv_B_rating` is the
  better (Nectar's ranks are negated there); splits `train` and `val`. process_and_upload_dataset.py of
  github.com/jdf-prog/UnifiedFeedback, and the card of llm-blender/Unified-Feedback.
- SHP: `labels` is 1 where A is preferred, 0 where B is. The card, as stanfordnlp-SHP/README.md in
  github.com/DagsHub/open-source-ml-datasets.
- UltraInteract_pair: `trajectory` is a list of `from` and `value`, `chosen` and `rejected` are texts that follow it;
  split `train`. scripts/data/preferences/ultrainteract.py of github.com/allenai/open-instruct.
- hh-rlhf: `chosen` and `rejected` are whole transcripts. process_and_upload_dataset.py, as above.
- PKU-SafeRLHF: `safer_response_id` is the number of the safer response; splits `train` and `test`.
  llama_factory/data/safety_alignment_wizardlm/filter_data_for_pretrain_dpo.py of
  github.com/xinykou/safety_realignment, and the card, as Data/PKU-SafeRLHF/README.md in github.com/yhc-666/UPS-RM.
- Skywork-Reward-Preference-80K-v0.2: `chosen` and `rejected` are messages that hold the prompt, `source` beside them;
  split `train`. Its card; HelpSteer2, OffsetBias and WildGuard come into the recipes through it alone.
"""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.load import load_data
from rmtrain.data.schemas.detect import find_schema
from rmtrain.data.schemas.messages import messages_in
from rmtrain.data.schemas.prompts import shared_beginning
from rmtrain.data.schemas.rows import ParsedRow, RowFault
from rmtrain.data.types import Message, Preference, of_ids
from rmtrain.errors import DataError
from rmtrain.recipe.bundled import bundled_recipes
from rmtrain.recipe.data_schema import DataSection
from rmtrain.recipe.load import load_recipe

Q, GOOD, BAD = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad")
MORE, SYSTEM = Message("user", "more"), Message("system", "be brief")


def messages(*turns: Message) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def spoken(*turns: Message) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn.role], "value": turn.content} for turn in turns]


def read(row: dict[str, Any], **data: Any) -> ParsedRow:
    return find_schema(row.keys(), row, DataSection(source="x", **data)).read(row)


def name(row: dict[str, Any]) -> str:
    return find_schema(row.keys(), row, DataSection(source="x")).name


def winner(parsed: ParsedRow) -> str | None:
    """What the better of two answers says last; None for a tie."""
    assert parsed.stated is not None
    (stated,) = parsed.stated
    return None if stated.gap == 0 else parsed.completions[stated.better][-1].content


ARENA = {
    "question_id": "1", "model_a": "m", "model_b": "n", "judge": "arena_user_1", "turn": 1, "language": "English",
    "conversation_a": messages(Q, GOOD), "conversation_b": messages(Q, BAD),
}  # fmt: skip
PAIRED = {"qid": 1, "question": "q", "metadata": ["u"], "response_j": "good", "response_k": "bad"}
STRENGTHS = [(-3, "good"), (1, "bad"), (0, None)]  # below 0, the first answer is better
HELPSTEER2 = {"prompt": "q", "response_1": "good", "response_2": "bad", "preference_statement": "s"}
HELPSTEER3 = {"domain": "code", "language": "python", "context": messages(Q), "individual_preference": []}
PKU = {
    "prompt": "q",
    "response_0": "good",
    "response_1": "bad",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
}
SHP = {"post_id": "1", "domain": "askculinary_train", "history": "q", "human_ref_A": "good", "human_ref_B": "bad"}
KAGGLE = {"id": 5, "model_a": "m", "model_b": "n", "prompt": '["q", "more"]'}


@pytest.mark.parametrize(
    ("row", "schema", "better"),
    [
        *(
            (ARENA | {"winner": label}, "arena", best)
            for label, best in [("model_a", "good"), ("model_b", "bad"), ("tie", None), ("tie (bothbad)", None)]
        ),
        ({"prompt": "q", "response_a": "good", "response_b": "bad", "winner": "model_b", "id": "1"}, "arena", "bad"),
        *((HELPSTEER2 | {"preference_strength": n}, "helpsteer", best) for n, best in STRENGTHS),
        *(
            (HELPSTEER3 | {"response1": "good", "response2": "bad", "overall_preference": n}, "helpsteer", best)
            for n, best in STRENGTHS
        ),
        (PKU | {"better_response_id": 0, "safer_response_id": 1}, "pku_saferlhf", "good"),
        (PKU | {"safer_response_id": 1}, "pku_saferlhf", "bad"),
        (SHP | {"labels": 1, "score_A": 30, "score_B": 4}, "shp", "good"),
        (SHP | {"labels": 0, "score_A": 4, "score_B": 30}, "shp", "bad"),
        (PAIRED, "stack_exchange", "good"),
        ({"conversations": spoken(Q), "chosen": spoken(GOOD)[0], "rejected": spoken(BAD)[0]}, "sharegpt", "good"),
        ({"messages": messages(Q, GOOD), "rejected_response": "bad"}, "swift", "good"),
        ({"messages": messages(Q, GOOD), "rejected_messages": messages(Q, BAD)}, "swift", "good"),
        ({"query": "q", "response": "good", "rejected_response": "bad"}, "swift", "good"),
        ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, "alpaca", "good"),
        ({"instruction": "q", "output": ["good", "bad"]}, "alpaca", "good"),
        ({"question": "q", "chosen": "good", "rejected": "bad"}, "pair", "good"),
    ],
)  # fmt: skip
def test_pairs_as_they_are_published(row: dict[str, Any], schema: str, better: str | None) -> None:
    assert name(row) == schema
    parsed = read(row)
    assert parsed.prompt == (Q,)
    assert sorted(completion[0].content for completion in parsed.completions) == ["bad", "good"]
    assert winner(parsed) == better


@pytest.mark.parametrize(("mark", "better"), [("a", "good too"), ("b", "bad too"), ("tie", None)])
def test_arena_turns_of_the_kaggle_competition(mark: str, better: str | None) -> None:
    marks = {f"winner_{end}": int(end.endswith(mark)) for end in ("model_a", "model_b", "tie")}
    row = KAGGLE | {"response_a": '["good", "good too"]', "response_b": '["bad", "bad too"]'} | marks
    parsed = read(row)
    assert (name(row), parsed.prompt, winner(parsed)) == ("arena", (Q,), better)
    assert parsed.completions[0] == (GOOD, MORE, Message("assistant", "good too"))
    for wrong in ('["good", null]', '["good"]', '["good", "\\ud83d"]', '["good", "too]'):
        with pytest.raises(RowFault):
            read(row | {"response_a": wrong})


def test_an_arena_judgement_of_the_first_turn_leaves_out_the_second() -> None:
    long = {"conversation_a": messages(Q, GOOD, MORE, BAD), "conversation_b": messages(Q, BAD, MORE, GOOD)}
    row = ARENA | long | {"winner": "model_b"}
    assert read(row).completions == ((GOOD,), (BAD,))
    assert read(row | {"turn": 2}).completions == ((GOOD, MORE, BAD), (BAD, MORE, GOOD))


NECTAR, ARENA_TIE = "berkeley-nest/Nectar", "lmsys/chatbot_arena_conversations"


@pytest.mark.parametrize(
    ("ratings", "source", "better"),
    [
        ((-1.0, -6.0), NECTAR, "good"),  # ranks, negated: the first of seven answers
        ((-7.0, -2.0), NECTAR, "bad"),
        ((0.0, 1.0), "Anthropic/hh-rlhf", "bad"),
        ((0.5, 0.5), ARENA_TIE, None),
        ((0.0, 0.0), ARENA_TIE, None),  # both bad
    ],
)
def test_unified_feedback_as_the_recipe_reads_it(ratings: tuple[float, float], source: str, better: str | None) -> None:
    """With the reading of the shipped recipe; the conversations of an arena part after the first question."""
    (path,) = (recipe.path for recipe in bundled_recipes() if recipe.name == "unified_feedback")
    data = load_recipe(path, []).recipe.data
    row = {"id": "1", "conv_A": messages(Q, GOOD, MORE, GOOD), "conv_B": messages(Q, BAD, MORE, BAD), "num_turns": 2}
    row |= {"conv_A_rating": ratings[0], "conv_B_rating": ratings[1], "source": source}
    parsed = read(row, answers=data.answers, scores=data.scores)
    assert (parsed.prompt, parsed.completions) == ((Q,), ((GOOD, MORE, GOOD), (BAD, MORE, BAD)))
    assert parsed.scores == ratings  # the larger is the better
    assert better == (None if ratings[0] == ratings[1] else parsed.completions[ratings[1] > ratings[0]][0].content)


def test_strengths_are_gaps_and_scores_beside_a_label_must_agree() -> None:
    assert read(HELPSTEER2 | {"preference_strength": -2}).stated == (Preference(0, 1, 2.0),)
    assert read(HELPSTEER2 | {"preference_strength": "2"}).stated == (Preference(1, 0, 2.0),)
    assert read(SHP | {"labels": 1, "score_A": 30, "score_B": 4}).stated == (Preference(0, 1, 26.0),)
    assert read(SHP | {"labels": "1", "score_A": 3, "score_B": 4}).stated == (Preference(0, 1, -1.0),)  # dropped later
    for wrong in ("much better", None, float("nan"), True):
        with pytest.raises(RowFault, match=r"label|missing|type"):
            read(HELPSTEER2 | {"preference_strength": wrong})
    with pytest.raises(RowFault) as caught:
        read({"prompt": "q", "response_a": "x", "response_b": "y", "winner": "gpt-4"})
    assert caught.value.detail.startswith(
        "unknown label: column winner holds the text 'gpt-4', expected one of: model_a,"
    )


def test_the_recipe_chooses_the_label_of_safe_rlhf() -> None:
    row = PKU | {"better_response_id": 0, "safer_response_id": 1}
    assert winner(read(row)) == "good"
    assert winner(read(row, label="safer_response_id")) == "bad"
    with pytest.raises(DataError, match=r"data\.label names nope, but there is no such column"):
        read(row, label="nope")


def test_rank_1_is_the_best_of_nectar() -> None:
    answers = [{"answer": text, "model": "m", "rank": rank} for text, rank in [("c", 3.0), ("a", 1.0), ("b", 2.0)]]
    row = {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": answers,
        "turns": 1,
        "num_responses": 3,
        "source": ["lmsys"],
    }
    parsed = read(row)
    assert (name(row), parsed.prompt, parsed.source) == ("nectar", (Q,), "lmsys")
    assert parsed.scores == (-3.0, -1.0, -2.0)
    assert parsed.stated is None


def test_stack_exchange_answers_are_ranked_by_their_score() -> None:
    answers = [
        {"answer_id": 1, "author": "x", "pm_score": score, "selected": False, "text": f"{score}"} for score in (2, 0)
    ]
    row = {"qid": 7, "question": "q", "answers": answers, "date": "2020/01/01", "metadata": ["u"]}
    parsed = read(row)
    assert (name(row), parsed.scores, parsed.prompt) == ("stack_exchange", (2.0, 0.0), (Q,))
    assert read(row | {"answers": json.dumps(answers)}) == parsed
    assert read(row | {"answers": repr(answers)}) == parsed


def test_summaries_are_prompted_as_their_authors_did() -> None:
    info = {"id": "t3", "post": "I ate it.", "title": "Cake", "subreddit": "food", "site": None, "article": None}
    summaries = [{"text": text, "policy": "sup4", "note": None} for text in ("bad", "good")]
    row = {"info": info, "summaries": summaries, "choice": 1, "worker": "w", "batch": "batch3", "split": "train"}
    parsed = read(row)
    assert (name(row), winner(parsed), parsed.source) == ("summarize", "good", "batch3")
    assert parsed.prompt[0].content == "SUBREDDIT: r/food\n\nTITLE: Cake\n\nPOST: I ate it.\n\nTL;DR:"
    news = info | {"post": None, "subreddit": None, "article": "It rained."}
    assert read(row | {"info": news}).prompt[0].content == "TITLE: Cake\n\nArticle: It rained.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("row", "described"),
    [
        ({"instruction": "q", "output": ["good", "bad"]}, {}),
        ({"prompt": "q", "replies": ["good", "bad"], "share": 1}, {"answers": ["replies"], "votes": "share"}),
        (
            {"prompt": "q", "a": "x", "b": "y", "c": "z", "preferences": [[0, 1]], "share": [1]},
            {"answers": ["a", "b", "c"], "votes": "share"},
        ),
    ],
)
@pytest.mark.parametrize("texts", [["x"], ["x", "y"]])
def test_lists_of_texts_in_place_of_answers_are_a_fault_of_their_row(row: Any, described: Any, texts: Any) -> None:
    schema = find_schema([*row], row, DataSection(source="x", **described))
    column = schema.answers[0]
    for value in (texts, [texts]) if len(schema.answers) > 1 else ([texts], [texts, texts], [texts] * 3):
        with pytest.raises(RowFault, match="wrong type"):
            schema.read({**row, column: value})


def test_alpaca_reads_every_part_of_the_prompt() -> None:
    row = {"instruction": "more", "input": "of it", "system": "be brief", "history": [["q", "good"]]}
    parsed = read(row | {"chosen": "good", "rejected": "bad"})
    assert parsed.prompt == (SYSTEM, Q, GOOD, Message("user", "more\nof it"))
    with pytest.raises(RowFault, match="wrong type"):
        read(row | {"chosen": "good", "rejected": "bad", "history": [["q"]]})


def test_a_system_column_is_read_once() -> None:
    row = {"prompt": messages(SYSTEM, Q), "chosen": "good", "rejected": "bad"}
    assert read(row | {"system": "be brief"}).prompt == (SYSTEM, Q) == read(row | {"system": ""}).prompt
    assert read({**row, "prompt": "q", "system": "be brief"}).prompt == (SYSTEM, Q)
    rated = {"instruction": "q", "completions": [{"response": "good", "overall_score": 1}] * 2, "system": "be brief"}
    assert read(rated).prompt == (SYSTEM, Q)
    with pytest.raises(RowFault, match="two system messages"):
        read(row | {"system": "be long"})


def test_trajectories_and_multi_turn_prompts() -> None:
    turns = [{"from": "user", "value": "q"}, {"from": "assistant", "value": "good"}, {"from": "user", "value": "more"}]
    row = {"task": "Math", "dataset": "gsm", "trajectory": turns, "chosen": "good", "rejected": "bad", "parent_id": 1}
    parsed = read(row)
    assert (name(row), parsed.prompt, parsed.source) == ("ultrainteract", (Q, GOOD, MORE), "gsm")
    marked = "q\n<extra_id_1>Assistant\ngood\n<extra_id_1>User\nmore"
    assert read(HELPSTEER2 | {"prompt": marked, "preference_strength": 1}).prompt == (Q, GOOD, MORE)


def test_several_layouts_at_once_are_an_error_that_names_them() -> None:
    row = {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 0, "chosen": "x", "rejected": "y"}
    with pytest.raises(DataError, match="fit several row schemas: pair, pku_saferlhf") as caught:
        read(row)
    assert "data.row_schema: pair" in caught.value.hint
    assert winner(read(row, row_schema="pku_saferlhf")) == "x"


# texts that stand for messages


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(messages(Q, GOOD)),
        repr(messages(Q, GOOD)),
        "[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'good'}]",  # as numpy prints it
        json.dumps(spoken(Q, GOOD), indent=1),
        str([{"weight": None, **turn} for turn in spoken(Q, GOOD)]),
    ],
)
def test_messages_in_texts_are_read(text: str) -> None:
    rejected = json.dumps(messages(Q, BAD))
    for row in ({"chosen": text, "rejected": rejected}, {"prompt": "q", "chosen": text, "rejected": rejected}):
        parsed = read(row)
        assert parsed.prompt == (Q,)
        assert parsed.completions == ((GOOD,), (BAD,))
    prompt = read({"prompt": text.replace("good", "bad"), "chosen": "good", "rejected": "bad"}).prompt
    assert prompt == (Q, BAD)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "[{'x': 1}",
        '{"role": "user", "content": "q"}',
        '[{"name": "x"}]',
        "[{}]",
        '[{"role": "king", "content": "x"}]',
    ],
)
def test_answers_that_are_json_are_texts(text: str) -> None:
    assert read({"prompt": "q", "chosen": text, "rejected": "bad"}).completions[0] == (Message("assistant", text),)


def test_messages_that_cannot_be_read_are_refused_with_their_column() -> None:
    with pytest.raises(RowFault) as caught:
        read({"prompt": "[{'role': 'user', 'content': array(['q'])}]", "chosen": "good", "rejected": "bad"})
    assert caught.value.cause == "unreadable messages"
    assert "column prompt holds the text \"[{'role': 'user'" in caught.value.detail
    with pytest.raises(ValueError, match="too long"):
        messages_in("[{'role': 'user', 'content': '" + "x" * 1_000_001 + "'}]")
    with pytest.raises(ValueError, match="neither"):
        messages_in("[{'role': " + "(" * 5000)
    for strange in ("'\\ud83d'", "b'q'"):
        with pytest.raises(ValueError, match="surrogate"):
            messages_in(f"[{{'role': 'user', 'content': {strange}}}]")


@pytest.mark.parametrize("start", ["\n\nHuman: q", "Human: q"])
def test_a_prompt_that_is_a_transcript_is_read_as_one(start: str) -> None:
    row = {"chosen": "good", "rejected": "bad"}
    turns = (Q, GOOD, MORE)
    assert read(row | {"prompt": f"{start}\n\nAssistant: good\n\nHuman: more\n\nAssistant:"}).prompt == turns
    assert read(row | {"prompt": f"{start}\n\nAssistant: good\n\nHuman: more"}).prompt == turns
    with pytest.raises(RowFault, match="malformed transcript"):
        read(row | {"prompt": f"{start}\n\nAssistant: good"})
    alone = read(row | {"prompt": "Human: rights, in a line"}).prompt
    assert alone == (Message("user", "Human: rights, in a line"),)


# pairs whose prompt is what they begin with


@settings(deadline=None)  # the first example imports TRL
@given(st.text("ab ", max_size=6), st.text("ab ", min_size=1, max_size=4), st.text("ab ", min_size=1, max_size=4))
def test_the_shared_beginning_is_that_of_trl(start: str, one: str, other: str) -> None:
    chosen, rejected = start + one, start + other
    if chosen[:1] != rejected[:1] or min(len(chosen), len(rejected)) < 2:
        return  # TRL then cuts at the end
    cut = shared_beginning(chosen, rejected)
    parts = trl.extract_prompt({"chosen": chosen, "rejected": rejected})  # type: ignore[dict-item]
    assert parts == {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def test_texts_without_a_prompt_share_their_beginning() -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green.", "margin": 2, "id": "1"}
    parsed = read(row)
    assert parsed.prompt == (Message("user", "The sky is"),)
    assert [completion[0].content for completion in parsed.completions] == [" blue.", " green."]
    assert parsed.stated == (Preference(0, 1, 2.0),)
    for column in ("query", "asked"):  # a text beside them could be the prompt
        with pytest.raises(DataError, match="no known row schema"):
            read(row | {column: "of what colour"})
    assert read(row | {"asked": "of what colour"}, row_schema="pair") == parsed


# pairs of token ids


@pytest.mark.parametrize(
    "names",
    [
        ("prompt_ids", "chosen_ids", "rejected_ids"),
        ("prompt_input_ids", "chosen_input_ids", "rejected_input_ids"),
        ("prompt_ids", "input_ids_chosen", "input_ids_rejected"),
    ],
)
def test_token_ids_under_the_names_of_trl(names: tuple[str, str, str]) -> None:
    asked, *answers = names
    right = (of_ids([1, 7]),), ((of_ids([8, 2]),), (of_ids([9, 9, 2]),))
    both = dict(zip(answers, ([8, 2], [9, 9, 2]), strict=True))
    whole = dict(zip(answers, ([1, 7, 8, 2], [1, 7, 9, 9, 2]), strict=True))
    for row in (both | {asked: [1, 7]}, whole | {asked: [1, 7]}, whole, whole | {asked: []}, whole | {asked: None}):
        assert read(row)[:2] == right
    assert read({column: json.dumps(ids) for column, ids in whole.items()})[:2] == right
    scored = read(whole | {"margin": 0.5, "id": 3})
    assert (scored.stated, scored.id) == ((Preference(0, 1, 0.5),), "3")
    longer = read(dict(zip(answers, ([1, 7], [1, 7, 8]), strict=True)))  # each answer keeps a token
    assert longer[:2] == ((of_ids([1]),), ((of_ids([7]),), (of_ids([7, 8]),)))


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ([1, 2.5], r"wrong type: column chosen_ids\[1\] holds the number 2.5, expected a list of token ids"),
        ([1, -100], r"column chosen_ids\[1\] holds the number -100, expected"),
        ([1, True], r"column chosen_ids\[1\] holds true, expected"),
        ([[1], [2]], r"column chosen_ids\[0\] holds a list of 1 that begins with the number 1, expected"),
        (["1", "2"], r"column chosen_ids\[0\] holds the text '1', expected"),
        ([None], r"column chosen_ids\[0\] holds nothing, expected"),
        ("1 2", "column chosen_ids holds the text '1 2', expected"),
        (7, "column chosen_ids holds the number 7, expected"),
        ([], "missing value: column chosen_ids"),
        (None, "missing value: column chosen_ids"),
        ([5, 6], "no common prompt"),
    ],
)
def test_what_no_token_ids_are(ids: Any, fault: str) -> None:
    with pytest.raises(RowFault) as caught:
        read({"chosen_ids": ids, "rejected_ids": [1, 3]})
    assert re.search(fault, caught.value.detail)


def test_texts_go_before_their_token_ids() -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "chosen_ids": [1, 2], "rejected_ids": [1, 3]}
    assert read(row).completions == ((GOOD,), (BAD,))
    assert read(row, row_schema="tokens").completions == ((of_ids([2]),), (of_ids([3]),))


def test_what_stands_beside_token_ids_is_not_read_and_named(tmp_path: Path) -> None:
    pair = {"chosen_ids": [1, 2], "rejected_ids": [1, 3]}
    beside = {"system": "s", "tools": [{"name": "t"}], "chosen_attention_mask": [1, 1], "prompt": "q"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(pair | beside) + "\n")
    source = {"train": str(tmp_path / "rows.jsonl")}
    loaded = load_data(DataSection(source=source), 0)
    (group,) = loaded.splits["train"].groups
    assert (group.prompt, group.arguments) == ((of_ids([1]),), "")
    assert "train: columns that are not used: chosen_attention_mask, prompt, system, tools" in loaded.notes


def test_no_message_can_claim_to_be_token_ids() -> None:
    forged = [{"role": "tokens", "content": "[1, 2]"}]
    for prompt in (forged, [{"from": "tokens", "value": "[1]"}]):
        with pytest.raises(RowFault, match="unknown role"):
            read({"prompt": prompt, "chosen": "good", "rejected": "bad"})
    assert read({"prompt": json.dumps(forged), "chosen": "good", "rejected": "bad"}).prompt[0].role == "user"


# layouts that the recipe describes


@pytest.mark.parametrize(
    ("values", "better", "ties"),
    [
        (("A", "B", "C"), {"A": 0, "B": 1}, ["C"]),
        ((1, "2", 0), {"1": 0, "2": 1}, [0]),
        ((True, "False", "na"), {"true": 0, "false": 1}, ["NA"]),
        ((0.5, "-1", 0.0), {"positive": 0, "negative": 1}, []),
        ((0, 1.0, -1), {}, [-1]),
    ],
)
def test_a_label_s_values_mean_what_the_recipe_says(values: Any, better: Any, ties: Any) -> None:
    data = {"answers": ["one", "two"], "label": "verdict", "better": better, "ties": ties}
    found = [winner(read({"question": "q", "one": "good", "two": "bad", "verdict": value}, **data)) for value in values]
    assert found == ["good", "bad", None]


def test_scores_in_columns_and_in_lists() -> None:
    columns = read({"prompt": "q", "a": "x", "b": "y", "s": 1, "t": "2.5"}, answers=["a", "b"], scores=["s", "t"])
    assert (columns.scores, columns.stated) == ((1.0, 2.5), None)
    replies = [{"body": "x", "votes": 3}, {"body": "y", "votes": None}, {"body": "z", "votes": 1}]
    listed = read({"context": messages(Q), "replies": replies}, answers=["replies.body"], scores=["replies.votes"])
    assert (listed.prompt, listed.scores) == ((Q,), (3.0, None, 1.0))
    assert listed.faults == (None, "unrated completion", None)
    best = read({"prompt": "q", "replies": ["x", "y", "z"], "best": 2}, answers=["replies"], label="best")
    assert best.stated == (Preference(2, 0), Preference(2, 1))
    for row in ({"best": 3}, {"best": -1}, {"replies": "x"}, {"replies": []}):
        with pytest.raises(RowFault):
            read({"prompt": "q", "replies": ["x", "y", "z"], "best": 2, **row}, answers=["replies"], label="best")
    with pytest.raises(DataError, match="which does not exist"):
        read({"prompt": "q", "a": "x"}, answers=["a", "b"], scores=["s", "t"])
    with pytest.raises(DataError, match="no column holds the prompt"):
        read({"ask": "q", "a": "x", "b": "y", "best": 0}, answers=["a", "b"], label="best")


# whole files


def test_a_shared_beginning_is_noted(tmp_path: Path) -> None:
    found = load(tmp_path / "x.jsonl", [{"chosen": f"{i}: yes", "rejected": f"{i}: no"} for i in range(3)])
    assert [group.prompt[0].content for group in found.splits["train"].groups] == ["0:", "1:", "2:"]
    assert found.notes == [
        "train: no column holds a prompt: the shared beginning of chosen and rejected is the prompt, as in TRL"
    ]


def load(path: Path, rows: list[dict[str, Any]], **data: Any) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data(DataSection(source=str(path), splits={"train": "train"}, **data), 0)


BATTLES = [
    {"ask": f"q{i}", "response_a": f"good {i}", "response_b": f"bad {i}", "verdict": "AB="[i % 3], "hours": i}
    for i in range(9)
]


def test_a_described_layout_is_booked_and_what_nobody_reads_is_named(tmp_path: Path) -> None:
    found = load(
        tmp_path / "x.jsonl",
        BATTLES,
        columns={"prompt": "ask"},
        answers=["response_a", "response_b"],
        label="verdict",
        better={"A": 0, "B": 1},
        ties=["="],
    )
    train = found.splits["train"]
    assert train.report.rows.dropped == {"tie": 3}
    assert [group.preferences[0].better for group in train.groups] == [0, 1] * 3
    assert found.notes == ["train: columns that are not used: hours"]


def test_a_label_that_renamed_answers_would_hide_is_an_error(tmp_path: Path) -> None:
    renamed = {"prompt": "ask", "chosen": "response_a", "rejected": "response_b"}
    with pytest.raises(DataError, match=r"verdict seems to say which one is better \(its values: =, a, b\)") as caught:
        load(tmp_path / "x.jsonl", BATTLES, columns=renamed)
    assert "data.answers: [response_a, response_b], data.label: verdict" in caught.value.hint
    kept = load(tmp_path / "x.jsonl", BATTLES, columns=renamed, row_schema="pair")
    assert kept.notes == ["train: columns that are not used: hours, verdict"]
    arena = [
        {"prompt": row["ask"], **row, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0} for row in BATTLES
    ]
    with pytest.raises(DataError) as caught:
        load(tmp_path / "y.jsonl", arena, columns={"chosen": "response_a", "rejected": "response_b"})
    assert caught.value.hint == "leave data.columns out: row schema arena reads these columns"
    strengths = [HELPSTEER2 | {"preference_strength": 1}] * 3  # all above 0: nothing but the name tells
    renamed = {"chosen": "response_1", "rejected": "response_2", "margin": "preference_strength"}
    with pytest.raises(DataError, match="preference_strength seems to say which one is better") as caught:
        load(tmp_path / "z.jsonl", strengths, columns=renamed)
    assert "row schema helpsteer" in caught.value.hint


def test_a_rename_that_drops_a_part_of_the_prompt_is_an_error(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}", "input": "x" * i, "chosen": "good", "rejected": "bad"} for i in range(3)]
    with pytest.raises(DataError, match="leaves out input, a part of the prompt"):
        load(tmp_path / "x.jsonl", rows, columns={"prompt": "instruction"})
    assert load(tmp_path / "x.jsonl", rows).splits["train"].groups[2].prompt[0].content == "q2\nxx"


def test_a_negative_margin_contradicts_chosen_and_a_margin_is_noted(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad", "margin": i} for i in range(4)]
    found = load(tmp_path / "x.jsonl", rows)
    assert found.splits["train"].report.rows.dropped == {"tie": 1}
    assert found.notes == [
        "train: the column margin gives each pair's score gap; the loss subtracts loss.margin times this gap"
    ]
    rows[2]["margin"] = -2
    with pytest.raises(DataError, match=r"x\.jsonl:3: negative margin: column margin holds the number -2") as caught:
        load(tmp_path / "x.jsonl", rows)
    assert "data.label: margin, and data.better, which names the better answer, 0 or 1" in caught.value.hint
    turned = load(
        tmp_path / "x.jsonl",
        rows,
        answers=["chosen", "rejected"],
        label="margin",
        better={"positive": 0, "negative": 1},
    )
    assert [group.preferences[0] for group in turned.splits["train"].groups][:2] == [
        Preference(0, 1, 1.0),
        Preference(1, 0, 2.0),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": 7}, "column prompt holds the number 7, expected text, or a list of messages"),
        ({"prompt": [{"text": "q"}]}, "column prompt holds an object with 'text', expected a message with `role`"),
        ({"prompt": [{"role": "user", "content": 3}]}, "column prompt, in a message of the user, whose content holds"),
        ({"chosen": [["good"]]}, "column chosen holds a list of 1 that begins with a list of 1 that begins with the"),
        ({"chosen": messages(GOOD)}, "column rejected holds the text 'bad', expected messages, as in chosen"),
        ({"score_chosen": "high", "score_rejected": 1}, "column score_chosen holds the text 'high', expected a finite"),
        (
            {"prompt": "x" * 99, "margin": [1]},
            "column margin holds a list of 1 that begins with the number 1, expected",
        ),
    ],
)
def test_a_wrong_type_says_column_value_and_what_would_do(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path / "x.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad", **row}] * 2)
    assert f"x.jsonl:1: wrong type: {said}" in caught.value.message


def test_cells_of_messages_in_csv_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    cells = [json.dumps(messages(Q, GOOD)).replace('"', '""'), repr(messages(Q, BAD)).replace('"', '""')]
    path.write_text(f'chosen,rejected\n"{cells[0]}","{cells[1]}"\n')
    found = load_data(DataSection(source=str(path), splits={"train": "train"}), 0)
    assert found.splits["train"].groups[0].prompt == (Q,)
    assert found.splits["train"].groups[0].completions == ((GOOD,), (BAD,))


def write_csv(path: Path, *lines: str) -> str:
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())  # as a spreadsheet writes it
    return str(path)


def test_a_csv_column_without_a_heading_is_no_part_of_a_row(tmp_path: Path) -> None:
    """pandas writes its index so: numbers, which are no count of answers, and texts, which are no prompt."""
    talk = json.dumps(messages(Q, GOOD, MORE, GOOD)).replace('"', '""')
    other = json.dumps(messages(Q, BAD)).replace('"', '""')
    for named in ("0", "1", "a remark"):
        path = write_csv(tmp_path / "x.csv", ",chosen,rejected", f'{named},"{talk}","{other}"')
        data = load_data(DataSection(source={"train": path}), 0)
        (group,) = data.splits["train"].groups
        assert (group.prompt, group.completions) == ((Q,), ((GOOD, MORE, GOOD), (BAD,)))
        assert "train: columns that are not used: one without a heading" in data.notes


@pytest.mark.parametrize(
    ("heading", "message", "hint"),
    [
        ("prompt;chosen;rejected", "its cells are separated by semicolons", "commas"),
        ("prompt\tchosen\trejected", "its cells are separated by tabs", "commas"),
        (
            "Prompt, chosen,Rejected",
            "fit no known row schema",
            'data.columns: {prompt: "Prompt", chosen: " chosen", rejected: "Rejected"} makes them pair rows',
        ),
        ("History,Human Ref A,human-ref-b,labels", "fit no known row schema", 'human_ref_A: "Human Ref A"'),
    ],
)
def test_headings_that_nearly_fit_are_told(heading: str, message: str, hint: str, tmp_path: Path) -> None:
    cells = heading.translate(str.maketrans("", "", " ")).replace("Prompt", "q")
    with pytest.raises(DataError, match=message) as caught:
        load_data(DataSection(source={"train": write_csv(tmp_path / "x.csv", heading, cells)}), 0)
    assert hint in caught.value.hint


def test_a_key_that_does_nothing_and_an_unknown_label_are_told(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", "prompt,a,b,verdict", "q,good,bad,A", "r,good,bad,B")
    read_so: dict[str, Any] = {"source": {"train": path}, "answers": ["a", "b"], "label": "verdict"}
    data = load_data(DataSection(**read_so, better={"A": 0, "B": 1}, min_gap=0.5), 0)
    assert data.notes == ["train: preferences without scores, to which data.min_gap does not apply: 2"]
    with pytest.raises(DataError, match="unknown label") as caught:
        load_data(DataSection(**read_so, better={"C": 0, "B": 1}), 0)
    assert "data.better says which answer each value means" in caught.value.hint


def test_columns_inside_of_objects_are_named_by_their_path(tmp_path: Path) -> None:
    rows = [
        {
            "talk": {"asked": messages(Q), "by": "me"},
            "said": [{"text": "good", "votes": 3}, {"text": "bad", "votes": 1}],
        },
        {"talk": {"asked": messages(MORE), "by": None}, "said": [{"text": "a", "votes": 1}, {"text": "b", "votes": 4}]},
        {"talk": None, "said": [{"text": "a", "votes": 1}, {"text": "b", "votes": 4}]},
    ]
    pq.write_table(pa.Table.from_pylist([*rows[:2] * 3, rows[2]]), tmp_path / "x.parquet")
    described = {"answers": ["said.text"], "scores": ["said.votes"], "columns": {"prompt": "talk.asked"}}
    source = {"train": str(tmp_path / "x.parquet")}
    data = load_data(DataSection(source=source, duplicates="keep", **described), 0)
    train = data.splits["train"]
    assert [group.prompt for group in train.groups] == [(Q,), (MORE,)] * 3
    assert [group.completions[group.preferences[0].better][0].content for group in train.groups] == ["good", "b"] * 3
    assert dict(train.report.rows.dropped) == {"missing value": 1}
    assert not data.notes
    with pytest.raises(DataError, match=r"no column 'talk\.question' to rename to 'prompt'"):
        load_data(DataSection(source=source, **{**described, "columns": {"prompt": "talk.question"}}), 0)
