"""What chat templates are given, what stops them, and what is baked into them for others."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, make_config, make_tokenizer
from test_render import BARE, LONGER, PAIR, adding_bos, with_template

from rmtrain.data import template
from rmtrain.data.render import Renderer
from rmtrain.data.schemas.rows import template_arguments
from rmtrain.data.template import RunawayTemplateError, TemplateRefusalError, bake
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.data.types import Message
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.saving import write_companions
from rmtrain.model.sidecar import Scoring

TOOLS = (
    "{{ bos_token }}{% if tools %} {{ tools | tojson }}{% endif %}"
    "{% for d in documents or [] %} {{ d.text }}{% endfor %}"
    "{% if mood %} {{ mood }}{% endif %}{% for m in messages %} {{ m.role }}{% if m.name %} {{ m.name }}{% endif %}"
    "{% if m.content %} {{ m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %} {{ c.function | tojson }}{% endfor %}"
    "{% endfor %} {{ eos_token }}"
)
CALL = {"id": "1", "type": "function", "function": {"name": "w7", "arguments": {"z": "w1", "a": 2}}}
SEARCH = {"type": "function", "function": {"name": "w7", "parameters": {"type": "object", "properties": {}}}}


# What a template is given


def test_a_conversation_with_tools_renders_as_transformers_own(tmp_path: Path) -> None:
    renderer = Renderer.for_tokenizer(with_template(TOOLS))
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "w1", "name": "w2"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "w3", "tool_call_id": "1", "name": "w7"},
        {"role": "assistant", "content": "w4"},
    ]
    row = {"tools": [SEARCH], "documents": [{"text": "w8"}], "chat_template_kwargs": {"mood": "w9"}}
    expected = renderer.tokenizer.apply_chat_template(
        messages, tools=[SEARCH], documents=[{"text": "w8"}], mood="w9", tokenize=True, return_dict=False
    )
    fields = [{k: v for k, v in m.items() if k not in ("role", "content")} for m in messages]
    fields[1] = {"content": None, **fields[1]}
    turns = tuple(
        Message(m["role"], m["content"] or "", json.dumps(f) if f else "")
        for m, f in zip(messages, fields, strict=True)
    )
    assert renderer.tokenize([turns], template_arguments(row)) == [expected]
    assert renderer.tokenize([turns]) != [expected]


def test_the_order_of_keys_reaches_the_template() -> None:
    renderer = Renderer.for_tokenizer(with_template(TOOLS))
    for tool in ({"name": "w1", "about": "w2"}, {"about": "w2", "name": "w1"}):
        text = renderer.render(PAIR, template_arguments({"tools": json.dumps([tool])}))
        assert json.dumps([tool]) in text


def test_a_row_can_not_set_what_is_no_variable_of_the_template() -> None:
    from rmtrain.data.schemas.rows import RowFault

    for name in ("chat_template", "tokenize", "strftime_now"):
        with pytest.raises(RowFault) as caught:
            template_arguments({"chat_template_kwargs": {name: "x"}})
        assert name in caught.value.detail


# Raw


def test_raw_is_the_texts_in_their_order_with_bos_and_end(tmp_path: Path) -> None:
    adding_bos(with_template(TEMPLATE, chat_template=None)).save_pretrained(tmp_path)
    renderer = Renderer.for_tokenizer(load_tokenizer(str(tmp_path), chat_template="raw"))
    assert renderer.render((Message("system", "w0 "), Message("user", "w1 "), Message("assistant", "w2"))) == "w0 w1 w2"
    assert renderer.tokenize([(Message("user", "w1 "), Message("assistant", "w2"))]) == [[1, 6, 7, 2]]
    assert renderer.tokenize_prompt((Message("user", "w1 "),)) == [1, 6]
    baked = renderer.baked()
    assert (baked.prepend_bos, baked.append_eos) == (False, False)


# The date

DATED = (
    "{{ bos_token }} {{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%-d %B %y %A') }}"
    "{% for m in messages %} {{ m['content'] }}{% endfor %} {{ eos_token }}"
)


class March(datetime.datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: Any = None) -> "March":
        return cls(2031, 3, 5, 1, 2, 3)


def test_rendering_has_one_date_whatever_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.chat_template_utils as transformers_own

    renderer = Renderer.for_tokenizer(with_template(DATED))
    baked = renderer.baked()
    before = renderer.render(PAIR)
    assert "2024-07-26 26 July 24 Friday" in before
    monkeypatch.setattr(transformers_own, "datetime", March)
    messages = [message.as_dict() for message in PAIR]
    assert "2031-03-05" in renderer.tokenizer.apply_chat_template(messages, tokenize=False)
    assert renderer.render(PAIR) == before
    assert baked.tokenizer.apply_chat_template(messages, tokenize=False) == before  # by the template alone
    assert renderer.contract()["date"] == baked.contract()["date"] == template.DATE
    assert "2024-07-26" in renderer.notes[0]


def test_a_checkpoint_is_rendered_at_the_date_in_its_contract() -> None:
    renderer = Renderer.for_tokenizer(with_template(DATED))
    kept = {**renderer.contract(), "date": "2025-01-02"}
    dated = renderer.check_contract(kept, "there")
    assert "2025-01-02 2 January 25" in dated.render(PAIR)
    assert dated.contract() == kept
    before_dates = {key: value for key, value in renderer.contract().items() if key != "date"}
    assert renderer.check_contract(before_dates, "there").date == template.DATE
    with pytest.raises(CheckpointError, match="there: 'today' is not a date"):
        renderer.check_contract({**kept, "date": "today"}, "there")


def test_a_template_without_a_date_has_none_in_its_contract() -> None:
    renderer = Renderer.for_tokenizer(make_tokenizer())
    assert "date" not in renderer.contract()
    assert renderer.notes == ()


# Baking

INDENTED = "\n  {% for m in messages %}\n  {{- ' ' + m['content'] }}\n  {% endfor %}\n"
SYSTEM = (Message("system", "w9"), *PAIR)


@pytest.mark.parametrize(
    "text", [TEMPLATE, TEMPLATE.removeprefix("{{ bos_token }}"), BARE, INDENTED, DATED, "{{ '' }}" + BARE]
)
def test_a_saved_template_makes_the_same_tokens_by_itself(text: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    renderer = Renderer.for_tokenizer(adding_bos(with_template(text)))
    write_companions(make_config(), renderer, tmp_path, Scoring(), {})
    contract = json.loads((tmp_path / "rmtrain.json").read_text())["scoring"]["contract"]
    assert (contract["prepend_bos"], contract["append_eos"]) == (False, False)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    for conversation in (PAIR, LONGER):
        messages = [message.as_dict() for message in conversation]
        rendered = plain.apply_chat_template(messages, tokenize=False)
        expected = renderer.tokenize([conversation])[0]
        assert plain(rendered, add_special_tokens=False)["input_ids"] == expected
        assert (expected.count(1), expected[-1]) == (1, 2)
        asked = plain.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert plain(asked, add_special_tokens=False)["input_ids"] == renderer.tokenize_prompt(conversation[:-1])
    again = Renderer.for_tokenizer(load_tokenizer(str(tmp_path)))
    assert again.contract() == contract
    assert again.check_contract(contract, "there").tokenize([PAIR, LONGER]) == renderer.tokenize([PAIR, LONGER])
    assert again.baked().tokenizer.chat_template == again.tokenizer.chat_template
    assert renderer.tokenizer.chat_template == text  # what trains is left as it was


def test_a_checkpoint_whose_template_was_saved_as_it_is_renders_as_ever(tmp_path: Path) -> None:
    """Earlier versions left BOS and the end token to the contract, and recorded no date."""
    renderer = Renderer.for_tokenizer(adding_bos(with_template("{{ strftime_now('%Y') }}" + BARE)))
    renderer.save_pretrained(tmp_path)
    contract = {key: value for key, value in renderer.contract().items() if key != "date"}
    assert (contract["prepend_bos"], contract["append_eos"]) == (True, True)
    again = Renderer.for_tokenizer(load_tokenizer(str(tmp_path))).check_contract(contract, "there")
    assert again.tokenize([PAIR, LONGER]) == renderer.tokenize([PAIR, LONGER])
    assert again.tokenize([PAIR])[0][0] == 1


def test_a_template_that_can_not_be_completed_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer.for_tokenizer(adding_bos(with_template(BARE)))
    assert renderer.baked() is not renderer
    monkeypatch.setattr("rmtrain.data.render.bake", lambda *args: bake(*args) + " w1")
    assert renderer.baked() is renderer


# Templates that fail or find no end

FAILING = {
    "division by zero": "{{ 1 / 0 }}",
    "no loader": "{% include 'other' %}",
    "TypeError": "{{ messages | sum }}",
    "can only concatenate": "{{ messages[0].content + 1 }}",
    "Range too big": "{{ range(999999) }}",
    "unsafe": "{{ messages.__class__.__mro__ }}",
    "RecursionError": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "'a' is undefined": "{{ a.b }}",
    "unexpected": "{{ ",
    r"the operator \*\*": "{{ 10 ** 10 ** 10 }}",
    "never": "{{ raise_exception('never') }}",
}
ENDLESS = {
    "0.3 seconds": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "2 GiB of memory": "{{ 'x' * 10000000000 }}",
    "of memory|seconds": "{% set n = namespace(x='x') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    r"a text of 70,000,0|seconds": "{{ 'x' * 70000000 }}",
}


@pytest.mark.parametrize("told", FAILING)
def test_a_template_that_fails_is_an_input_error(told: str) -> None:
    with pytest.raises(InputError, match=told):
        Renderer.for_tokenizer(with_template(FAILING[told] + BARE))


@pytest.mark.parametrize("told", ENDLESS)
def test_a_template_that_finds_no_end_is_stopped(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource
    import signal

    monkeypatch.setattr(template, "_SECONDS", 0.3)
    limit, handler = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_utime  # what the limit counts; memory costs the system time
    with pytest.raises(RunawayTemplateError, match=told):
        Renderer.for_tokenizer(with_template(ENDLESS[told] + BARE))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - started < 5
    assert resource.getrlimit(resource.RLIMIT_AS) == limit
    assert (signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_VIRTUAL)) == (handler, (0.0, 0.0))


def test_on_another_thread_time_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server renders there, where no signal arrives."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(template, "_SECONDS", 0.1)
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(Renderer.for_tokenizer, with_template(ENDLESS["0.3 seconds"] + BARE))
        with pytest.raises(RunawayTemplateError, match=r"0\.1 seconds"):
            endless.result(20)
        assert pool.submit(Renderer.for_tokenizer(with_template(BARE)).tokenize, [LONGER]).result(20)


def test_without_proc_time_alone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no /proc."""

    def refuse(path: str, *how: object, **more: object) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(template, "open", refuse, raising=False)
    monkeypatch.setattr(template, "_SECONDS", 0.3)
    assert Renderer.for_tokenizer(with_template(BARE)).tokenize([LONGER])
    with pytest.raises(RunawayTemplateError, match=r"0\.3 seconds"):
        Renderer.for_tokenizer(with_template(ENDLESS["0.3 seconds"] + BARE))


def test_a_failure_on_one_conversation_is_a_refusal_of_it() -> None:
    renderer = Renderer.for_tokenizer(with_template(BARE + "{{ messages[1].content.index('w4') / 3 if false }}"))
    strange = with_template(BARE + "{{ 1 / (messages | length - 4) }}")
    with pytest.raises(TemplateRefusalError, match="ZeroDivisionError"):
        Renderer.for_tokenizer(strange).tokenize([LONGER])
    assert renderer.tokenize([LONGER])
