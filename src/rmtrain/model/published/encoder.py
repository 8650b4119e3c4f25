"""Encoders with a classification head of transformers' own, such as DeBERTa: question and answer as a pair of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.data.types import Conversation, Message, ids_in
from rmtrain.errors import DataError
from rmtrain.model.batch import Batch
from rmtrain.model.published.prompts import template_of
from rmtrain.model.reward_model import RewardModel

TEXT_PAIR = "question and answer as the tokenizer's pair of texts, earlier turns joined by a blank line"
_TYPE_SHIFT = 24  # a token's type lies above the bits of its id, so that types go wherever tokens go
_ID_BITS = (1 << _TYPE_SHIFT) - 1
_PROBE = (Message("user", "A question"), Message("assistant", "An answer"))


class EncoderForward:
    """Mixin that gives one label's logit, in float32, of transformers' own classification forward."""

    label = 0
    compute_dtype: torch.dtype = torch.float32

    def forward(self, **batch: Any) -> SequenceClassifierOutput:
        """[N] float32 rewards of a batch made by `EncoderModel.batch`."""
        logits = super().forward(**batch).logits  # type: ignore[misc]
        return SequenceClassifierOutput(logits=logits[:, self.label].float())


def encoder_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The sequence-classification class of an encoder's config, with EncoderForward mixed in under its own name."""
    base = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return type(base.__name__, (EncoderForward, base), {"__module__": base.__module__})


def takes_types(config: PretrainedConfig) -> bool:
    """Whether an encoder tells its two texts apart by token types."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


@dataclass(frozen=True)
class EncoderModel(RewardModel):
    """An encoder ready to run, on padded rows."""

    def batch(self, groups: Sequence[TokenizedGroup], pad_id: int) -> Batch:
        """Groups laid out as transformers' own forward takes them."""
        padded = super().batch(groups, pad_id)
        inputs = {"input_ids": padded["input_ids"] & _ID_BITS, "attention_mask": padded["attention_mask"]}
        if takes_types(self.module.config):
            inputs["token_type_ids"] = padded["input_ids"] >> _TYPE_SHIFT
        return inputs

    def longest(self, tokenizer: Any) -> int:
        """Tokens that it takes: of its positions, less those that RoBERTa's kind leave unused, and its tokenizer's."""
        positions = int(self.module.config.max_position_embeddings)
        for name, layer in self.module.named_modules():
            if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding) and layer.padding_idx:
                positions = layer.num_embeddings - layer.padding_idx - 1
        return min(positions, int(tokenizer.model_max_length))


@dataclass(frozen=True)
class TextPairRenderer(Renderer):
    """Question and answer as the tokenizer's own pair; with a chat template, the conversation as one text.

    Attributes:
        types: tokens carry their types.
        special_tokens: the tokenizer puts its own around a template's text, which has none of them.
    """

    types: bool = False
    special_tokens: bool = True

    @classmethod
    def of_encoder(cls, folder: str, prompt: str | None, config: PretrainedConfig) -> "TextPairRenderer":
        """Of the tokenizer in a folder; a prompt (see `make_renderer`) takes the place of its own chat template.

        Raises:
            InputError: no tokenizer there, or no such prompt.
        """
        template = template_of(prompt) if prompt is not None else None
        tokenizer = load_tokenizer(folder, chat_template=template, template_needed=False)
        # the config's: RoBERTa's kind count positions from the tokens that are not this one
        pad_id = next((i for i in (config.pad_token_id, tokenizer.pad_token_id) if i is not None), 0)
        found = cls(tokenizer, False, False, int(pad_id), takes_types(config))
        if found.reads_pairs or not tokenizer.cls_token:
            return found
        return cls(tokenizer, False, False, int(pad_id), found.types, tokenizer.cls_token not in found.render(_PROBE))

    @property
    def reads_pairs(self) -> bool:
        """There is no chat template."""
        return self.tokenizer.chat_template is None

    def contract(self) -> dict[str, Any]:
        """What must hold for a reward to mean the same."""
        read = {"text_pair": TEXT_PAIR} if self.reads_pairs else super().contract()
        return {**read, "token_types": self.types, "special_tokens": self.special_tokens, "position": "as the model's"}

    def text(self, conversation: Conversation, arguments: str = "") -> Any:
        """What `encode` takes of a whole conversation: question and answer, or the template's text."""
        if ids_in(conversation) is not None:
            raise DataError(
                "the rows hold token ids, and an encoder reads texts, with tokens of its own around them",
                "give the texts that the ids were made of, as prompt, chosen and rejected",
            )
        if not self.reads_pairs:
            return self.render(conversation, arguments)
        return "\n\n".join(message.content for message in conversation[:-1]), conversation[-1].content

    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """The tokens of whole conversations, each with its type above the bits of the id."""
        if not texts:
            return []
        # types are asked for by name: tokenizers of transformers 5 leave out some that the models were trained with
        options = {"return_token_type_ids": self.types, "verbose": False}
        if self.reads_pairs:
            encoded = self.tokenizer(*map(list, zip(*texts, strict=True)), **options)
        else:
            encoded = self.tokenizer(list(texts), add_special_tokens=self.special_tokens, **options)
        ids: list[list[int]] = encoded["input_ids"]
        if not self.types:
            return ids
        pairs = zip(ids, encoded["token_type_ids"], strict=True)
        return [[i + (kind << _TYPE_SHIFT) for i, kind in zip(*pair, strict=True)] for pair in pairs]
