"""Rendering against the tokenizer's own apply_chat_template, over templates that do and don't write BOS and EOS."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, make_tokenizer

from rmtrain.data.render import Renderer
from rmtrain.data.template import alternating
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.data.types import Conversation, Message
from rmtrain.errors import CheckpointError, DataError, InputError

PAIR = (Message("user", "w1 w2"), Message("assistant", "w3 w4"))
LONGER = (*PAIR, Message("user", "w5"), Message("assistant", "w6 w7 w8"))
BARE = "{% for m in messages %} {{ m['content'] }}{% endfor %}"  # neither BOS nor end token
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


def with_template(template: str, **changes: Any) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def adding_bos(tokenizer: Any) -> Any:
    """The tokenizer, putting BOS before every text by itself, as Llama's and Mistral's do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert tokenizer("w1")["input_ids"] == [1, 6]
    return tokenizer


def word_tokenizer(words: dict[str, int]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = Tokenizer(WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    return backend


def own(tokenizer: Any, conversation: Conversation) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


@pytest.mark.parametrize("conversation", [PAIR, LONGER, (PAIR[0], Message("assistant", ""))])
def test_tokens_are_those_of_the_tokenizers_own_template(conversation: Conversation) -> None:
    tokenizer = make_tokenizer()
    assert Renderer.for_tokenizer(tokenizer).tokenize([conversation]) == [own(tokenizer, conversation)]


def test_many_conversations_are_tokenised_as_one_by_one(tokenizer: Any) -> None:
    renderer = Renderer.for_tokenizer(tokenizer)
    assert renderer.tokenize([PAIR, LONGER]) == renderer.tokenize([PAIR]) + renderer.tokenize([LONGER])
    assert renderer.tokenize([]) == []


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.removeprefix("{{ bos_token }}"), "\n" + TEMPLATE])
def test_there_is_exactly_one_bos_where_the_tokenizer_uses_one(template: str) -> None:
    renderer = Renderer.for_tokenizer(adding_bos(with_template(template)))
    for tokens in renderer.tokenize([PAIR, LONGER]):
        assert tokens[0] == 1
        assert tokens.count(1) == 1


def test_no_bos_is_put_where_neither_template_nor_tokenizer_has_one() -> None:
    renderer = Renderer.for_tokenizer(with_template(TEMPLATE.removeprefix("{{ bos_token }}")))
    assert not renderer.prepend_bos
    assert 1 not in renderer.tokenize([PAIR])[0]


def test_one_eos_is_appended_where_the_template_leaves_no_end_token() -> None:
    tokenizer = with_template(BARE)
    renderer = Renderer.for_tokenizer(tokenizer)
    assert renderer.append_eos
    assert renderer.tokenize([PAIR]) == [[*own(tokenizer, PAIR), 2]]


def test_no_eos_is_appended_where_the_template_ends_with_one() -> None:
    renderer = Renderer.for_tokenizer(with_template(BARE + "{{ ' ' + eos_token }}"))
    assert not renderer.append_eos
    assert renderer.tokenize([PAIR])[0].count(2) == 1


def test_an_end_token_that_only_the_vocabulary_marks_as_special_counts() -> None:
    from tokenizers import AddedToken

    tokenizer = with_template("{% for m in messages %} {{ m['content'] }} <|end|>\n{% endfor %}")
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    assert "<|end|>" not in tokenizer.all_special_tokens  # it has no role, like <|end|> of Phi-3
    renderer = Renderer.for_tokenizer(tokenizer)
    assert not renderer.append_eos
    assert renderer.tokenize([PAIR]) == [own(tokenizer, PAIR)]


def test_no_end_token_anywhere_is_refused() -> None:
    with pytest.raises(InputError, match="neither the chat template nor the tokenizer has an end token"):
        Renderer.for_tokenizer(with_template(BARE, eos_token=None))


@pytest.mark.parametrize("pad", [None, "</s>", "<unk>", "[INST]"])
def test_the_pad_token_is_neither_eos_nor_where_a_reward_is_read(pad: str | None) -> None:
    tokenizer = with_template(TEMPLATE, pad_token=pad)
    size = len(tokenizer)
    renderer = Renderer.for_tokenizer(tokenizer)
    assert renderer.pad_id not in (2, renderer.tokenize([PAIR])[0][-1])
    assert renderer.pad_id < size == len(tokenizer)
    if pad not in (None, "</s>"):
        assert renderer.pad_id == tokenizer.convert_tokens_to_ids(pad)


def test_the_pad_token_is_not_what_the_template_ends_with_either() -> None:
    renderer = Renderer.for_tokenizer(with_template(BARE + "{{ ' [/INST]' }}", pad_token="[/INST]"))
    assert renderer.pad_id not in (2, 4)


def test_a_tokenizer_without_a_spare_special_token_is_refused() -> None:
    from transformers import PreTrainedTokenizerFast

    backend = make_tokenizer().backend_tokenizer
    words = {token: i for token, i in backend.get_vocab().items() if not token.startswith("<") or token == "</s>"}
    poor = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(words), eos_token="</s>")
    poor.chat_template = BARE
    with pytest.raises(InputError, match="no token for padding"):
        Renderer.for_tokenizer(poor)


def test_gpt2_s_tokenizer_pads_with_a_word_that_no_text_spells(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = ["the gazed gazed at the wall!! and gazed", "Ġa wall"]
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(texts * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    before = [tokenizer(text)["input_ids"] for text in [*texts, "!", "!!", "wall"]]
    renderer = Renderer.for_tokenizer(tokenizer)
    word = tokenizer.convert_ids_to_tokens(renderer.pad_id)
    assert word[0] == "Ġ"
    assert len(word) > 1
    assert renderer.pad_id not in (tokenizer.eos_token_id, renderer.tokenize([PAIR])[0][-1])
    assert renderer.notes[0].startswith(f"the tokenizer has no special token for padding, so {word!r} ")
    assert not Renderer.for_tokenizer(make_tokenizer()).notes
    renderer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert [again(text)["input_ids"] for text in [*texts, "!", "!!", "wall"]] == before
    assert Renderer.for_tokenizer(again).contract() == renderer.contract()


def test_a_saved_tokenizer_pads_and_renders_as_before(tmp_path: Path) -> None:
    renderer = Renderer.for_tokenizer(make_tokenizer())
    contract = renderer.contract()
    renderer.save_pretrained(tmp_path)
    again = Renderer.for_tokenizer(load_tokenizer(str(tmp_path)))
    assert again.contract() == contract == renderer.contract()
    assert again.tokenizer.pad_token_id == renderer.pad_id
    assert again.tokenize([LONGER]) == renderer.tokenize([LONGER])


def test_the_contract_changes_with_the_template_and_names_the_difference() -> None:
    mine = Renderer.for_tokenizer(make_tokenizer())
    other = Renderer.for_tokenizer(with_template(TEMPLATE + " "))
    assert mine.contract()["chat_template_sha256"] != other.contract()["chat_template_sha256"]
    mine.check_contract(mine.contract(), "there")
    with pytest.raises(CheckpointError, match="chat_template_sha256: ") as error:
        mine.check_contract(other.contract(), "runs/a/final")
    assert "runs/a/final" in error.value.message
    assert "eos_token_id" not in error.value.message
    with pytest.raises(CheckpointError, match="append_eos: True then, False now"):
        mine.check_contract({**mine.contract(), "append_eos": True}, "there")


def test_a_contract_with_a_promise_that_is_not_known_here_is_refused() -> None:
    mine = Renderer.for_tokenizer(make_tokenizer())
    with pytest.raises(CheckpointError, match="thinking: off then, None now"):
        mine.check_contract({**mine.contract(), "thinking": "off"}, "there")


SYSTEM = (Message("system", "w9"), *PAIR)


def test_a_system_turn_goes_before_the_first_question_where_the_template_refuses_the_role() -> None:
    renderer = Renderer.for_tokenizer(with_template(MISTRAL))
    merged = (Message("user", "w9\n\nw1 w2"), PAIR[1])
    assert renderer.tokenize([SYSTEM]) == [own(renderer.tokenizer, merged)]


def test_a_system_turn_is_left_alone_where_the_template_takes_it() -> None:
    template = "{{ bos_token }}{% for m in messages %} {{ m['role'] }} {{ m['content'] }}{% endfor %} {{ eos_token }}"
    renderer = Renderer.for_tokenizer(with_template(template))
    assert renderer.tokenize([SYSTEM]) == [own(renderer.tokenizer, SYSTEM)]


def test_neighbours_of_one_role_are_joined() -> None:
    turns = (Message("system", "a"), Message("user", "b"), Message("user", "c"), Message("assistant", "d"))
    assert alternating(turns) == (Message("user", "a\n\nb\n\nc"), Message("assistant", "d"))
    assert alternating(PAIR) == PAIR


def test_a_conversation_that_the_template_refuses_names_its_roles() -> None:
    renderer = Renderer.for_tokenizer(with_template(MISTRAL))
    with pytest.raises(DataError, match="roles assistant, user: Conversation roles must alternate") as error:
        renderer.tokenize([(PAIR[1], PAIR[0])])
    assert "model.chat_template" in error.value.hint


def test_a_template_that_leaves_out_the_answer_or_can_not_render_is_refused() -> None:
    with pytest.raises(InputError, match="leaves out the answer"):
        Renderer.for_tokenizer(with_template("{{ bos_token }} {{ messages[0]['content'] }}"))
    with pytest.raises(InputError, match="can't render a question and an answer"):
        Renderer.for_tokenizer(with_template("{{ raise_exception('never') }}"))


# Loading


def test_a_missing_tokenizer_or_template_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(InputError, match=f"{tmp_path / 'gone'}: no such folder"):
        load_tokenizer(str(tmp_path / "gone"))
    with_template(TEMPLATE, chat_template=None).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the tokenizer has no chat template") as error:
        load_tokenizer(str(tmp_path))
    assert "model.chat_template" in error.value.hint


def test_a_recipes_template_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "own.jinja").write_text(BARE)
    for template in (BARE, str(tmp_path / "own.jinja")):
        assert load_tokenizer(str(tmp_path / "tokenizer"), chat_template=template).chat_template == BARE
    for path, told in (("gone.jinja", "no such file"), ("/dev/zero", "it is a device"), ("n" * 300, "name too long")):
        with pytest.raises(InputError, match=f"the chat template {path}: .*{told}"):
            load_tokenizer(str(tmp_path / "tokenizer"), chat_template=path)


def test_of_several_templates_that_of_tools_is_taken_for_rows_with_tools(tmp_path: Path) -> None:
    """As transformers chooses, from the base's tokenizer and from one that is saved with BOS and end baked in."""
    several = {"default": TEMPLATE, "tool_use": "{{ tools[0].function.name }}" + BARE, "rag": "{{ never }}"}
    with_template(TEMPLATE, chat_template=several).save_pretrained(tmp_path / "base")
    renderer = Renderer.for_tokenizer(load_tokenizer(str(tmp_path / "base")))
    conversation = (Message("user", "w1"), Message("assistant", "w2"))
    messages = [message.as_dict() for message in conversation]
    tools = [{"type": "function", "function": {"name": "w7", "parameters": {}}}]
    arguments = json.dumps({"tools": tools})
    plain, with_tools = (renderer.tokenize([conversation], each)[0] for each in ("", arguments))
    assert renderer.render(conversation, arguments).startswith("w7")
    assert renderer.render(conversation) == renderer.tokenizer.apply_chat_template(messages, tokenize=False)
    renderer.baked().save_pretrained(tmp_path / "saved")
    saved = Renderer.for_tokenizer(load_tokenizer(str(tmp_path / "saved")))
    assert saved.check_contract(renderer.baked().contract(), "here").tokenize([conversation], arguments) == [with_tools]
    assert saved.tokenize([conversation]) == [plain]
    assert "chat_templates" not in [path.name for path in (tmp_path / "saved").iterdir()]
    other = Renderer.for_tokenizer(with_template(TEMPLATE, chat_template={**several, "tool_use": BARE}))
    with pytest.raises(CheckpointError, match="tool_use_template_sha256"):
        other.check_contract(renderer.contract(), "here")


def test_a_lone_default_template_is_the_template(tmp_path: Path) -> None:
    with_template(TEMPLATE, chat_template={"default": TEMPLATE, "rag": BARE}).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == TEMPLATE


def test_remote_code_is_refused_without_a_question(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


# Real tokenizers


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of Mistral-7B-Instruct, from the file that mistral-common ships."""
    common = pytest.importorskip("mistral_common", reason="mistral-common is not installed")
    model = Path(common.__file__).parent / "data" / "tokenizer.model.v1"
    if not model.exists():
        pytest.skip("this mistral-common ships no tokenizer.model.v1")
    folder = tmp_path_factory.mktemp("mistral")
    shutil.copy(model, folder / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    return Renderer.for_tokenizer(load_tokenizer(str(folder), chat_template=MISTRAL))


def test_mistrals_tokens_are_those_of_its_makers(mistral: Renderer) -> None:
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    turns = ["What is 2+2?", "It is 4.", "Why? Say it in English, français or 日本語."]
    kinds = [UserMessage, AssistantMessage, UserMessage]
    request = ChatCompletionRequest(messages=[kind(content=t) for kind, t in zip(kinds, turns, strict=True)])
    theirs = MistralTokenizer.v1().encode_chat_completion(request).tokens
    conversation = tuple(Message(role, t) for role, t in zip(("user", "assistant", "user"), turns, strict=True))
    mine = mistral.tokenize([(*conversation, Message("assistant", "So."))])[0]
    answer = mine[len(theirs) :]
    assert mine[: len(theirs)] == theirs
    assert mistral.tokenizer.decode(answer) == "So.</s>"
    assert (mine.count(1), mine[-1], mistral.prepend_bos, mistral.append_eos) == (1, 2, False, False)
    assert mistral.pad_id == 0  # <unk>: not </s>, which would move the pooled position


def test_smollm2_renders_as_its_template_says() -> None:
    folder = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("models/smollm2-135m-instruct is not there; scripts/smollm2.py makes it")
    renderer = Renderer.for_tokenizer(load_tokenizer(str(folder)))
    tokens = renderer.tokenize([PAIR])[0]
    assert tokens == own(renderer.tokenizer, PAIR)
    assert not renderer.append_eos
    assert renderer.pad_id not in (renderer.tokenizer.eos_token_id, tokens[-1])
