"""What a chat template leaves out is found, and what it keeps is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_render import BARE, LONGER, MISTRAL, PAIR, with_template

from rmtrain.data.omissions import find_omissions
from rmtrain.data.render import Renderer
from rmtrain.data.types import Conversation, Message

EACH = "{% for m in messages %}%s{% endfor %}"
THINKING = (
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %} {{ c }}{% endfor %}"
)
NO_SYSTEM = "{% for m in messages if m.role != 'system' %} {{ m.content }}{% endfor %}"
SYSTEM = (Message("system", "be brief"), *PAIR)
LONG = "one two three four five six seven eight nine ten"


def left_out(template: str, conversation: Conversation, arguments: str = "") -> list[tuple[str, str]]:
    renderer = Renderer.for_tokenizer(with_template(template))
    text = renderer.render(conversation, arguments)
    return [tuple(omission) for omission in find_omissions(text, conversation, arguments)]


@pytest.mark.parametrize(
    ("template", "conversation", "expected"),
    [
        (THINKING, (PAIR[0], Message("assistant", "<think>why</think>so")), [("assistant", "<think>why</think>so")]),
        (NO_SYSTEM, SYSTEM, [("system", "be brief")]),
        ("{{ messages[-1].content }}", (*LONGER[:-1], Message("assistant", "w9")), [
            ("user", "w1 w2"), ("assistant", "w3 w4"), ("user", "w5")]),
        ("{% for m in messages %} {{ m.content[:40] }}{% endfor %}", (Message("user", LONG), PAIR[1]), [
            ("user", "nine ten")]),
        ("{% for m in messages %} {{ m.content | upper }}{% endfor %}", PAIR, [
            ("user", "w1 w2"), ("assistant", "w3 w4")]),
    ],
)  # fmt: skip
def test_lost_text_is_found(template: str, conversation: Conversation, expected: list[tuple[str, str]]) -> None:
    renderer = with_template(template)
    messages = [message.as_dict() for message in conversation]
    text = renderer.apply_chat_template(messages, tokenize=False)
    assert [tuple(omission) for omission in find_omissions(text, conversation)] == expected


@pytest.mark.parametrize(
    ("template", "conversation"),
    [
        (BARE, LONGER),
        ("{% for m in messages %} {{ m.content | trim }}{% endfor %}", (Message("user", " w1\n"), PAIR[1])),
        (
            "{% for m in messages %} {{ m.content.split() | join(' ') }}{% endfor %}",
            (Message("user", "a\n\nb"), PAIR[1]),
        ),
        ("{% for m in messages %} {{ m.content | tojson }}{% endfor %}", (Message("user", 'a "b"\nc'), PAIR[1])),
        (MISTRAL, SYSTEM),  # joined with the question
        ("{{ messages[1].content }} {{ messages[0].content }} {{ messages[2].content }}", SYSTEM),
        (THINKING, (PAIR[0], Message("assistant", ""))),
    ],
)
def test_text_that_is_moved_trimmed_or_escaped_is_not_lost(template: str, conversation: Conversation) -> None:
    if template.startswith("{{ messages[1]"):
        text = with_template(template).apply_chat_template([m.as_dict() for m in conversation], tokenize=False)
        assert find_omissions(text, conversation) == []
    else:
        assert left_out(template, conversation) == []


@given(st.lists(st.text(max_size=12), min_size=2, max_size=5), st.integers(0, 4), st.sampled_from(["", "\n", " | "]))
def test_what_is_printed_is_never_lost_and_a_strange_text_always(texts: list[str], gone: int, between: str) -> None:
    conversation = tuple(Message("user", text) for text in texts)
    assert find_omissions(between.join(text.strip() for text in texts), conversation) == []
    strange = Message("assistant", "\N{SNOWMAN}\N{UMBRELLA} here")
    place = min(gone, len(conversation))
    with_strange = (*conversation[:place], strange, *conversation[place:])
    text = between.join(texts).replace("\N{SNOWMAN}", "")
    assert ("assistant", strange.content) in [tuple(o) for o in find_omissions(text, with_strange)]


def test_tools_their_calls_and_documents_are_looked_for_too() -> None:
    fields: dict[str, Any] = {"tool_calls": [{"function": {"name": "search"}}], "reasoning_content": "hm hm"}
    conversation = (PAIR[0], Message("assistant", "", json.dumps(fields)))
    arguments = json.dumps({"tools": [{"function": {"name": "find"}}], "documents": [{"id": "1", "text": "some text"}]})
    lost = [("tool calls", "search"), ("reasoning", "hm hm"), ("tools", "find"), ("documents", "some text")]
    assert [tuple(o) for o in find_omissions("w1 w2", conversation, arguments)] == lost
    assert find_omissions("find some text w1 w2 hm hm search", conversation, arguments) == []
