"""PairRM (arXiv 2306.02561): two completions are compared in one pass, and no completion has a reward of its own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DebertaV2Model, DebertaV2PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from rmtrain.data.render import Renderer
from rmtrain.data.template import alternating
from rmtrain.data.tokenize import TokenizedGroup, merge_equal
from rmtrain.data.types import Conversation, PreferenceGroup
from rmtrain.errors import CheckpointError, DataError
from rmtrain.json_values import JsonObject

MAX_LENGTH = 2048  # tokens of source and both candidates
_MAX_SOURCE = 1224
_MARKERS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
_TASK = (  # word for word, as it was trained
    "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
)


class PairModel(DebertaV2PreTrainedModel):  # type: ignore[misc]
    """DeBERTa with a head on the states at the markers of the source and of a candidate."""

    base_model_prefix = "pretrained_model"
    compute_dtype = torch.float32
    _keep_in_fp32_modules_strict = ("head_layer",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        width = config.hidden_size
        dropout = nn.Dropout(0)  # keeps the published numbers of the layers; nothing is trained
        self.head_layer = nn.Sequential(
            dropout, nn.Linear(2 * width, width), nn.Tanh(), dropout, nn.Linear(width, config.n_tasks)
        )
        self.post_init()

    def forward(
        self, input_ids: Int[Tensor, "N L"], attention_mask: Int[Tensor, "N L"], **_: Any
    ) -> SequenceClassifierOutput:
        """[N] float32 logits that the first candidate is better, the mean over tasks, of N padded rows."""
        half = self.compute_dtype != torch.float32
        with torch.autocast(input_ids.device.type, dtype=self.compute_dtype, enabled=half):
            states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        ids = (self.config.source_prefix_id, self.config.cand1_prefix_id, self.config.cand2_prefix_id)
        source, *candidates = (states[rows, (input_ids == marker).int().argmax(1)].float() for marker in ids)
        with torch.autocast(input_ids.device.type, enabled=False):
            first, second = (self.head_layer(torch.cat([source, candidate], -1)) for candidate in candidates)
        return SequenceClassifierOutput(logits=(first - second).mean(-1))


@dataclass(frozen=True)
class PairRenderer(Renderer):
    """Two conversations that differ in their answers alone, as one sequence: source, candidate, candidate."""

    @classmethod
    def of_pairs(cls, tokenizer: Any, config: Any) -> "PairRenderer":
        """Raises CheckpointError where the tokenizer does not have the markers that the config names."""
        wanted = [getattr(config, f"{name}_prefix_id", None) for name in ("source", "cand1", "cand2")]
        ids = tokenizer.convert_tokens_to_ids(list(_MARKERS))
        if wanted != ids:
            raise CheckpointError(
                f"PairRM's markers are {wanted} in its config and {ids} in its tokenizer",
                "the tokenizer's files are of another model",
            )
        return cls(tokenizer, False, False, tokenizer.pad_token_id)

    def contract(self) -> JsonObject:
        """What must hold for a comparison to mean the same."""
        return {"prompt": _TASK, "pad_token_id": self.pad_id, "position": list(_MARKERS)}

    def tokenize_pairs(self, group: PreferenceGroup) -> tuple[TokenizedGroup, list[int]]:
        """A group's preferences, each as the better one first and as the worse one first.

        A source longer than 1,224 tokens, or a candidate longer than half of what it leaves of 2,048, loses its end.

        Returns:
            2 sequences a preference, as if they were a group's completions, and the tokens of each of the K candidates.

        Raises:
            DataError: no alternating questions and answers, or a text with one of the markers.
        """
        chats = [alternating(group.prompt + completion) for completion in group.completions]
        if any(chat[::2] != chats[0][::2] or not _is_alternating(chat) for chat in chats):
            raise DataError(
                f"group {group.id}: PairRM compares answers to the same questions, question and answer in turn",
                "score these rows with a reward model",
            )
        if any(marker in message.content for chat in chats for message in chat for marker in _MARKERS):
            raise DataError(f"group {group.id}: a text has one of PairRM's markers", f"take {_MARKERS} out of it")
        questions = (
            f"USER: {message.content}\nAssistant: <Response {turn}>" for turn, message in enumerate(chats[0][::2], 1)
        )
        whole = self._encode_whole(_MARKERS[0] + _TASK + "\n".join(questions))
        source = _cut(whole, _MAX_SOURCE)
        room = (MAX_LENGTH - len(source)) // 2
        answers = ["\n".join(f"<Response {i}>: {m.content}" for i, m in enumerate(chat[1::2], 1)) for chat in chats]
        candidates = [[self._encode_whole(marker + answer) for marker in _MARKERS[1:]] for answer in answers]
        lengths = [len(first) for first, _ in candidates]
        distinct, suffix_of = merge_equal(  # candidates of the same tokens give the same two sequences: a margin of 0
            source + _cut(candidates[first][0], room) + _cut(candidates[second][1], room)
            for pair in group.preferences
            for first, second in ((pair.better, pair.worse), (pair.worse, pair.better))
        )
        truncated = len(whole) > _MAX_SOURCE or max(lengths) > room
        nothing, *suffixes = (np.array(ids, dtype=np.int32) for ids in [[], *distinct])
        tokenized = TokenizedGroup(
            group.id, group.source, nothing, tuple(suffixes), group.preferences, truncated, suffix_of=suffix_of
        )
        return tokenized, lengths

    def _encode_whole(self, text: str) -> list[int]:
        """The tokens of a text between [CLS] and [SEP]."""
        return self.tokenizer(text, verbose=False)["input_ids"]  # type: ignore[no-any-return]


def _is_alternating(chat: Conversation) -> bool:
    roles = [message.role for message in chat]
    return len(roles) > 0 and roles == ["user", "assistant"] * (len(roles) // 2)


def _cut(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]
