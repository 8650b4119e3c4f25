"""Policies as scorers: the implicit reward of DPO, log pi - log pi_ref (arXiv 2305.18290).

A policy trained by DPO defines, up to a term that depends only on the prompt, the reward beta * (log pi - log pi_ref)
of a completion (eq. 5); beta changes no ranking and is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rmtrain.data.render import Renderer
from rmtrain.data.responses import mark_responses
from rmtrain.data.tokenize import Tokenization, TokenizedGroup
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.data.types import Message
from rmtrain.errors import InputError
from rmtrain.model.devices import free_memory, process_state
from rmtrain.model.language_model import LanguageModelFiles, Reduction, find_language_model
from rmtrain.model.published.prompts import make_renderer
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.weights import fingerprint_of, fingerprint_read
from rmtrain.recipe.data_schema import OverLength
from rmtrain.scoring.batches import Progress, Rewards, score_groups
from rmtrain.scoring.scorer import GroupScore, ScorerInfo, ScorerRequest, ScoringTask
from rmtrain.scoring.tokens import tokenize_task

OVER_LENGTH: OverLength = "truncate_prompt"
_PROBES = (
    "What is 1234 + 567890?  It's \"quoted\", isn't it?\n\n\tdef f(x): return x[0] != {'k': 1}\n",
    "Zürich, naïve café — 東京で会いましょう 🙂 <|im_start|>user [INST] </s> <|eot_id|> <|endoftext|>",
)


@dataclass(frozen=True)
class PolicyScorer:
    """A policy, with or without its reference. One model is in memory at a time, unless both fit."""

    info: ScorerInfo
    renderer: Renderer  # turns conversations into tokens, for both models
    models: tuple[LanguageModelFiles, ...]  # the policy, and the reference if there is one
    reduction: Reduction  # how the tokens' log-probabilities are combined; with a reference, their sum
    dtypes: tuple[str, ...]  # one for each model
    _loaded: dict[int, RewardModel] = field(default_factory=dict, repr=False)  # kept between calls

    @classmethod
    def open(cls, request: ScorerRequest) -> "PolicyScorer | None":
        """Check a policy and its reference; their weights are loaded later.

        Raises:
            CheckpointError: one of them is no language model, or can't be fetched.
            InputError: they turn the same text into different tokens, or have fewer positions than `--max-length`.
        """
        options = request.options
        if not options.is_policy:
            return None
        names = [name for name in (request.where, options.reference) if name is not None]
        models = tuple(map(find_language_model, names))
        renderer = make_renderer(str(models[0].tokenizer), options.prompt)
        if options.reference is not None:
            _require_same_tokens(renderer, models)
        stated = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
        positions = min((int(n) for n in stated if n), default=None)
        if options.max_length and positions and options.max_length > positions:
            raise InputError(
                f"--max-length {options.max_length}: {' or '.join(names)} has {positions} positions", "ask for no more"
            )
        reduction = options.reference_free or "sum"
        dtypes = tuple(options.dtype or model.dtype for model in models)
        weights, rendering = fingerprint_of(*(model.folder for model in models)), renderer.contract()
        length = options.max_length or min(4096, positions or 4096)
        prompt = {"prompt": options.prompt} if options.prompt is not None else {}
        info = ScorerInfo(
            request.where,
            fingerprint=fingerprint_read(weights, reduction, length, dtypes, rendering),
            weights=weights,
            dtype=", ".join(dict.fromkeys(dtypes)),
            max_length=length,
            rendering=rendering,
            renderer=renderer,
            details={"policy": {"reference": options.reference, "log_probabilities": reduction, **prompt}},
        )
        return cls(info, renderer, models, reduction, dtypes)

    def score(self, task: ScoringTask) -> list[GroupScore | None]:
        """Implicit rewards; see `Scorer`."""
        how = Tokenization(self.renderer, self.info.max_length, OVER_LENGTH)
        tokenized = tokenize_task(replace(task, counts=False), how)
        marked = mark_responses(tokenized.groups, tokenized.tokens, how)
        partial = task.partial(tokenized.fingerprint, self.info.fingerprint)
        rewards = self.rewards(marked, task.tokens_per_batch, partial, task.progress, task.display.note, task.alone)
        return replace(tokenized, counts=[group.response_lengths for group in marked]).scores(rewards, task)

    def _load(self, number: int, notify: Callable[[str], None]) -> RewardModel:
        """One of the models, from memory or from its files."""
        if number in self._loaded:
            return self._loaded[number]
        model = self.models[number].load(self.reduction, self.dtypes[number], process_state().device)
        for note in model.notes:
            notify(note)
        return model

    def rewards(
        self,
        groups: Sequence[TokenizedGroup],
        tokens_per_batch: int,
        partial: Path | None,
        progress: Progress = lambda done, total: None,
        notify: Callable[[str], None] = lambda line: None,
        alone: bool = False,
    ) -> list[Rewards]:
        """log pi - log pi_ref of every completion, or log pi without a reference; as `score_groups`, for groups with
        `starts`.

        Each model keeps its finished batches in its own file, whose name starts with `partial`.
        """
        log_probs: list[list[Rewards]] = []
        for number in range(len(self.models)):
            model = self._load(number, notify)
            own = partial.with_name(f"{partial.name}.{number}") if partial is not None else None
            rewards = score_groups(model, groups, self.renderer.pad_id, tokens_per_batch, own, progress, notify, alone)
            log_probs.append(rewards)
            if alone and _has_room(model):  # further groups may follow
                self._loaded[number] = model
            del model  # before the next is loaded
        differences = (
            np.subtract(*both) if len(both) == 2 else np.array(both[0]) for both in zip(*log_probs, strict=True)
        )
        return [tuple(values.astype(np.float32).tolist()) for values in differences]


def _has_room(model: RewardModel) -> bool:
    """Whether a second model and a forward pass fit into memory beside this model."""
    parameters = model.module.parameters()
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return bool(free_memory(model.device) > 2 * size)


def _require_same_tokens(renderer: Renderer, models: Sequence[LanguageModelFiles]) -> None:
    """Refuse a policy and a reference that tokenise sample texts differently."""
    policy, reference = models
    other = load_tokenizer(str(reference.tokenizer), chat_template="raw")
    chats = [(Message("user", text), Message("assistant", text)) for text in _PROBES]
    for text in [*_PROBES, *map(renderer.render, chats)]:
        if renderer.tokenizer(text)["input_ids"] != other(text)["input_ids"]:
            raise InputError(
                f"{policy.name} and its reference {reference.name} turn the same text into different tokens",
                "the reference must be the model from which the policy was trained",
            )
