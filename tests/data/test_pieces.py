"""Texts encoded in pieces have the tokens that the tokenizer gives the whole texts."""

import random
from typing import Any

import pytest
from conftest import make_tokenizer

from rmtrain.data.pieces import PieceEncoder

MARKS = "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_end|>x", "<t>", "x<|im_start|>"
PARTS = (*MARKS, "", " ", "\n", "A question?", "an answer ", "Ünï 東京", "<|im_", "end|>", "<", "12345", "x")


def byte_tokenizer(**changes: Any) -> Any:
    """Byte-level BPE, with special tokens of which some begin or end alike; `changes` are of the token <t>."""
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=changes.pop("add_prefix_space", False))
    backend.normalizer = normalizers.NFC()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(["a question and an answer " * 9, "an answer to a question"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    kinds = {mark: changes if mark == "<t>" else {} for mark in MARKS}
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(mark, special=True, **kind) for mark, kind in kinds.items()]}
    )
    return tokenizer


def metaspace_tokenizer() -> Any:
    from tokenizers import pre_tokenizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


TOKENIZERS = {
    "words": make_tokenizer,
    "bytes": byte_tokenizer,
    "prefix space": lambda: byte_tokenizer(add_prefix_space=True),
    "metaspace": metaspace_tokenizer,
    "strips left": lambda: byte_tokenizer(lstrip=True),
    "strips right": lambda: byte_tokenizer(rstrip=True),
    "single word": lambda: byte_tokenizer(single_word=True),
    "normalized": lambda: byte_tokenizer(normalized=True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokens_are_those_of_the_whole_texts(name: str) -> None:
    tokenizer, draw = TOKENIZERS[name](), random.Random(name)
    texts = ["".join(draw.choices(PARTS, k=draw.randrange(12))) for _ in range(2000)]
    encoder = PieceEncoder.of(tokenizer)
    assert bool(encoder.cuts) == (name != "single word")
    assert encoder.encode(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_a_text_that_others_share_is_encoded_once() -> None:
    encoder, asked = PieceEncoder.of(byte_tokenizer()), []

    class Spy:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            asked.extend(texts)
            return encoder.backend.encode_batch_fast(texts, **options)

    PieceEncoder(Spy(), encoder.tokens, encoder.cuts).encode(["<s>a question<t>one", "<s>a question<t>two"])
    assert asked == ["<s>a question", "<t>one", "<t>two"]


def test_settings_that_would_cut_or_pad_a_text_are_undone() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert (
        PieceEncoder.of(tokenizer).encode(["an answer to a question", ""])
        == (byte_tokenizer()(["an answer to a question", ""], add_special_tokens=False)["input_ids"])
    )
