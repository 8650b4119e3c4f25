"""Tokenizers: loading one with its chat template, and choosing the token that pads."""

from pathlib import Path
from typing import Any

from rmtrain.data.hub import require_present
from rmtrain.data.template import RAW
from rmtrain.errors import InputError, first_line
from rmtrain.files import read_text, require_regular

_BLANKS = ("Ġ", "▁")


def load_tokenizer(
    name: str, revision: str | None = None, chat_template: str | None = None, template_needed: bool = True
) -> Any:
    """Load a fast tokenizer from a folder or the hub.

    `chat_template` (Jinja text, the path of a .jinja file, or `raw`) replaces its own; without `template_needed` it may
    have none.

    Raises:
        InputError: there is no tokenizer, or no chat template.
    """
    from transformers import AutoTokenizer

    if Path(name).is_dir():
        require_regular(Path(name))
    require_present(name, revision, InputError)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # a damaged file can raise anything in the tokenizers library
        raise InputError(
            f"{name}: no tokenizer could be loaded: {first_line(error)}",
            "a model is a folder or a hub id with tokenizer files",
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"{name}: its tokenizer has no fast version", "the folder must hold a tokenizer.json")
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    if isinstance(tokenizer.chat_template, dict):  # by name; transformers takes tool_use for rows with tools
        named = {name: text for name, text in tokenizer.chat_template.items() if name in ("default", "tool_use")}
        tokenizer.chat_template = named if len(named) > 1 else named.get("default")
    if template_needed and tokenizer.chat_template is None:
        raise InputError(
            f"{name}: the tokenizer has no chat template",
            "give one as model.chat_template, or as --prompt to score: Jinja text, the path of a .jinja file, or "
            "`raw` for the texts alone, as a base model takes them",
        )
    return tokenizer


def _template_text(template: str) -> str:
    if template == "raw" or "{" in template:
        return RAW if template == "raw" else template
    try:
        return read_text(template)
    except InputError as error:
        raise InputError(
            f"the chat template {error.message}", error.hint or "give Jinja text, the path of a .jinja file, or raw"
        ) from None


def special_tokens(tokenizer: Any) -> list[str]:
    """Special tokens by role, then those marked as special only in the vocabulary, such as some ends of turn."""
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def choose_pad(tokenizer: Any, last_id: int) -> int:
    """A pad id that needs no new vocabulary entry and never is the token at which a reward is read."""
    taken = {tokenizer.eos_token_id, last_id}
    specials = [tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)]
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    candidates += sorted(specials, key=lambda index: index == tokenizer.bos_token_id)  # BOS last
    for candidate in candidates:
        if candidate is not None and candidate not in taken:
            return int(candidate)
    if (ordinary := _ordinary_pad(tokenizer, taken)) is not None:
        return ordinary
    raise InputError(
        "the tokenizer has no token for padding besides its end token",
        "set its pad_token to a token other than its eos_token",
    )


def _ordinary_pad(tokenizer: Any, taken: set[int | None]) -> int | None:
    """An ordinary token, for tokenizers such as GPT-2's whose only special token is the end token.

    A tokenizer recognises its pad token in texts by spelling, so texts must not contain it: it is a token with the mark
    that byte-level and SentencePiece vocabularies use for a space.
    """
    words = ((token, index) for token, index in tokenizer.get_vocab().items() if token[:1] in _BLANKS and token[1:])
    return max((index for _, index in words if index not in taken), default=None)
