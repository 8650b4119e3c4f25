"""Templates that only print texts are told from others, and filled in as they would print each conversation."""

import random
from typing import Any

import pytest
from conftest import TEMPLATE, make_tokenizer

from rmtrain.data.render import Renderer
from rmtrain.data.skeletons import prints_alone
from rmtrain.data.template import RAW, TemplateRefusalError, apply_to_all
from rmtrain.data.types import Conversation, Message

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<s>system\nBe brief</s>\n' }}{% endif %}{{'<s>' + message['role'] + '\n' + message['content"
    "'] + '</s>' + '\n'}}{% endfor %}"
)
ALONE = {
    "conftest": TEMPLATE,
    "raw": RAW,
    "chatml": CHATML,
    "dots": "{%- for m in messages -%}\n  {{- m.role ~ ': ' ~ m.content -}}\n {%- endfor %}",
    "by place": "{{ messages[0]['content'] }}{% for m in messages[1:] %}|{{ m.content }}{{ m.content }}{% endfor %}",
    "neighbours": "{% for m in messages %}{% if loop.index0 and messages[loop.index0 - 1].role == m.role %}+{% endif %}"
    "{{ m.content }}{% if loop.index == messages|length %}.{% endif %}{% else %}nobody{% endfor %}",
    "state": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}"
    "{% endfor %}",
    "fields": "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "no text": "{% for m in messages %}{{ m.role }}{% endfor %}",
}
LOOKING = {
    "trim": "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}",
    "trim of a sum": "{% for m in messages %}{{ ('a' + m['content']) | trim }}{% endfor %}",
    "method": "{% for m in messages %}{{ m.content.strip() }}{% endfor %}",
    "slice": "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
    "condition": "{% for m in messages %}{% if m.content %}{{ m.content }}{% endif %}{% endfor %}",
    "contained": "{% for m in messages %}{{ 'x' if 'y' in m.content else '' }}{% endfor %}",
    "loop test": "{% for m in messages if m.content %}{{ m.role }}{% endfor %}",
    "variable": "{% for m in messages %}{% set c = m.content %}{{ c | upper }}{% endfor %}",
    "alias": "{% for m in messages %}{% set n = m %}{{ n.content | upper }}{% endfor %}",
    "list alias": "{% set ms = messages %}{% for m in ms %}{{ m.content | upper }}{% endfor %}",
    "set block": "{% for m in messages %}{% set c %}{{ m.content }}{% endset %}{{ c | upper }}{% endfor %}",
    "filter block": "{% for m in messages %}{% filter upper %}{{ m.content }}{% endfilter %}{% endfor %}",
    "macro": "{% macro p(m) %}{{ m.content }}{% endmacro %}{% for m in messages %}{{ p(m) | upper }}{% endfor %}",
    "macro of a loop": "{% macro p() %}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% endmacro %}{{ p() | upper }}",
    "whole message": "{% for m in messages %}{{ m }}{% endfor %}",
    "tojson": "{{ messages | tojson }}",
    "map": "{{ messages | map(attribute='content') | join(' ') | upper }}",
    "get": "{% for m in messages %}{{ m.get('content') }}{% endfor %}",
    "values": "{% for m in messages %}{% for v in m.values() %}{{ v | upper }}{% endfor %}{% endfor %}",
    "key variable": "{% set k = 'content' %}{% for m in messages %}{{ m[k] | upper }}{% endfor %}",
    "reversed": "{% for m in messages | reverse %}{{ m.content | upper }}{% endfor %}",
    "before": "{% for m in messages %}{{ loop.previtem.content | upper if not loop.first }}{% endfor %}",
    "before, by name": "{% for m in messages %}{{ (loop|attr('previtem')).content if not loop.first }}{% endfor %}",
    "changed": "{% for m in messages %}{% if loop.changed(m) %}x{% endif %}{{ m.content }}{% endfor %}",
    "place by text": "{% for m in messages %}{{ messages[m.content|length % 2].role }}{% endfor %}",
    "repeated": "{% for m in messages %}{{ m.content * 2 }}{% endfor %}",
    "other loop": "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% for m in [messages[0]] %}{{ m.content|upper }}{% endfor %}",
    "recursive": "{% for m in messages recursive %}{{ m.content }}{{ loop([m]) }}{% endfor %}",
    "not jinja": "{% for m in messages %}",
}


def renderer_of(template: str) -> Renderer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Renderer(tokenizer, False, False, 0)


def conversations(seed: str) -> list[Conversation]:
    draw, texts = (
        random.Random(seed),
        ["", " ", "a", " Ünï\n", "{{ messages }}", "<s>", "\\1", "\ue0000\ue001", "x" * 99],
    )
    return [
        tuple(Message(draw.choice(["user", "assistant"]), draw.choice(texts)) for _ in range(draw.randint(1, 5)))
        for _ in range(300)
    ]


@pytest.mark.parametrize("name", ALONE)
def test_what_is_filled_in_is_what_the_template_prints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, given = renderer_of(ALONE[name]), conversations(name)
    expected = apply_to_all(renderer.tokenizer, given, today=renderer.date)
    assert prints_alone(ALONE[name])
    applied, apply = list[Any](), renderer.tokenizer.apply_chat_template

    def counting(given: Any, **options: Any) -> Any:
        applied.append(given)
        return apply(given, **options)

    monkeypatch.setattr(renderer.tokenizer, "apply_chat_template", counting)
    assert renderer.texts(given) == expected
    assert len(applied) == len({tuple(message.role for message in own) for own in given})


@pytest.mark.parametrize("name", LOOKING)
def test_templates_that_may_look_at_texts_are_not_filled_in(name: str) -> None:
    assert not prints_alone(LOOKING[name])


def test_what_has_more_than_texts_is_rendered_as_it_is() -> None:
    renderer = renderer_of(ALONE["fields"])
    given = [*conversations("f"), (Message("assistant", "x", '{"tool_calls": [{"name": "look"}]}'),)]
    assert renderer.texts(given) == apply_to_all(renderer.tokenizer, given, today=renderer.date)
    assert renderer.texts(given)[-1] == '[{"name": "look"}]x'


def test_roles_that_the_template_refuses_are_refused() -> None:
    with pytest.raises(TemplateRefusalError, match="only user and assistant roles"):
        renderer_of(TEMPLATE).texts([(Message("user", "w1"),), (Message("tool", "w1"),)])
