"""The language head of a reward model's base, frozen: log-probabilities of tokens for the text loss."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rmtrain.errors import InputError
from rmtrain.model.config_check import model_without_weights
from rmtrain.model.weights import fetch, read_tensors

LOGITS_AT_ONCE = 2**26  # numbers in memory: 256 MB of float32
_OLDER_NAMES = ("embed_out",)  # names of the head in files that transformers has renamed: GPT-NeoX's


@dataclass
class LanguageHead:
    """The layer that turns last hidden states into logits over the vocabulary.

    It is no module: nothing of it is trained, sharded, or saved with the model.
    """

    weight: Float[Tensor, "V H"]  # in the dtype in which the logits are computed
    bias: Float[Tensor, " V"] | None = None  # None for most models
    scale: float = 1.0  # the logits are multiplied by it; not 1 for Cohere and Granite
    cap: float | None = None  # c in Gemma 2's c tanh(logits / c); None is no cap

    @classmethod
    def of(cls, model: Any, weight: Float[Tensor, "V H"], bias: Float[Tensor, " V"] | None) -> "LanguageHead":
        """The head of a language model of transformers, with these weights."""
        text = model.config.get_text_config()
        # the attribute is Cohere's; MPT's config has an entry of this name without effect
        scale = (getattr(model, "logit_scale", None) or 1) / (getattr(text, "logits_scaling", None) or 1)  # Granite's
        return cls(weight, bias, scale, getattr(text, "final_logit_softcapping", None))

    def logits(self, states: Float[Tensor, "n H"]) -> Float32[Tensor, "n V"]:
        """Logits over the vocabulary; the product is computed in the weights' dtype."""
        with torch.autocast(states.device.type, enabled=False):
            logits = linear(states.to(self.weight.dtype), self.weight, self.bias).float() * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def agrees(self, states: Float[Tensor, "n H"], theirs: Float32[Tensor, "n V"]) -> bool:
        """Whether this head gives the model's own logits of the states, within 2 %, the rounding of half precision."""
        return torch.allclose(self.logits(states), theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))

    def log_probs(self, states: Float[Tensor, "R H"], targets: Int[Tensor, " R"]) -> Float32[Tensor, " R"]:
        """Log-probabilities of the tokens that follow these states; at no time are all logits in memory."""
        self.weight = self.weight.to(states.device)
        self.bias = None if self.bias is None else self.bias.to(states.device)
        values: Tensor = _LogProbs.apply(states, targets, self)  # type: ignore[no-untyped-call]
        return values

    def means(
        self,
        states: Float[Tensor, "tokens H"],
        targets: Int[Tensor, " R"],
        predictors: Int[Tensor, " R"],
        owners: Int[Tensor, " R"],
        count: int,
    ) -> Float32[Tensor, " N"]:
        """The mean log-probability of each of `count` completions' `Targets`; 0 for one without any."""
        values = self.log_probs(states.index_select(0, predictors), targets).double()
        sums = values.new_zeros(count).index_add(0, owners, values)
        tokens = values.new_zeros(count).index_add(0, owners, torch.ones_like(values))
        return (sums / tokens.clamp_min(1)).float()


class _LogProbs(torch.autograd.Function):
    """Log-probabilities in chunks of rows. The head is frozen, so the forward pass can compute the gradient as well."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: LanguageHead) -> Tensor:
        rows = max(1, LOGITS_AT_ONCE // len(head.weight))
        values = states.new_empty(len(targets), dtype=torch.float32)
        gradients = torch.empty_like(states) if states.requires_grad else None
        for start in range(0, len(targets), rows):
            part, ids = slice(start, start + rows), targets[start : start + rows, None]
            logits = head.logits(states[part])
            total = logits.logsumexp(1)
            values[part] = logits.gather(1, ids).squeeze(1) - total
            if gradients is not None:
                slopes = -torch.exp(logits - total[:, None])  # d value / d logits: 1 at the target, less p
                slopes.scatter_add_(1, ids, torch.ones_like(slopes[:, :1]))
                if head.cap is not None:
                    slopes *= 1 - (logits / head.cap) ** 2
                gradients[part] = ((slopes * head.scale).to(head.weight.dtype) @ head.weight).to(states.dtype)
        if gradients is not None:
            ctx.save_for_backward(gradients)
        return values

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (above[:, None] * gradients.float()).to(gradients.dtype), None, None


def causal_without_weights(config: PretrainedConfig) -> Any:
    """The language model of a reward model's config, on the meta device.

    Raises:
        InputError: transformers has none.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"loss.text_loss: transformers has no language model of the architecture {config.model_type!r}",
            "set loss.text_loss to 0",
        )
    return model_without_weights(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)


def head_shape(config: PretrainedConfig) -> tuple[int, int]:
    """Rows and columns of the language head's weight; errors as of `causal_without_weights`."""
    rows, columns = causal_without_weights(config).get_output_embeddings().weight.shape
    return rows, columns


def load_language_head(
    backbone: Any, name: str, revision: str | None, dtype: torch.dtype, on_meta: bool
) -> LanguageHead:
    """The language head of a reward model's base.

    Args:
        backbone: the reward model, not yet wrapped; a copy of its embedding is the head where the two are tied.
        on_meta: look whether the files hold a head, and check nothing else.

    Raises:
        InputError: the base has no language head, or one that can't be used.
    """
    causal = causal_without_weights(backbone.config)
    layer = causal.get_output_embeddings()
    (place,) = [path for path, module in causal.named_modules() if module is layer]
    if getattr(backbone.config, "tie_word_embeddings", False):
        stored = {"weight": backbone.get_input_embeddings().weight.detach()}
    else:
        stored = _tensors_of(fetch(name, revision), (place, *_OLDER_NAMES))
    text = backbone.config.get_text_config()
    if "weight" not in stored or len(stored["weight"]) < text.vocab_size:
        has = f"one of {len(stored['weight']):,} tokens for {text.vocab_size:,}" if stored else f"no {place}.weight"
        raise InputError(
            f"loss.text_loss: the text loss needs the base's language head, and {name} has {has}",
            "start from the language model itself, or set loss.text_loss to 0",
        )
    bias = stored["bias"].to(dtype, copy=True) if "bias" in stored else None
    head = LanguageHead.of(causal, stored["weight"].to(dtype, copy=True), bias)
    if not on_meta:
        _check_logits(head, causal, name)
    return head


def _tensors_of(folder: Path, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors, weight and perhaps bias, of the layer in a folder's files that has one of these names."""

    def wanted(key: str) -> bool:
        return f".{key}".rpartition(".")[0].endswith(tuple(f".{layer}" for layer in layers))

    return {key.rpartition(".")[2]: tensor for _, key, tensor in read_tensors(folder, wanted)}


class _Given(nn.Module):
    """Stands in for a backbone: gives the same states whatever the tokens."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.states)


@torch.no_grad()
def _check_logits(head: LanguageHead, causal: Any, name: str) -> None:
    """Compare logits with those that the language model itself makes of some states: some scale or cap theirs."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 4, head.weight.shape[1], generator=generator).to(head.weight)
    layer = nn.Linear(1, 1, bias=head.bias is not None, device="meta")
    layer.weight = nn.Parameter(head.weight)
    if head.bias is not None:
        layer.bias = nn.Parameter(head.bias)
    setattr(causal, causal.base_model_prefix, _Given(states))
    causal.set_output_embeddings(layer)
    try:
        theirs = causal(input_ids=torch.zeros(1, 4, dtype=torch.long, device=states.device)).logits[0].float()
        same = head.agrees(states[0], theirs)
    except Exception:  # each architecture could need something else of its backbone
        same = False
    if not same:
        raise InputError(
            f"loss.text_loss: {name}: {type(causal).__name__} computes its logits in a way that rmtrain does not know",
            "set loss.text_loss to 0",
        )
