"""The known layouts of rows, as their authors publish them."""

from rmtrain.data.completions import parse_completions
from rmtrain.data.layout import Label, Layout, pair_scores
from rmtrain.data.prompts import alpaca_prompt, marked_prompt, post_prompt, split_prompt
from rmtrain.data.rows import (
    NO_COMMON_PROMPT,
    ParsedRow,
    Row,
    RowFault,
    completion_of,
    is_texts,
    row_id,
    row_source,
    transcript,
)
from rmtrain.data.transcripts import list_in, messages_in, turns
from rmtrain.data.types import Preference
from rmtrain.data.ultrafeedback import parse_ultrafeedback

_WINNER = Label(
    ("winner",),
    {"model_a": 0, "model_b": 1, "a": 0, "b": 1},
    frozenset({"tie", "tie (bothbad)", "both_bad", "bothbad"}),
)
_LIKE_PROMPTS = {"context", "history", "human", "input", "instruction", "post", "problem", "query", "text", "user"}
_SIGN = {"negative": 0, "positive": 1}


def _hh_rlhf(row: Row) -> ParsedRow:
    """Two transcripts; the prompt is what both begin with."""
    prompt, completions = split_prompt([transcript(row.get(column), column) for column in ("chosen", "rejected")])
    stated = (Preference(0, 1),)
    return ParsedRow(prompt, completions, stated, id=row_id(row), source=row_source(row, "source"))


def _swift(row: Row) -> ParsedRow:
    """`messages` that end with the better answer, and `rejected_response` in its place."""
    *prompt, chosen = completion_of(row.get("messages"), "messages")
    if not prompt:
        raise RowFault(NO_COMMON_PROMPT)
    rejected = completion_of(row.get("rejected_response"), "rejected_response")
    scores, gap = pair_scores(row)
    stated, source = (Preference(0, 1, gap),), row_source(row, "source")
    return ParsedRow(tuple(prompt), ((chosen,), rejected), stated, scores, id=row_id(row), source=source)


def _is_transcript(row: Row) -> bool:
    return isinstance(row.get("chosen"), str) and turns(row["chosen"]) is not None


def _holds_prompt(row: Row) -> bool:
    """Whether pairs without a prompt column are messages, or texts beside which no other text could be the prompt."""
    chosen = row.get("chosen")
    if not isinstance(chosen, str):
        return isinstance(chosen, list) and not is_texts(chosen)
    if _is_transcript(row):
        return False
    others = {column: value for column, value in row.items() if column not in (*PAIR, "system")}
    return messages_in(chosen) is not None or not any(
        column.lower() in _LIKE_PROMPTS or (isinstance(value, str) and " " in value.strip())
        for column, value in others.items()
    )


def _has_lists(row: Row) -> bool:
    return is_texts(row.get("chosen"))


PAIR = ("chosen", "rejected")
_AB = ("response_a", "response_b")
SUBSETS = ("subset", "domain", "source")
_TOKENS = (  # the names that TRL's versions gave them: prompt, chosen, rejected
    ("prompt_ids", "chosen_ids", "rejected_ids"),
    ("prompt_input_ids", "chosen_input_ids", "rejected_input_ids"),
    ("prompt_ids", "input_ids_chosen", "input_ids_rejected"),
)
LAYOUTS = (
    Layout("ultrafeedback", ("instruction", "completions"), reader=parse_ultrafeedback),
    Layout(
        "completions", ("prompt", "completions"), reads=("preferences", "scores", "subset"), reader=parse_completions
    ),
    Layout("rewardbench", ("prompt", *PAIR, "subset"), source=SUBSETS),
    Layout("rewardbench", ("prompt", *PAIR, "domain"), source=SUBSETS),
    Layout("rewardbench", ("prompt", *PAIR), source=SUBSETS, when=_has_lists),
    Layout("pair", ("prompt", *PAIR)),
    Layout("pair", ("question", *PAIR), prompt="question"),
    Layout("pair", PAIR, prompt="", when=_holds_prompt),
    *(Layout("tokens", tuple(pair), tuple(pair), prompt, tokens=True) for prompt, *pair in _TOKENS),
    Layout("hh_rlhf", PAIR, reader=_hh_rlhf, when=_is_transcript),
    Layout(
        "alpaca", ("instruction", *PAIR), prompt="instruction", read_prompt=alpaca_prompt, reads=("input", "history")
    ),
    Layout(
        "alpaca",
        ("instruction", "output"),
        answers=("output",),
        prompt="instruction",
        read_prompt=alpaca_prompt,
        reads=("input", "history"),
        when=lambda row: is_texts(list_in(row.get("output"))),
    ),
    Layout("sharegpt", ("conversations", *PAIR), prompt="conversations"),
    Layout("swift", ("messages", "rejected_response"), reads=("margin",), reader=_swift),
    Layout("swift", ("messages", "rejected_messages"), answers=("messages", "rejected_messages"), prompt=""),
    Layout(
        "swift",
        ("query", "response", "rejected_response"),
        ("response", "rejected_response"),
        "query",
        read_prompt=alpaca_prompt,
        reads=("input", "history"),
    ),
    Layout("ultrainteract", ("trajectory", *PAIR), prompt="trajectory", source=("dataset", "task")),
    Layout(
        "arena",
        ("conversation_a", "conversation_b", "winner"),
        ("conversation_a", "conversation_b"),
        "",
        _WINNER,
        judged="turn",
    ),
    Layout("arena", ("prompt", *_AB, "winner"), _AB, label=_WINNER, turns=True),
    Layout(
        "arena",
        ("prompt", *_AB, "winner_model_a", "winner_model_b"),
        _AB,
        label=Label(("winner_model_a", "winner_model_b", "winner_tie")),
        turns=True,
    ),
    Layout(
        "helpsteer",
        ("prompt", "response_1", "response_2", "preference_strength"),
        ("response_1", "response_2"),
        label=Label(("preference_strength",), _SIGN),
        read_prompt=marked_prompt,
    ),
    Layout(
        "helpsteer",
        ("context", "response1", "response2", "overall_preference"),
        ("response1", "response2"),
        "context",
        Label(("overall_preference",), _SIGN),
        source=("domain", "source"),
    ),
    *(
        Layout(
            "pku_saferlhf",
            ("prompt", "response_0", "response_1", column),
            ("response_0", "response_1"),
            label=Label((column,)),
        )
        for column in ("better_response_id", "safer_response_id")
    ),
    Layout(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        ("human_ref_A", "human_ref_B"),
        "history",
        Label(("labels",), {"1": 0, "0": 1}),
        ("score_A", "score_B"),
        source=("domain", "source"),
    ),
    Layout("stack_exchange", ("question", "response_j", "response_k"), ("response_j", "response_k"), "question"),
    Layout(
        "stack_exchange", ("question", "answers.pm_score"), ("answers.text",), "question", scores=("answers.pm_score",)
    ),
    Layout("nectar", ("prompt", "answers.rank"), ("answers.answer",), scores=("answers.rank",), ranked=True),
    Layout(
        "summarize",
        ("info", "summaries.text", "choice"),
        ("summaries.text",),
        "info",
        Label(("choice",)),
        read_prompt=post_prompt,
        source=("batch", "source"),
    ),
)
