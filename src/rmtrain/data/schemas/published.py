"""The table of known row schemas of published datasets."""

from rmtrain.data.schemas.messages import list_in, messages_in, turns
from rmtrain.data.schemas.prompts import alpaca_prompt, marked_prompt, post_prompt
from rmtrain.data.schemas.readers import read_completions, read_hh_rlhf, read_swift, read_ultrafeedback
from rmtrain.data.schemas.rows import is_texts
from rmtrain.data.schemas.schema import Label, RowSchema
from rmtrain.data.types import Row

_WINNER = Label(
    ("winner",),
    {"model_a": 0, "model_b": 1, "a": 0, "b": 1},
    frozenset({"tie", "tie (bothbad)", "both_bad", "bothbad"}),
)
_LIKE_PROMPTS = {"context", "history", "human", "input", "instruction", "post", "problem", "query", "text", "user"}
_SIGN = {"negative": 0, "positive": 1}


def _is_transcript(row: Row) -> bool:
    return isinstance(row.get("chosen"), str) and turns(row["chosen"]) is not None


def _holds_prompt(row: Row) -> bool:
    """Whether pairs without a prompt column are messages, or texts in a row without another text that could be the
    prompt."""
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


PAIR = ("chosen", "rejected")
_AB = ("response_a", "response_b")
SUBSETS = ("subset", "domain", "source")
_TOKENS = (  # column names in different versions of TRL: prompt, chosen, rejected
    ("prompt_ids", "chosen_ids", "rejected_ids"),
    ("prompt_input_ids", "chosen_input_ids", "rejected_input_ids"),
    ("prompt_ids", "input_ids_chosen", "input_ids_rejected"),
)
SCHEMAS = (
    RowSchema("ultrafeedback", ("instruction", "completions"), reader=read_ultrafeedback),
    RowSchema(
        "completions",
        ("prompt", "completions"),
        reads=("preferences", "scores"),
        reader=read_completions,
        source=("source", "subset"),
    ),
    RowSchema("rewardbench", ("prompt", *PAIR, "subset"), source=SUBSETS),
    RowSchema("rewardbench", ("prompt", *PAIR, "domain"), source=SUBSETS),
    RowSchema("rewardbench", ("prompt", *PAIR), source=SUBSETS, when=lambda row: is_texts(row.get("chosen"))),
    RowSchema("pair", ("prompt", *PAIR)),
    RowSchema("pair", ("question", *PAIR), prompt="question"),
    RowSchema("pair", PAIR, prompt="", when=_holds_prompt),
    *(RowSchema("tokens", tuple(pair), tuple(pair), prompt, tokens=True) for prompt, *pair in _TOKENS),
    RowSchema("hh_rlhf", PAIR, reader=read_hh_rlhf, when=_is_transcript),
    RowSchema(
        "alpaca", ("instruction", *PAIR), prompt="instruction", read_prompt=alpaca_prompt, reads=("input", "history")
    ),
    RowSchema(
        "alpaca",
        ("instruction", "output"),
        answers=("output",),
        prompt="instruction",
        read_prompt=alpaca_prompt,
        reads=("input", "history"),
        when=lambda row: is_texts(list_in(row.get("output"))),
    ),
    RowSchema("sharegpt", ("conversations", *PAIR), prompt="conversations"),
    RowSchema("swift", ("messages", "rejected_response"), reads=("margin",), reader=read_swift),
    RowSchema("swift", ("messages", "rejected_messages"), answers=("messages", "rejected_messages"), prompt=""),
    RowSchema(
        "swift",
        ("query", "response", "rejected_response"),
        ("response", "rejected_response"),
        "query",
        read_prompt=alpaca_prompt,
        reads=("input", "history"),
    ),
    RowSchema("ultrainteract", ("trajectory", *PAIR), prompt="trajectory", source=("dataset", "task")),
    RowSchema(
        "arena",
        ("conversation_a", "conversation_b", "winner"),
        ("conversation_a", "conversation_b"),
        "",
        _WINNER,
        judged="turn",
    ),
    RowSchema("arena", ("prompt", *_AB, "winner"), _AB, label=_WINNER, turns=True),
    RowSchema(
        "arena",
        ("prompt", *_AB, "winner_model_a", "winner_model_b"),
        _AB,
        label=Label(("winner_model_a", "winner_model_b", "winner_tie")),
        turns=True,
    ),
    RowSchema(
        "helpsteer",
        ("prompt", "response_1", "response_2", "preference_strength"),
        ("response_1", "response_2"),
        label=Label(("preference_strength",), _SIGN),
        read_prompt=marked_prompt,
    ),
    RowSchema(
        "helpsteer",
        ("context", "response1", "response2", "overall_preference"),
        ("response1", "response2"),
        "context",
        Label(("overall_preference",), _SIGN),
        source=("domain", "source"),
    ),
    *(
        RowSchema(
            "pku_saferlhf",
            ("prompt", "response_0", "response_1", column),
            ("response_0", "response_1"),
            label=Label((column,)),
        )
        for column in ("better_response_id", "safer_response_id")
    ),
    RowSchema(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        ("human_ref_A", "human_ref_B"),
        "history",
        Label(("labels",), {"1": 0, "0": 1}),
        ("score_A", "score_B"),
        source=("domain", "source"),
    ),
    RowSchema("stack_exchange", ("question", "response_j", "response_k"), ("response_j", "response_k"), "question"),
    RowSchema(
        "stack_exchange", ("question", "answers.pm_score"), ("answers.text",), "question", scores=("answers.pm_score",)
    ),
    RowSchema("nectar", ("prompt", "answers.rank"), ("answers.answer",), scores=("answers.rank",), ranked=True),
    RowSchema(
        "summarize",
        ("info", "summaries.text", "choice"),
        ("summaries.text",),
        "info",
        Label(("choice",)),
        read_prompt=post_prompt,
        source=("batch", "source"),
    ),
)
