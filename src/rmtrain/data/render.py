"""Rendering: conversation → tokens, the same for training, evaluation, benchmarks and scoring.

A sequence is the tokenizer's chat template applied to prompt and completion, tokenised once, without a generation
prompt. It starts with exactly one BOS if the tokenizer uses one, and ends with the template's end token, or with one
EOS if the template writes none. The reward is read at its last token.
"""

import copy
import datetime
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from jinja2.exceptions import TemplateError

from rmtrain.data.pieces import PieceEncoder
from rmtrain.data.skeletons import Skeleton, marked, prints_alone
from rmtrain.data.template import (
    DATE,
    LONGEST,
    TemplateRefusalError,
    UnknownTokenError,
    alternating,
    apply_template,
    apply_to_all,
    asks_for_date,
    bake,
    check_template,
    name_of,
    templates_of,
)
from rmtrain.data.tokenizer import choose_pad, special_tokens
from rmtrain.data.types import Conversation, Message, holds_ids, ids_in
from rmtrain.errors import CheckpointError, InputError, first_line
from rmtrain.json_values import JsonObject

_PROBE = "An answer that no template holds"
_PROBE_CONVERSATION = (Message("user", "A question"), Message("assistant", _PROBE))
_TOOLS = '{"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]}'
_PROBES = (
    _PROBE_CONVERSATION,
    (Message("system", "Be brief"), *_PROBE_CONVERSATION),
    (*_PROBE_CONVERSATION, Message("user", "Another\n question "), Message("assistant", "An answer\n")),
)


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with all settings of its rendering.

    Attributes:
        tokenizer: fast tokenizer with a chat template.
        prepend_bos: the template omits the tokenizer's BOS, so one is prepended.
        append_eos: the template writes no end token, so one EOS is appended.
        pad_id: a token that is neither EOS nor the last of a sequence, so that pooling by pad id finds the end.
        date: the fixed date that a template prints.
    """

    tokenizer: Any
    prepend_bos: bool
    append_eos: bool
    pad_id: int
    date: str = field(default=DATE, kw_only=True)
    _skeletons: dict[tuple[str, ...], Skeleton] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, append_eos: bool | None = None) -> "Renderer":
        """Render a probe to find out what the template omits; by default an EOS is appended if it writes none.

        Raises:
            InputError: the template can't render a prompt and an answer, or there is no end token to append.
        """
        try:
            check_template(tokenizer)
            text = apply_template(tokenizer, _PROBE_CONVERSATION, today=DATE)
        except (TemplateError, TemplateRefusalError) as error:
            raise InputError(
                f"{name_of(tokenizer)} can't render a question and an answer: {first_line(error)}",
                "give another model.chat_template, or another --prompt",
            ) from error
        head, answer, tail = text.rpartition(_PROBE)
        if not answer:
            raise InputError(
                f"{name_of(tokenizer)} leaves out the answer", "give another model.chat_template, or another --prompt"
            )
        if append_eos is None:
            append_eos = not any(token in tail for token in special_tokens(tokenizer))
        if append_eos and tokenizer.eos_token_id is None:
            raise InputError(
                "neither the chat template nor the tokenizer has an end token",
                "end the template with one, or set the tokenizer's eos_token",
            )
        bos = tokenizer.bos_token
        try:
            uses_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
            renderer = cls(tokenizer, uses_bos and bos not in head, append_eos, pad_id=-1)
            last_id = renderer.tokenize([_PROBE_CONVERSATION])[0][-1]
        except Exception as error:  # the tokenizers library has no error class of its own
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer can't turn text into tokens: {first_line(error)}",
                "the tokenizer.json is damaged, or lacks its unknown token",
            ) from error
        return replace(renderer, pad_id=choose_pad(tokenizer, last_id))

    def tokenize(self, conversations: Sequence[Conversation], arguments: str = "") -> list[list[int]]:
        """Render and tokenise whole conversations (prompt and completion) with the same template arguments.

        Raises:
            TemplateRefusalError: the template refuses a conversation.
            RunawayTemplateError: the template does not terminate.
        """
        return self.encode([self.text(conversation, arguments) for conversation in conversations])

    def text(self, conversation: Conversation, arguments: str = "") -> Any:
        """The input of `encode` for a whole conversation: its text, or its token ids; raises as `tokenize`."""
        ids = ids_in(conversation)
        if ids is None:
            return self.render(conversation, arguments)
        if unknown := next((str(token) for token in ids if token not in self._vocabulary), ""):
            raise UnknownTokenError(
                f"it holds the token id {unknown}, but the tokenizer's ids go from 0 to {max(self._vocabulary)}",
                "use rows that were made with this model's tokenizer",
            )
        return ids

    def texts(self, conversations: Sequence[Conversation], arguments: str = "") -> list[Any]:
        """`text` of each conversation in one call of the template, which must accept them unchanged.

        Raises:
            TemplateRefusalError, RunawayTemplateError: as `text`, though `text` may accept them one by one.
        """
        if holds_ids(conversations):
            return [self.text(conversation, arguments) for conversation in conversations]
        if self._prints_alone and not arguments and not any(m.fields for each in conversations for m in each):
            texts = [self._skeleton(tuple(m.role for m in each)).filled(each) for each in conversations]
            if max(map(len, texts)) <= LONGEST:
                return texts
        return apply_to_all(self.tokenizer, conversations, today=self.date, arguments=arguments)

    @cached_property
    def _vocabulary(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab().values())

    def _skeleton(self, roles: tuple[str, ...]) -> Skeleton:
        if roles not in self._skeletons:
            self._skeletons[roles] = Skeleton.of(apply_template(self.tokenizer, marked(roles), today=self.date))
        return self._skeletons[roles]

    @cached_property
    def _prints_alone(self) -> bool:
        """Whether the template only prints texts."""
        return prints_alone(templates_of(self.tokenizer)["default"])

    @cached_property
    def _pieces(self) -> PieceEncoder:
        return PieceEncoder.of(self.tokenizer)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a sequence: the tokenizer's EOS, and the chat template's last token."""
        return frozenset({self.tokenizer.eos_token_id, self.tokenize([_PROBE_CONVERSATION])[0][-1]})

    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """The tokens of whole conversations, with the BOS and the end token that the template omits."""
        tail = [self.tokenizer.eos_token_id] if self.append_eos else []
        encoded = iter(self._encode([text for text in texts if isinstance(text, str)]))
        return [next(encoded) + tail if isinstance(text, str) else text for text in texts]

    def tokenize_prompt(self, prompt: Conversation, arguments: str = "") -> list[int]:
        """A prompt as input of a language model: with the generation prompt, without an end token.

        Raises:
            TemplateRefusalError: the template refuses the prompt.
        """
        ids = ids_in(prompt)
        return self._encode([self.render(prompt, arguments, generation=True)])[0] if ids is None else ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._pieces.encode(texts)
        head = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        return [head + ids for ids in encoded] if head else encoded

    def render(self, conversation: Conversation, arguments: str = "", generation: bool = False) -> str:
        """The template's text of a conversation; raises as `tokenize`."""
        apply = partial(apply_template, self.tokenizer, today=self.date, arguments=arguments, generation=generation)
        try:
            return apply(conversation)
        except TemplateRefusalError as error:
            try:
                if any(message.fields for message in conversation):  # joining turns would lose these fields
                    raise
                return apply(alternating(conversation))
            except TemplateRefusalError:
                roles = ", ".join(message.role for message in conversation)
                raise TemplateRefusalError(
                    f"the chat template refuses a conversation with the roles {roles}: {error.message}",
                    "give a model.chat_template that accepts these roles, or correct the rows",
                ) from error

    def contract(self) -> JsonObject:
        """The facts that must be equal for comparable rewards; stored in rmtrain.json and checked on load."""
        templates = templates_of(self.tokenizer)
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in templates.items()}
        return {
            "chat_template_sha256": digests["default"],
            **({"tool_use_template_sha256": digests["tool_use"]} if "tool_use" in digests else {}),
            "bos_token_id": self.tokenizer.bos_token_id,
            "prepend_bos": self.prepend_bos,
            "eos_token_id": self.tokenizer.eos_token_id,
            "append_eos": self.append_eos,
            "pad_token_id": self.pad_id,
            "position": "last token",
            **({"date": self.date} if asks_for_date("".join(templates.values())) else {}),
        }

    def check_contract(self, contract: dict[str, Any], where: str) -> "Renderer":
        """The renderer with a checkpoint's date; refuses a checkpoint trained with a different rendering.

        Raises:
            CheckpointError: names each difference.
        """
        date = contract.get("date", self.date)
        try:
            datetime.date.fromisoformat(date)
        except (TypeError, ValueError):
            raise CheckpointError(f"{where}: {date!r} is not a date", "restore its rmtrain.json") from None
        dated = replace(self, date=date)
        mine = dated.contract()
        differences = [
            f"{key}: {value} then, {mine.get(key)} now" for key, value in contract.items() if value != mine.get(key)
        ]
        if differences:
            raise CheckpointError(
                f"{where}: the tokenizer does not render as in training ({'; '.join(differences)})",
                "restore the tokenizer files that were saved with the checkpoint",
            )
        return dated

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the rendering, one line each."""
        tokenizer, notes = self.tokenizer, []
        if asks_for_date("".join(templates_of(tokenizer).values())):
            notes.append(f"the chat template prints the date, which is fixed to {self.date}")
        if (pad := tokenizer.convert_ids_to_tokens(self.pad_id)) not in special_tokens(tokenizer):
            notes.append(
                f"the tokenizer has no special token for padding, so {pad!r} ({self.pad_id}) is saved as its pad "
                "token; rmtrain's own packed rows have no padding"
            )
        return tuple(notes)

    def baked(self) -> "Renderer":
        """The same rendering by the chat template only, for other programs; returns itself if no template can do it."""
        plain = templates_of(self.tokenizer)
        templates = {name: bake(text, self.prepend_bos, self.append_eos, self.date) for name, text in plain.items()}
        if templates == plain:
            return self
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = templates if len(templates) > 1 else templates["default"]
        baked = replace(self, tokenizer=tokenizer, prepend_bos=False, append_eos=False)
        arguments = ("", _TOOLS) if len(templates) > 1 else ("",)
        return baked if all(self._agrees(baked, probe, each) for probe in _PROBES for each in arguments) else self

    def _agrees(self, baked: "Renderer", probe: Conversation, arguments: str) -> bool:
        """Whether a baked template gives the same tokens for a conversation and its prompt, without a date."""
        try:
            whole = apply_template(self.tokenizer, probe, today=self.date, arguments=arguments)
            asked = apply_template(self.tokenizer, probe[:-1], today=self.date, arguments=arguments, generation=True)
        except TemplateRefusalError:  # rmtrain rearranges such conversations, which a template can't do
            return True
        texts = [
            apply_template(baked.tokenizer, probe, today=None, arguments=arguments),
            apply_template(baked.tokenizer, probe[:-1], today=None, arguments=arguments, generation=True),
        ]
        return baked.encode(texts) == [*self.encode([whole]), *self._encode([asked])]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer, with the pad token that pooling needs; several templates are stored in its config."""
        self.tokenizer.pad_token_id = self.pad_id
        several = isinstance(self.tokenizer.chat_template, dict)
        self.tokenizer.save_pretrained(folder, save_jinja_files=not several)
