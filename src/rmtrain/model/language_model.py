"""Language models and their LoRA adapters: log-probabilities of completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import ModelOutput

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import CheckpointError
from rmtrain.model import attention
from rmtrain.model.adapters import attach_adapter, make_room, read_config, tokenizer_folder
from rmtrain.model.batch import Layout, Packing, pack, target_places
from rmtrain.model.forward import PackedForward, check_finite, with_mixin
from rmtrain.model.language_head import LanguageHead
from rmtrain.model.reward_model import BackboneOptions, RewardModel, choose_packing, dtype_of, load_config, load_module
from rmtrain.model.weights import ADAPTER, local_folder, read_object, read_shapes

Reduction = Literal["sum", "avg", "norm"]


class LogProbForward(PackedForward):
    """Mixin that reads completions' log-probabilities, with float32 logits of their own positions alone."""

    reduction: Reduction = "sum"

    def forward(
        self,
        input_ids: Int[Tensor, "rows columns"] | None = None,
        attention_mask: Int[Tensor, "rows columns"] | None = None,
        position_ids: Int[Tensor, "rows columns"] | None = None,
        targets: Int[Tensor, " R"] | None = None,
        predictors: Int[Tensor, " R"] | None = None,
        owners: Int[Tensor, " R"] | None = None,
        completions: int = 0,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Log-probabilities of N completions, from a batch made by `target_batch`.

        Without `targets` transformers' own forward runs.

        Returns:
            An output whose `logits` are [N] float64: by `reduction` the sum of a completion's token log-probabilities,
            their mean, or their negative L2 norm.
        """
        if targets is None:
            return super().forward(  # type: ignore[misc]
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
        states = self.packed_states(cast(Tensor, input_ids), attention_mask, cast(Tensor, position_ids), layout)
        values = self.float_head().log_probs(states.index_select(0, cast(Tensor, predictors)), targets).double()
        zeros = values.new_zeros(completions)
        if self.reduction == "norm":
            return CausalLMOutput(logits=-zeros.index_add(0, cast(Tensor, owners), values**2).sqrt())
        sums = zeros.index_add(0, cast(Tensor, owners), values)
        if self.reduction == "avg":
            sums = sums / zeros.index_add(0, cast(Tensor, owners), torch.ones_like(values))
        return CausalLMOutput(logits=sums)

    def float_head(self) -> LanguageHead:
        """The model's own head, in float32 whatever the model's dtype."""
        layer = self.get_output_embeddings()  # type: ignore[attr-defined]
        bias = getattr(layer, "bias", None)
        return LanguageHead.of(self, layer.weight.float(), None if bias is None else bias.float())


def target_batch(groups: Sequence[TokenizedGroup], packing: Packing, pad_id: int) -> dict[str, object]:
    """Groups with marked responses, laid out as LogProbForward takes them."""
    batch = pack(groups, packing, pad_id)
    inputs = {**batch, **target_places(groups, batch, packing), "completions": len(batch["ends"])}
    del inputs["ends"]
    return inputs


@dataclass(frozen=True)
class LanguageModelFiles:
    """The files of a language model, or of a LoRA adapter on one; the weights are loaded later."""

    name: str  # folder or hub id, as named by the user
    folder: Path
    config: PretrainedConfig  # the config of the model, or of the adapter's base
    base: str  # folder or hub id of the weights
    adapter: dict[str, Any] | None  # the content of adapter_config.json; None for a whole model

    @property
    def dtype(self) -> str:
        """The dtype in the config."""
        return dtype_of(read_config(self.folder, self.adapter))

    @property
    def tokenizer(self) -> Path:
        """The folder of its tokenizer, for an adapter without one that of its base."""
        return tokenizer_folder(self.folder, self.adapter)

    def load(self, reduction: Reduction, dtype: str, device: Any) -> RewardModel:
        """The model ready to run; its forward gives log-probabilities where a reward model's gives rewards.

        Raises:
            CheckpointError: the weights are incomplete, or their logits are made in an unknown way.
        """
        options, revision = BackboneOptions(dtype), self.adapter.get("revision") if self.adapter else None
        model_class = with_mixin(LogProbForward, MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)])
        packing, notes = choose_packing(model_class, self.config, options.packing)
        module, info = load_module(model_class, self.base, revision, self.config, options, packing)
        if lacking := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
            raise CheckpointError(
                f"{self.base}: the weights lack {', '.join(lacking[:5])}, or have them in another shape",
                "the checkpoint is damaged, or no language model",
            )
        module.compute_dtype, module.reduction = getattr(torch, options.dtype), reduction
        if self.adapter is not None:
            make_room(module, read_shapes(self.folder), labels=1)  # tokens that were added for the policy
            module = attach_adapter(module, self.folder, self.base).get_base_model()
        module.eval()
        if device is not None:
            module.to(device)
        check_finite(module, str(self.folder))
        _check_logits(module, self.base)
        if packing != "none":
            module.set_attn_implementation(attention.NAME)
        return RewardModel(module, packing, tuple(notes), make_batch=target_batch)


def find_language_model(name: str) -> LanguageModelFiles:
    """Read the config of a folder, or of a hub id with `@revision`, of a language model or its adapter.

    Raises:
        CheckpointError: it is no language model, or can't be fetched.
    """
    folder = local_folder(name)
    adapter = read_object(folder / ADAPTER) if (folder / ADAPTER).exists() else None
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
            "a policy is a language model or its LoRA adapter; to score by rewards, leave out the options of a policy",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{name}: transformers has no language model of the architecture {config.model_type!r}",
            "a policy and its reference must be causal language models",
        )
    return LanguageModelFiles(name, folder, config, base, adapter)


@torch.no_grad()
def _check_logits(module: Any, name: str) -> None:
    """Compare the logits read here with the model's own, on a few tokens: some scale or cap theirs."""
    ids = torch.arange(1, 9, device=module.device)[None] % module.config.get_text_config().vocab_size
    states = module.packed_states(ids, None, torch.arange(8, device=module.device)[None], None)
    with torch.autocast(ids.device.type, dtype=module.compute_dtype, enabled=module.compute_dtype != torch.float32):
        theirs = module(input_ids=ids).logits[0].float()
    if not module.float_head().agrees(states, theirs):
        raise CheckpointError(
            f"{name}: {type(module).__name__} computes its logits in a way that rmtrain does not support",
            "its log-probabilities can't be computed here",
        )
