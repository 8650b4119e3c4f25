"""Forward passes over packed batches: the backbone, and rewards read by position; and checks of loaded weights."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from rmtrain.errors import CheckpointError
from rmtrain.model import attention
from rmtrain.model.batch import Layout
from rmtrain.model.language_head import LanguageHead

HEAD = "score"


def unwrapped(module: Any) -> Any:
    """A model itself, or the one inside a PEFT model."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def with_mixin(mixin: type, model_class: type) -> Any:
    """A class of transformers with a mixin before it, under its own name, by which checkpoints name it."""
    return type(model_class.__name__, (mixin, model_class), {"__module__": model_class.__module__})


class PackedForward:
    """Mixin that runs a model's backbone on a batch made by `rmtrain.model.batch.pack`."""

    compute_dtype: torch.dtype = torch.float32  # the backbone's autocast, entered here so that no caller can differ

    def packed_states(
        self,
        input_ids: Int[Tensor, "rows columns"],
        attention_mask: Int[Tensor, "rows columns"] | None,
        position_ids: Int[Tensor, "rows columns"] | None,
        layout: Layout | None,
    ) -> Float[Tensor, "rows*columns H"]:
        """Last hidden states of all tokens, row by row; a packed batch has one row.

        Raises:
            InputError: a packed batch that not every layer attended to as its config says.
        """
        inputs: dict[str, Any] = {"attention_mask": attention_mask}
        if layout is not None:
            one_pass = attention.Pass(layout)
            inputs = {"attention_mask": None, "layout": one_pass}
        backbone = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        with torch.autocast(
            input_ids.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32
        ):
            hidden = backbone(
                input_ids=input_ids, position_ids=position_ids, use_cache=False, **inputs
            ).last_hidden_state
        if layout is not None:
            attention.check_calls(one_pass.calls, self.config)  # type: ignore[attr-defined]
        return cast(Tensor, hidden.flatten(0, 1))


@dataclass
class RewardOutput(SequenceClassifierOutput):  # type: ignore[misc]
    """`logits` [N]: float32 rewards; `states` [N, H]: the last hidden states from which they are read.

    `log_probs` [N]: the mean log-probability of a completion's tokens, where the batch names such tokens.
    """

    loss: Any = None  # accelerate rebuilds an output of float16 from a dict of its fields, which comes first
    logits: Tensor | None = None  # of any device: transformers names the type of a CPU's tensors
    states: Tensor | None = None
    log_probs: Tensor | None = None


class RewardForward(PackedForward):
    """Mixin that reads rewards by position and applies the head in float32 to those positions alone.

    transformers' own forward runs the head on every token and finds the end by pad id.
    """

    _keep_in_fp32_modules_strict = (HEAD,)
    language_head: LanguageHead | None = None  # the base's, where the text loss needs it

    def forward(
        self,
        input_ids: Int[Tensor, "rows columns"] | None = None,
        attention_mask: Int[Tensor, "rows columns"] | None = None,
        position_ids: Int[Tensor, "rows columns"] | None = None,
        ends: Int[Tensor, " N"] | None = None,
        layout: Layout | None = None,
        targets: Int[Tensor, " R"] | None = None,
        predictors: Int[Tensor, " R"] | None = None,
        owners: Int[Tensor, " R"] | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Rewards of a `Batch`; without `ends` transformers' own forward answers.

        Returns:
            A `RewardOutput`, with log-probabilities where the batch names targets.

        Raises:
            InputError: a packed batch that not every layer attended to as its config says.
        """
        if ends is None:
            return super().forward(  # type: ignore[misc]
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )
        states = self.packed_states(cast(Tensor, input_ids), attention_mask, position_ids, layout)
        pooled = states.index_select(0, ends)
        head = getattr(self, HEAD)
        with torch.autocast(pooled.device.type, enabled=False):  # it would run even a float32 head in half precision
            rewards = head(pooled.to(next(head.parameters()).dtype)).float().squeeze(-1)
        log_probs = None
        if targets is not None:
            reader = cast(LanguageHead, self.language_head)
            log_probs = reader.means(states, targets, cast(Tensor, predictors), cast(Tensor, owners), len(ends))
        return RewardOutput(logits=rewards, states=pooled, log_probs=log_probs)


def check_head(module: torch.nn.Module) -> None:
    """Check the score head: it is trained, float32, finite and not all zero.

    Raises:
        CheckpointError: says which of these fails.
    """
    heads = [(n, p) for n, p in module.named_parameters() if f"{HEAD}." in n and p.requires_grad]
    if not heads:
        raise CheckpointError("the score head is frozen, so no ranking can be learnt")
    for name, parameter in heads:
        if parameter.numel() == 0:  # a shard elsewhere
            continue
        if parameter.dtype != torch.float32:
            raise CheckpointError(f"the score head {name} is {parameter.dtype}, not float32")
        if not torch.isfinite(parameter).all() or not parameter.any():
            raise CheckpointError(f"the score head {name} is zero or not finite")


def check_finite(module: torch.nn.Module, where: str) -> None:
    """Refuse weights that are not finite, and name them."""
    for name, parameter in module.named_parameters():
        # summing finds such a weight in a tenth of the time, but a sum can also overflow without one
        if (
            parameter.is_floating_point()
            and not parameter.detach().sum(dtype=torch.float32).isfinite()
            and not parameter.isfinite().all()
        ):
            raise CheckpointError(f"{where}: {name} is not finite", "the weights are damaged; use another checkpoint")
