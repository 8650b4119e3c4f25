"""Encoders with a classification head of transformers' own, such as DeBERTa: question and answer as a pair of texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization, TokenizedGroup, truncate_group
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.data.types import Conversation, Message, PreferenceGroup, ids_in
from rmtrain.errors import DataError
from rmtrain.json_values import JsonObject
from rmtrain.model.batch import Packing, pack
from rmtrain.model.forward import with_mixin
from rmtrain.model.published.prompts import template_of

TEXT_PAIR = "question and answer as the tokenizer's pair of texts, earlier turns joined by a blank line"
_PROBE = (Message("user", "A question"), Message("assistant", "An answer"))


class EncoderForward:
    """Mixin that gives one label's logit, in float32, of transformers' own classification forward."""

    label = 0
    compute_dtype: torch.dtype = torch.float32

    def forward(self, **batch: Any) -> SequenceClassifierOutput:
        """[N] float32 rewards of a batch made by `encoder_batch`."""
        logits = super().forward(**batch).logits  # type: ignore[misc]
        return SequenceClassifierOutput(logits=logits[:, self.label].float())


def encoder_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The sequence-classification class of an encoder's config, with EncoderForward mixed in under its own name."""
    return with_mixin(EncoderForward, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])  # type: ignore[no-any-return]


def takes_types(config: PretrainedConfig) -> bool:
    """Whether an encoder tells its two texts apart by token types."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def encoder_batch(groups: Sequence[TokenizedGroup], packing: Packing, pad_id: int, types: bool) -> dict[str, Tensor]:
    """Padded rows as transformers' own forward takes them; with `types`, tokens from a group's start on have type 1."""
    padded = pack(groups, packing, pad_id)
    inputs = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
    if types:
        places = padded["position_ids"]
        never = (places.shape[1],)
        starts = [start for group in groups for start in group.starts or never * len(group.suffixes)]
        inputs["token_type_ids"] = (places >= torch.tensor(starts)[:, None]).long() * padded["attention_mask"]
    return inputs


def longest(module: Any, tokenizer: Any) -> int:
    """Tokens that an encoder and its tokenizer take; RoBERTa's kind leave their first positions unused."""
    positions = int(module.config.max_position_embeddings)
    for name, layer in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(layer, nn.Embedding) and layer.padding_idx:
            positions = layer.num_embeddings - layer.padding_idx - 1
    return min(positions, int(tokenizer.model_max_length))


def mark_answers(
    groups: Sequence[PreferenceGroup], tokenized: Sequence[TokenizedGroup], how: Tokenization
) -> list[TokenizedGroup]:
    """Set `starts` of tokenised groups, as `mark_responses` does: the first token of type 1, where there are types."""
    renderer = cast(TextPairRenderer, how.renderer)
    if not (renderer.types and renderer.reads_pairs):
        return list(tokenized)
    marked = []
    for group, tokens in zip(groups, tokenized, strict=True):
        kept = group
        if tokens.truncated:
            whole = renderer.tokenize([group.prompt + completion for completion in group.completions], group.arguments)
            kept = truncate_group(group, whole, how)[0]
        borders = renderer.borders([kept.prompt + completion for completion in kept.completions])
        numbers = tokens.suffix_of or range(len(borders))
        starts = dict(zip(numbers, borders, strict=True))  # the answer's first token in each suffix
        marked.append(tokens._replace(starts=tuple(starts[number] for number in range(len(tokens.suffixes)))))
    return marked


@dataclass(frozen=True)
class TextPairRenderer(Renderer):
    """Question and answer as the tokenizer's own pair; with a chat template, the conversation as one text."""

    types: bool = False  # the model tells its two texts apart by token types
    special_tokens: bool = True  # the tokenizer puts its own around a template's text, which has none of them

    @classmethod
    def of_encoder(cls, folder: str, prompt: str | None, config: PretrainedConfig) -> "TextPairRenderer":
        """The renderer of a folder's tokenizer; a prompt (see `make_renderer`) replaces the tokenizer's chat template.

        Raises:
            InputError: no tokenizer there, or no such prompt.
        """
        template = template_of(prompt) if prompt is not None else None
        tokenizer = load_tokenizer(folder, chat_template=template, template_needed=False)
        # the config's: RoBERTa's kind count positions from the tokens that are not this one
        pad_id = next((i for i in (config.pad_token_id, tokenizer.pad_token_id) if i is not None), 0)
        renderer = cls(tokenizer, False, False, int(pad_id), takes_types(config))
        if renderer.reads_pairs or not tokenizer.cls_token:
            return renderer
        return replace(renderer, special_tokens=tokenizer.cls_token not in renderer.render(_PROBE))

    @property
    def reads_pairs(self) -> bool:
        """Whether question and answer are encoded as a pair of texts: there is no chat template."""
        return self.tokenizer.chat_template is None

    def contract(self) -> JsonObject:
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

    def texts(self, conversations: Sequence[Conversation], arguments: str = "") -> list[Any]:
        """`text` of each conversation: most encoders have no template that could render them in one call."""
        return [self.text(conversation, arguments) for conversation in conversations]

    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """The tokens of whole conversations."""
        return self._encoded(texts)["input_ids"] if texts else []

    def tokenize_prompt(self, prompt: Conversation, arguments: str = "") -> list[int]:
        """The question with which its pairs begin, or the template's text of it; both with special tokens."""
        if not self.reads_pairs:
            text = self.render(prompt, arguments, generation=True)
        else:
            text = "\n\n".join(message.content for message in prompt)
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.special_tokens, verbose=False)["input_ids"]
        return ids

    def borders(self, conversations: Sequence[Conversation]) -> list[int]:
        """Tokens of type 0 with which each pair of texts begins: the question, with the special tokens around it."""
        encoded = self._encoded([self.text(conversation) for conversation in conversations])
        return [[*types, 1].index(1) for types in encoded["token_type_ids"]]

    def _encoded(self, texts: Sequence[Any]) -> Any:
        # types are asked for by name: tokenizers of transformers 5 leave out some that the models were trained with
        options = {"return_token_type_ids": self.types, "verbose": False}
        if self.reads_pairs:
            return self.tokenizer(*map(list, zip(*texts, strict=True)), **options)
        return self.tokenizer(list(texts), add_special_tokens=self.special_tokens, **options)
