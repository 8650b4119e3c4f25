"""The token that pads: none that a text could spell, and never the one at which a reward is read."""

from typing import Any

from rmtrain.errors import InputError

_BLANKS = ("Ġ", "▁")


def special_tokens(tokenizer: Any) -> list[str]:
    """Special tokens by role, then those that the vocabulary alone marks as special, such as some ends of turn."""
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def choose_pad(tokenizer: Any, last_id: int) -> int:
    """A pad id that needs no new vocabulary entry and is never the token at which a reward is read."""
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
        "the tokenizer has no token that can serve for padding beside its end token",
        "set its pad_token to a token other than its eos_token",
    )


def _ordinary_pad(tokenizer: Any, taken: set[int | None]) -> int | None:
    """A word's token, for a tokenizer such as GPT-2's, whose one special token is the end token.

    A tokenizer finds its pad token in texts by its spelling there, so it is one that no text spells: with the mark that
    byte-level and SentencePiece vocabularies put in place of a blank.
    """
    words = ((token, index) for token, index in tokenizer.get_vocab().items() if token[:1] in _BLANKS and token[1:])
    return max((index for _, index in words if index not in taken), default=None)
