"""Whole texts get the tokens of their messages, whatever the chat template writes around them."""

from typing import Any

import pytest
from conftest import TEMPLATE, make_tokenizer
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from rmtrain.data.render import Renderer
from rmtrain.data.types import Message, ids_in
from rmtrain.errors import InputError
from rmtrain.serving.texts import ReadTexts, TextReader

LOOP = "{% for m in messages %}"
TEMPLATES = {
    "BOS and EOS": TEMPLATE,
    "no BOS": TEMPLATE.replace("{{ bos_token }}", ""),
    "no end": TEMPLATE.replace(" {{ eos_token }}", ""),
    "neither": TEMPLATE.replace("{{ bos_token }}", "").replace(" {{ eos_token }}", ""),
    "a line break after the end": "{{ bos_token }}"
    + LOOP
    + "[INST] {{ m['role'] }}\n{{ m['content'] }} {{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[INST] assistant\n{% endif %}",
    "words alone": LOOP + "{{ m['content'] }} {% endfor %}",
}
CONVERSATIONS = [
    (Message("user", "w1 w2"), Message("assistant", "w3 w4")),
    (Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3 w4"), Message("assistant", "w5")),
    (Message("user", "w1 w2"), Message("assistant", "")),
]


def renderer_of(template: str, **tokens: Any) -> Renderer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.add_special_tokens(tokens) if tokens else None
    return Renderer.for_tokenizer(tokenizer)


def ids(read: list[ReadTexts]) -> list[list[int]]:
    """The tokens of whole texts, in the order of the texts."""
    found = {
        place: [*(ids_in(made.group.prompt) or []), *(ids_in(completion) or [])]
        for made in read
        for place, completion in zip(made.places, made.group.completions, strict=True)
    }
    return [found[place] for place in sorted(found)]


@pytest.mark.parametrize("name", [*TEMPLATES])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_rendered_text_gets_the_tokens_of_its_messages(name: str, conversation: Any) -> None:
    renderer = renderer_of(TEMPLATES[name], pad_token="<unk>")
    reader = TextReader(renderer, 512)
    expected = renderer.tokenize([conversation])
    text = renderer.render(conversation)
    generated = renderer.render(conversation[:-1], generation=True) + f" {conversation[-1].content}"
    bare = text.removeprefix("<s>")
    ended = text.rstrip().removesuffix("</s>")
    for same in (text, f"<s><s>{bare}", bare, ended, f"{ended}</s><unk><unk>", generated, f"{generated} </s>"):
        assert ids(reader.groups("", [same])) == expected, same
    assert reader.groups("", [text, generated])[0].cut is False


HEAD, FOOT = "[INST] {{ m['role'] }}\n", "{% if add_generation_prompt %}[INST] assistant\n{% endif %}"
ALTERED = {  # what a template prints of a message where it is not what a policy writes after the generation prompt
    "stripped": HEAD + "{{ m['content'] | trim }} {{ eos_token }}\n",
    "words first": HEAD + "{{ 'w8 w9 ' if m['role'] == 'assistant' }}{{ m['content'].lstrip() }} {{ eos_token }}\n",
    "blank is refused": HEAD
    + "{{ m['content'] | trim if m['content'] | trim else raise_exception('no') }}{{ eos_token }}",
}
REWRITES = {
    "a blank first": TEMPLATE,
    **{name: f"{{{{ bos_token }}}}{LOOP}{printed}{{% endfor %}}{FOOT}" for name, printed in ALTERED.items()},
}


@pytest.mark.parametrize("name", [*REWRITES])
@pytest.mark.parametrize("answer", ["w3", " w3 w4", "w3\n", "\n\nw3 \n w5", "w8 w9 w3"])
def test_an_answer_after_a_rendered_prompt_gets_the_tokens_of_its_message(name: str, answer: str) -> None:
    renderer = renderer_of(REWRITES[name], pad_token="<unk>")
    renderer.tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex("\\s"), "isolated")  # each blank is a token
    talk = (Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3"))
    opened = renderer.render(talk, generation=True)
    said = answer.removeprefix({"a blank first": " ", "words first": "w8 w9 "}.get(name, ""))
    expected = renderer.tokenize([(*talk, Message("assistant", said))])
    reader = TextReader(renderer, 512)
    for end in ("", "</s>", "</s><unk>"):
        for prompt in (opened, opened.removeprefix("<s>"), opened.rstrip()):
            texts = [f"{opened}{answer}{end}", opened + end]  # the second may be refused, which leaves the first alone
            assert ids(reader.groups("", texts, prompt))[:1] == expected, (end, prompt)


@pytest.mark.parametrize("name", [*TEMPLATES])
def test_a_plain_prompt_is_one_user_message(name: str) -> None:
    renderer = renderer_of(TEMPLATES[name])
    reader = TextReader(renderer, 512)
    opened = renderer.render(CONVERSATIONS[0][:1], generation=True)
    assert reader.is_rendered(opened) is (name != "words alone")
    assert not reader.is_rendered("w1 w2")
    ((group, _, cut),) = reader.groups("", ["w1 w2 w3", "w1 w2 w4</s>"], "w1 w2")
    assert (group.prompt, cut) == ((Message("user", "w1 w2"),), False)
    assert [completion[0].content for completion in group.completions] == [" w3", " w4"]
    with pytest.raises(InputError, match="does not begin with its prompt"):
        reader.groups("", ["w1"], "w2")


def test_a_text_that_is_too_long_loses_its_start_after_bos() -> None:
    renderer = renderer_of(TEMPLATE)
    whole = renderer.tokenize([CONVERSATIONS[1]])[0]
    for splits in (False, True):
        read = TextReader(renderer, 8, splits).groups("", [renderer.render(CONVERSATIONS[1])] * 2)
        short, other = ids(read)
        assert all(made.cut for made in read)
        assert short == other == whole[:1] + whole[-7:]


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InputError, match="half of a surrogate pair"):
        TextReader(renderer_of(TEMPLATE), 512).groups("", ["w1 \ud800"])
