"""Prompts by name: the texts that published reward models read, as chat templates; `--prompt` takes any of them."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

from rmtrain.data.render import Renderer
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.errors import InputError


class Prompt(NamedTuple):
    """What stands around the text of a question and of an answer."""

    question: str  # before a question
    answer: str  # between a question and its answer
    end: str = ""  # after an answer
    between: str = ""  # between an answer and the next question, after its end
    append_eos: bool | None = None  # one EOS follows the last answer; None appends one where `end` is no end token

    @property
    def chat_template(self) -> str:
        """The prompt as a Jinja template, for conversations that alternate between user and assistant."""
        question, answer, end, between = (json.dumps(text) for text in self[:4])
        return (
            "{% for m in messages %}{% if m['role'] == 'user' %}"
            f"{{% if not loop.first %}}{{{{ {between} }}}}{{% endif %}}{{{{ {question} + m['content'] + {answer} }}}}"
            f"{{% elif m['role'] == 'assistant' %}}{{{{ m['content'] + {end} }}}}"
            "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
        )


# Of the models' cards; `-fastchat` is what RewardBench's runner made of it, whose Llama tokenizers also append an EOS.
PROMPTS = {
    "starling-7b": Prompt("<s>[INST] ", " </s> [/INST] ", "</s>"),
    "starling-7b-fastchat": Prompt("[INST] ", " [/INST] ", " </s><s>", append_eos=True),  # llama-2
    "starling-34b": Prompt("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "\n"),
    "starling-34b-fastchat": Prompt("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"),
    "ultrarm": Prompt("Human: ", "\n\nAssistant: ", "", "\n\n", append_eos=False),
    "ultrarm-fastchat": Prompt("User: ", "\n\nAssistant: ", "\n\n", append_eos=True),  # openbmb
    "ultrarm-billa": Prompt("\nHuman: ", "\nAssistant: ", "\n", append_eos=True),  # what the runner used earlier
    "ziya": Prompt("Human:", "\n\nAssistant:", "", "\n\n", append_eos=True),
    "ziya-fastchat": Prompt("\n\nHuman: ", "\n\nAssistant: ", "\n\n", append_eos=True),
    "oasst": Prompt("<|prompter|>", "<|endoftext|><|assistant|>", "<|endoftext|>"),
    "tulu": Prompt("<|user|>\n", "\n<|assistant|>\n", "\n", append_eos=True),
}


def with_prompt(renderer: Renderer, prompt: str) -> Renderer:
    """The renderer of the same tokenizer with another prompt of those known by name."""
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.chat_template = PROMPTS[prompt].chat_template
    return Renderer.for_tokenizer(tokenizer, PROMPTS[prompt].append_eos)


def make_renderer(tokenizer: str, prompt: str | None) -> Renderer:
    """The renderer of a folder's or hub id's tokenizer.

    Args:
        prompt: a name, `raw`, the path of a .jinja file, or Jinja text; None takes the tokenizer's own template.

    Raises:
        InputError: there is no such prompt, or no template at all.
    """
    if prompt is None:
        return Renderer.for_tokenizer(load_tokenizer(tokenizer))
    append_eos = PROMPTS[prompt].append_eos if prompt in PROMPTS else None
    return Renderer.for_tokenizer(load_tokenizer(tokenizer, chat_template=template_of(prompt)), append_eos)


def template_of(prompt: str) -> str:
    """The chat template that a prompt stands for: Jinja text, or the path of a .jinja file.

    Raises:
        InputError: there is no such prompt.
    """
    if prompt in PROMPTS:
        return PROMPTS[prompt].chat_template
    if prompt != "raw" and "{" not in prompt and not Path(prompt).is_file():
        raise InputError(f"there is no prompt {prompt!r}", f"take a .jinja file, raw, or one of {', '.join(PROMPTS)}")
    return prompt
