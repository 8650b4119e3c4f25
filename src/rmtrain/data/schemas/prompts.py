"""Finding the prompt of a row: in a column, in several columns, or at the beginning of the answers."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from rmtrain.data.schemas.messages import conversation, list_in, prompt_of, token_ids
from rmtrain.data.schemas.rows import MISSING, NO_COMMON_PROMPT, OTHER_PROMPT, WRONG_TYPE, RowFault, is_texts
from rmtrain.data.types import Conversation, Message, Row, of_ids


def prompt_column(row: Row, column: str) -> Conversation:
    """The prompt from a column of text or messages."""
    return prompt_of(row.get(column), column)


def alpaca_prompt(row: Row, column: str) -> Conversation:
    """`instruction` with its `input` on the next line, behind the [said, answered] pairs of `history`."""
    parts = [row.get(column), row.get("input")]
    for name, part in zip((column, "input"), parts, strict=True):
        if part is not None and not isinstance(part, str):
            raise RowFault(WRONG_TYPE, name, part, "text")
    history: list[Message] = []
    for pair in list_in(row.get("history")) or ():
        if not is_texts(pair) or len(pair) != 2:
            raise RowFault(WRONG_TYPE, "history", pair, "pairs of a question and its answer")
        history += [Message("user", pair[0]), Message("assistant", pair[1])]
    return (*history, *prompt_of("\n".join(part for part in parts if part), column))


def post_prompt(row: Row, column: str) -> Conversation:
    """A Reddit post or an article in the prompt format of arXiv 2009.01325, table 4."""
    info = row.get(column)
    if not isinstance(info, dict):
        raise RowFault(WRONG_TYPE, column, info, "an object with `post` or `article`")
    named = (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("Article: ", "article"))
    parts = [f"{before}{info[key]}" for before, key in named if info.get(key)]
    return prompt_of("\n\n".join([*parts, "TL;DR:"]), column)


def marked_prompt(row: Row, column: str) -> Conversation:
    """HelpSteer2's prompts: text, with `<extra_id_1>Assistant` and `<extra_id_1>User` between turns."""
    value = row.get(column)
    if not isinstance(value, str):
        return prompt_of(value, column)
    first, *rest = re.split(r"\n?<extra_id_1>(Assistant|User)\n", value)
    roles = {"User": "user", "Assistant": "assistant"}
    later = [Message(roles[who], text) for who, text in zip(rest[::2], rest[1::2], strict=True)]
    return (*prompt_of(first, column), *later) if first or not later else tuple(later)


def split_prompt(whole: list[Conversation], stated: object = None) -> tuple[Conversation, tuple[Conversation, ...]]:
    """The longest common prefix of whole conversations, and what follows it in each.

    Messages in a prompt column are prepended, unless the conversations repeat them; a system message that only the
    column has is always kept. A text in it must be a part of the conversations' prompt, or the other way round.

    Raises:
        RowFault: the conversations have no common prompt, or another one than the column.
    """
    first = whole[0]
    shared = min(common_prefix(first, other) for other in whole[1:] or whole)
    prompt = first[:shared]
    if isinstance(stated, list):
        messages = conversation(stated, "prompt")
        system = messages[:1] if messages[0].role == "system" else ()
        if first[: len(messages)] != messages:
            repeated = first[: len(messages) - len(system)] == messages[len(system) :]
            prompt = system + prompt if repeated else messages + prompt
            if not repeated and messages[-1].role == first[0].role == "user":
                raise RowFault(OTHER_PROMPT)
    elif isinstance(stated, str) and not _have_text_in_common(stated, prompt):
        raise RowFault(OTHER_PROMPT)
    if not prompt:
        raise RowFault(NO_COMMON_PROMPT)
    return prompt, tuple(each[shared:] for each in whole)


def _have_text_in_common(text: str, prompt: Conversation) -> bool:
    """Whether a text is in a prompt, or holds the text of one of its messages; True if either is empty."""
    text = "".join(text.split())
    said = ["".join(message.content.split()) for message in prompt]
    return not text or not any(said) or text in "".join(said) or any(each and each in text for each in said)


def with_system(row: Row, prompt: Conversation) -> Conversation:
    """The prompt, preceded by the text of the `system` column if the row has one."""
    text = row.get("system")
    if text is None or text == "":
        return prompt
    if not isinstance(text, str):
        raise RowFault(WRONG_TYPE, "system", text, "text")
    if prompt[0].role != "system":
        return (Message("system", text), *prompt)
    if prompt[0].content != text:
        raise RowFault("two system messages", "system", text, "the system message that the prompt begins with")
    return prompt


def spoken(value: object, column: str) -> list[Any] | None:
    """The texts of one speaker by turn, from a list or its text; None for anything else."""
    texts = list_in(value)
    if texts is None and isinstance(value, str) and value.startswith('["') and value.endswith("]"):
        raise RowFault("unreadable turns", column, value, "a list of texts as JSON")
    return texts if texts and all(entry is None or isinstance(entry, str) for entry in texts) else None


def in_turns(prompts: list[Any], *answers: list[Any]) -> tuple[Conversation, tuple[Conversation, ...]]:
    """The user's first text is the prompt; each completion has the answers with the user's later texts between them."""
    completions = []
    for said in answers:
        if len(said) != len(prompts):
            raise RowFault("prompt and answer have different numbers of turns")
        if None in said or None in prompts:
            raise RowFault(MISSING)
        turns = [Message("assistant", said[0])]
        for user, assistant in zip(prompts[1:], said[1:], strict=True):
            turns += [Message("user", user), Message("assistant", assistant)]
        completions.append(tuple(turns))
    return (Message("user", prompts[0]),), tuple(completions)


def split_texts(texts: Sequence[str]) -> tuple[Conversation, tuple[Conversation, ...]]:
    """The shared beginning of plain texts is the prompt, and the rest of each text its completion."""
    shared = min(shared_beginning(texts[0], text) for text in texts[1:])
    if not texts[0][:shared].strip():
        raise RowFault(NO_COMMON_PROMPT)
    return (Message("user", texts[0][:shared]),), tuple((Message("assistant", text[shared:]),) for text in texts)


def split_ids(
    stated: object, column: str, answers: list[tuple[str, Any]]
) -> tuple[Conversation, tuple[Conversation, ...]]:
    """A prompt and answers of token ids as messages; without a prompt, the common beginning of the answers is the
    prompt.

    If all answers begin with the prompt, they are whole sequences.
    """
    whole = [token_ids(value, name) for name, value in answers]
    if stated in (None, "", "[]", []):
        columns = zip(*(ids[:-1] for ids in whole), strict=False)
        prompt = [tokens[0] for tokens in takewhile(lambda tokens: len({*tokens}) == 1, columns)]
        if not prompt:
            raise RowFault(NO_COMMON_PROMPT)
    else:
        prompt = token_ids(stated, column)
    repeated = all(ids[: len(prompt)] == prompt and len(ids) > len(prompt) for ids in whole)
    rest = [ids[len(prompt) :] for ids in whole] if repeated else whole
    return (of_ids(prompt),), tuple((of_ids(ids),) for ids in rest)


def common_prefix(first: Sequence[Message], second: Sequence[Message]) -> int:
    """The number of leading messages that two conversations share, leaving each at least one."""
    shared = 0
    for a, b in zip(first[:-1], second[:-1], strict=False):
        if a != b:
            break
        shared += 1
    return shared


def shared_beginning(first: str, second: str) -> int:
    """The number of characters that two texts share as their prompt, by the rule of TRL's `extract_prompt`:

    the common prefix without a trailing space; if one text continues the other, all but the last character.
    """
    shorter = min(len(first), len(second))
    for i in range(shorter):
        if first[i] != second[i]:
            return i - 1 if i and first[i - 1] == " " else i
    return max(0, shorter - 1)
