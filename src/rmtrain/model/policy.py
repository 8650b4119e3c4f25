"""Language models as judges: log-probabilities of completions, and so the implicit reward of DPO (arXiv 2305.18290).

Up to a term of the prompt alone, a policy trained by DPO holds the reward beta * (log pi - log pi_ref) of a completion
(eq. 5); beta changes no ranking and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.data.tokenizer import load_tokenizer
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model import attention
from rmtrain.model.batch import Batch
from rmtrain.model.checkpoint import attach_adapter, check_finite, dtype_in_config
from rmtrain.model.forward import PackedForward
from rmtrain.model.published.prompts import make_renderer
from rmtrain.model.reward_model import BackboneOptions, RewardModel, choose_packing, load_config, load_module
from rmtrain.model.sidecar import Scoring
from rmtrain.model.weights import ADAPTER, fingerprint_of, fingerprint_read, local_folder, read_json

Reading = Literal["sum", "avg", "norm"]

_LOGITS_AT_ONCE = 2**26  # 256 MB of float32
_PROBES = (
    "What is 1234 + 567890?  It's \"quoted\", isn't it?\n\n\tdef f(x): return x[0] != {'k': 1}\n",
    "Zürich, naïve café — 東京で会いましょう 🙂 <|im_start|>user [INST] </s> <|eot_id|> <|endoftext|>",
)


class PolicyForward(PackedForward):
    """Mixin that reads completions' log-probabilities, with float32 logits of their own positions alone."""

    reading: Reading = "sum"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        targets: Tensor | None = None,
        predictors: Tensor | None = None,
        owners: Tensor | None = None,
        completions: int = 0,
        layout: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Log-probabilities of a batch made by `PolicyModel.batch`.

        Args:
            input_ids: [1, T] packed, or [N, L] padded.
            attention_mask: [N, L] padded only.
            position_ids: as `input_ids`.
            targets: [R] ids of all response tokens; without them transformers' own forward answers.
            predictors: [R] flat positions of the tokens before these.
            owners: [R] completions that they belong to.
            completions: N.
            layout: of attention; None for padded rows.
            kwargs: passed on where `targets` is None.

        Returns:
            An output whose `logits` are [N] float64: by `reading` the sum of a completion's token log-probabilities,
            their mean, or their negative L2 norm.
        """
        if targets is None:
            return super().forward(  # type: ignore[misc]
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
        states = self.packed_states(cast(Tensor, input_ids), attention_mask, cast(Tensor, position_ids), layout)
        rows = max(1, _LOGITS_AT_ONCE // int(self.get_output_embeddings().weight.shape[0]))  # type: ignore[attr-defined]
        parts = []
        for places, ids in zip(torch.split(cast(Tensor, predictors), rows), torch.split(targets, rows), strict=True):
            logits = self.token_logits(states.index_select(0, places))
            parts.append(logits.gather(1, ids[:, None]).squeeze(1) - logits.logsumexp(1))
        values = torch.cat(parts).double()
        zeros = values.new_zeros(completions)
        if self.reading == "norm":
            return CausalLMOutput(logits=-zeros.index_add(0, cast(Tensor, owners), values**2).sqrt())
        sums = zeros.index_add(0, cast(Tensor, owners), values)
        if self.reading == "avg":
            sums = sums / zeros.index_add(0, cast(Tensor, owners), torch.ones_like(values))
        return CausalLMOutput(logits=sums)

    def token_logits(self, states: Tensor) -> Tensor:
        """[n, H] hidden states to [n, V] logits, in float32 whatever the model's dtype."""
        head = self.get_output_embeddings()  # type: ignore[attr-defined]
        bias = getattr(head, "bias", None)
        with torch.autocast(states.device.type, enabled=False):
            logits = linear(states.float(), head.weight.float(), None if bias is None else bias.float())
        config = self.config.get_text_config()  # type: ignore[attr-defined]
        logits = logits * (getattr(self, "logit_scale", None) or 1)  # Cohere's; MPT's config has one without effect
        logits = logits / (getattr(config, "logits_scaling", None) or 1)  # Granite's
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


@dataclass(frozen=True)
class PolicyModel(RewardModel):
    """A language model ready to run; its forward gives log-probabilities where a reward model's gives rewards."""

    def batch(self, groups: Sequence[TokenizedGroup], pad_id: int) -> Batch:
        """Groups with marked responses, laid out as PolicyForward takes them.

        The first token of a response is told by the last of its prompt; response tokens that completions share lie in
        the group's prefix, once, and are read for each of them.
        """
        batch = super().batch(groups, pad_id)
        ends = iter(batch.pop("ends").tolist())
        places: list[np.ndarray] = []
        predictors: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        for group in groups:
            prompt, first = len(group.prefix), None
            for suffix, start in zip(group.suffixes, group.starts, strict=True):
                own = next(ends) + 1 - len(suffix)
                if first is None or self.packing != "shared_prompt":
                    first = own - prompt
                sequence = np.concatenate([np.arange(first, first + prompt), np.arange(own, own + len(suffix))])
                places.append(sequence[start:])
                predictors.append(sequence[start - 1 : -1])
                owners.append(np.full(len(sequence) - start, len(owners)))
        return {
            **batch,
            "targets": batch["input_ids"].flatten()[torch.from_numpy(np.concatenate(places))],
            "predictors": torch.from_numpy(np.concatenate(predictors)),
            "owners": torch.from_numpy(np.concatenate(owners)),
            "completions": len(owners),
        }


@dataclass(frozen=True)
class Policy:
    """A policy, with its reference or alone, scored in a checkpoint's stead; one model is in memory at a time.

    Attributes:
        where: folder or hub id of the policy.
        reference: of the reference model; None reads the policy alone.
        reading: `sum` against a reference, else what makes log-probabilities of tokens one number.
        renderer: how conversations become tokens, for both models.
        max_length: tokens of prompt and one completion.
        folders: of the policy, and of the reference if there is one.
        device: where they run.
        fingerprint: digest of all their weights' files and of how they are read.
        weights: digest of their weights' files alone.
        dtypes: of each.
        prompt: what `--prompt` named; None is the policy's own chat template.
        sidecar: empty; other people's checkpoints have none.
        notes: empty; they are known when the models are loaded.
        scoring: the default.
    """

    where: str
    reference: str | None
    reading: Reading
    renderer: Renderer
    max_length: int
    folders: tuple[Path, ...]
    device: Any
    fingerprint: str
    weights: str
    dtypes: tuple[str, ...]
    prompt: str | None = None
    sidecar: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scoring: Scoring = field(default_factory=Scoring)

    def load(self, folder: Path) -> PolicyModel:
        """One of its models, ready to run."""
        dtype = self.dtypes[self.folders.index(folder)]
        return _load_language_model(folder, self.reading, dtype, self.device)


def load_policy(
    where: str,
    reference: str | None,
    reading: Reading = "sum",
    device: Any = None,
    *,
    prompt: str | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
) -> Policy:
    """Check a policy and its reference for scoring; their weights are loaded later.

    Args:
        where: folder or hub id, with `@revision`, of a language model or of its adapter.
        reference: of the model that it was trained from; None for reference-free scores.
        reading: what makes token log-probabilities one number; against a reference, the sum.
        device: where to score.
        prompt: see `make_renderer`; None is the policy's own chat template.
        dtype: to run both in; None is that of each one's config.
        max_length: tokens of prompt and one completion; None is 4,096, or what both have positions for.

    Raises:
        CheckpointError: one of them is no language model, or can't be fetched.
        InputError: they turn the same text into different tokens, or have fewer positions than `max_length`.
    """
    names = [where] if reference is None else [where, reference]
    folders = [local_folder(name) for name in names]
    found = [_language_config(folder, name) for folder, name in zip(folders, names, strict=True)]
    renderer = make_renderer(str(folders[0]), prompt)
    if reference is not None:
        other = load_tokenizer(str(folders[1]), chat_template="raw")
        chats = [[{"role": "user", "content": text}] for text in _PROBES]
        probes = [*_PROBES, *renderer.tokenizer.apply_chat_template(chats, tokenize=False)]
        for text in probes:
            if renderer.tokenizer(text)["input_ids"] != other(text)["input_ids"]:
                raise InputError(
                    f"{where} and its reference {reference} turn the same text into different tokens",
                    "a policy is compared, token by token, with the model that it was trained from",
                )
    positions = [getattr(config.get_text_config(), "max_position_embeddings", None) for config, _, _ in found]
    room = min((int(n) for n in positions if n), default=None)
    if max_length and room and max_length > room:
        raise InputError(f"--max-length {max_length}: {' or '.join(names)} has {room} positions", "ask for no more")
    adapters = zip(folders, (adapter for _, _, adapter in found), strict=True)
    dtypes = tuple(dtype or dtype_in_config(folder, adapter) for folder, adapter in adapters)
    weights = fingerprint_of(*folders)
    return Policy(
        where,
        reference,
        reading,
        renderer,
        max_length or min(4096, room or 4096),
        tuple(folders),
        device,
        fingerprint_read(weights, reading, prompt, dtypes),
        weights,
        dtypes,
        prompt,
    )


def _language_config(folder: Path, name: str) -> tuple[PretrainedConfig, str, dict[str, Any] | None]:
    """Config and place of the weights of a language model, and of its adapter what PEFT wrote."""
    adapter = read_json(folder / ADAPTER) if (folder / ADAPTER).exists() else None
    base, revision = str(folder), None
    if adapter is not None:
        base, revision = adapter.get("base_model_name_or_path") or "", adapter.get("revision")
        if not base:
            raise CheckpointError(f"{folder / ADAPTER} names no base model")
    config = load_config(base, revision)
    kinds = [kind for kind in config.architectures or [] if kind.endswith("ForSequenceClassification")]
    if kinds or (adapter or {}).get("task_type") == "SEQ_CLS":
        raise CheckpointError(
            f"{name}: {kinds[0] if kinds else 'a sequence-classification adapter'} is a reward model, not a policy",
            "leave out --reference and --reference-free",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{name}: transformers has no language model of the architecture {config.model_type!r}",
            "a policy and its reference must be causal language models",
        )
    return config, base, adapter


def _load_language_model(folder: Path, reading: Reading, dtype: str, device: Any) -> PolicyModel:
    config, base, adapter = _language_config(folder, str(folder))
    options = BackboneOptions(dtype)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model_class = type(causal.__name__, (PolicyForward, causal), {"__module__": causal.__module__})
    packing, notes = choose_packing(model_class, config, options.packing)
    revision = adapter.get("revision") if adapter else None
    module, info = load_module(model_class, base, revision, config, options, packing)
    if lacking := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        raise CheckpointError(
            f"{base}: the weights lack {', '.join(lacking[:5])}, or have them in another shape",
            "the checkpoint is damaged, or no language model",
        )
    module.compute_dtype, module.reading = getattr(torch, options.dtype), reading
    if adapter is not None:
        module = attach_adapter(module, folder, base).get_base_model()
    module.eval()
    if device is not None:
        module.to(device)
    check_finite(module, str(folder))
    _check_logits(module, base)
    if packing != "none":
        module.set_attn_implementation(attention.NAME)
    return PolicyModel(module, packing, tuple(notes))


@torch.no_grad()
def _check_logits(module: Any, name: str) -> None:
    """Compare the logits read here with the model's own, on a few tokens: some scale or cap theirs."""
    ids = torch.arange(1, 9, device=module.device)[None] % module.config.get_text_config().vocab_size
    mine = module.token_logits(module.packed_states(ids, None, torch.arange(8, device=module.device)[None], None))
    with torch.autocast(ids.device.type, dtype=module.compute_dtype, enabled=module.compute_dtype != torch.float32):
        theirs = module(input_ids=ids).logits[0].float()
    if not torch.allclose(mine, theirs, rtol=0, atol=0.02 * float(theirs.abs().max())):  # 2 %: half precision
        raise CheckpointError(
            f"{name}: {type(module).__name__} makes its logits in a way that is not read here",
            "its log-probabilities can't be had",
        )
