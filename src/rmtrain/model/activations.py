"""The memory of a micro-batch, by a trial on fake tensors, which have shapes and no data: no weights are loaded.

The trial runs a model of two layers. What its second layer adds, every further layer adds too.
"""

import contextlib
import copy
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PretrainedConfig

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.model import attention
from rmtrain.model.batch import Batch, GroupSize, Packing, pack, target_places
from rmtrain.model.compiling import trace_layers
from rmtrain.model.forward import unwrapped
from rmtrain.model.language_head import LanguageHead, head_shape
from rmtrain.model.memory import decoder_layers, meta_model
from rmtrain.model.recompute import checkpointing_options
from rmtrain.recipe.schema import LoraSection, ModelSection

_LAYERS = 2


class Activations(NamedTuple):
    """Bytes that one micro-batch takes on its device, beside parameters and gradients."""

    kept: int  # those held from the forward pass to the backward pass
    peak: int  # the most at any time
    largest: int  # the largest tensor alone

    def without(self, bytes_: int) -> "Activations":
        """What it takes with so many bytes less from the forward pass to the backward pass."""
        return self._replace(kept=self.kept - bytes_, peak=self.peak - bytes_)

    def times(self, factor: float) -> "Activations":
        """What a micro-batch with `factor` times as many tokens takes."""
        return Activations(*(round(factor * value) for value in self))


def trial(
    config: PretrainedConfig,
    model: ModelSection,
    lora: LoraSection | None,
    groups: Sequence[GroupSize],
    packing: Packing,
    checkpointing: str | None = "none",
    with_text: bool = False,
) -> Activations | None:
    """What a micro-batch takes; None for a model that needs real numbers to run, such as one that routes tokens.

    Args:
        lora: the recipe's section; None trains everything.
        checkpointing: the recipe's gradient checkpointing; None runs the forward pass alone, without gradients.
        with_text: the text loss reads the log-probabilities of completions, all but the shortest of each group.
    """
    small, layers = _shortened(config), int(config.get_text_config().num_hidden_layers)
    tokens = _tokens(groups)
    batch = pack(tokens, packing, pad_id=0)
    if with_text:
        batch = {**batch, **target_places([*map(_all_but_shortest, tokens)], batch, packing)}
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):  # a GPU's kernel may know no fakes
        module, mode = meta_model(small, lora, model), FakeTensorMode()
        with contextlib.suppress(Exception), mode, torch.set_grad_enabled(checkpointing is not None):
            _make_fake(module, getattr(torch, model.dtype), device)
            if with_text:
                weight = torch.empty(head_shape(config), dtype=getattr(torch, model.dtype), device=device)
                unwrapped(module).language_head = LanguageHead(weight)
            if packing != "none":
                module.set_attn_implementation(attention.NAME)
            if checkpointing not in (None, "none"):
                options = checkpointing_options(checkpointing, lora.rank if lora else 0)
                module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
                module.enable_input_require_grads()
            used, of_layer = _run(module.train(), _faked(batch, mode, device))
            others = (layers - _LAYERS) * of_layer
            return Activations(used.kept + others, used.peak + others, used.largest)
    return None


def saved_by_compiling(
    config: PretrainedConfig,
    model: ModelSection,
    lora: LoraSection | None,
    groups: Sequence[GroupSize],
    packing: Packing,
) -> int:
    """Bytes of a micro-batch that compiled layers compute again in the backward pass, where others keep them.

    torch chooses them when it cuts a layer into a forward and a backward graph. 0 where a layer can't be traced.
    """
    batch, kept = pack(_tokens(groups), packing, pad_id=0), list[int]()
    try:
        for prepare in (lambda module: None, trace_layers):
            module, mode = meta_model(_shortened(config), lora, model), FakeTensorMode()
            with mode:
                _make_fake(module, getattr(torch, model.dtype), "cpu")
                if packing != "none":
                    module.set_attn_implementation(attention.NAME)
                prepare(module)
                kept.append(_kept_of_a_layer(module.train(), _faked(batch, mode, "cpu")))
    except Exception:  # of any kind: an architecture that needs real numbers, or a tracer that fails
        return 0
    finally:  # a run that is compiled later begins, and counts its graphs, anew
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    plain, compiled = kept
    return int(config.get_text_config().num_hidden_layers) * max(0, plain - compiled)


def _shortened(config: PretrainedConfig) -> PretrainedConfig:
    """The config of a model with two layers."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers = _LAYERS
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(types := getattr(text, name, None), list):
            setattr(text, name, types[:_LAYERS])
    return small


def _tokens(groups: Sequence[GroupSize]) -> list[TokenizedGroup]:
    return [TokenizedGroup("", "", _ids(g.prefix), tuple(map(_ids, g.suffixes)), (), False) for g in groups]


def _all_but_shortest(group: TokenizedGroup) -> TokenizedGroup:
    ends = [len(group.prefix) + len(suffix) for suffix in group.suffixes]
    shortest = ends.index(min(ends)) if len(ends) > 1 else None
    return group._replace(
        starts=tuple(end if i == shortest else max(1, len(group.prefix)) for i, end in enumerate(ends))
    )


def _ids(count: int) -> Any:
    return np.zeros(count, dtype=np.int32)


def _make_fake(module: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Replace meta tensors by fake ones of the device and the types that a run has."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            trained = parameter.requires_grad
            fake = torch.empty(parameter.shape, dtype=torch.float32 if trained else dtype, device=device)
            setattr(layer, name, nn.Parameter(fake, requires_grad=trained))
            if trained:  # gradients are counted with the parameters
                getattr(layer, name).register_post_accumulate_grad_hook(_drop_gradient)
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(layer, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _faked(batch: Batch, mode: FakeTensorMode, device: str) -> Batch:
    """The batch on a device. A model would look into the attention mask; its causal mask takes as much."""
    tensors = {name: value for name, value in batch.items() if name != "attention_mask"}
    return tree_map_only(Tensor, lambda tensor: mode.from_tensor(tensor).to(device), tensors)  # type: ignore[no-any-return]


def _run(module: Any, batch: Batch) -> tuple[Activations, int]:
    """The passes of a model over a micro-batch, and what a layer keeps of it."""
    after_layer: list[int] = []
    with _Live(_held(module)) as live:
        for layer in decoder_layers(module, _LAYERS):
            layer.register_forward_hook(lambda *_: after_layer.append(live.now))
        output = module(**batch)
        kept = live.now
        if torch.is_grad_enabled():
            sum(values.sum() for values in (output.logits, output.log_probs) if values is not None).backward()
    first, second = after_layer[:_LAYERS]
    return Activations(kept, live.peak, live.largest), second - first


def _kept_of_a_layer(module: Any, batch: Batch) -> int:
    """Bytes that the second layer keeps for the gradient."""
    kept = {parameter.untyped_storage(): 0 for parameter in module.parameters()}
    after_layer: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage, storage.nbytes())
        return tensor

    for layer in decoder_layers(module, _LAYERS):
        layer.register_forward_hook(lambda *_: after_layer.append(sum(kept.values())))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(**batch)
    first, second = after_layer
    return second - first


def _held(module: Any) -> list[Tensor]:
    """The tensors that the model holds whatever the batch."""
    head = unwrapped(module).language_head
    return [*module.parameters(), *([head.weight] if head is not None else [])]


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive, each storage once, without parameters."""

    def __init__(self, parameters: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = weakref.WeakSet(parameter.untyped_storage() for parameter in parameters)
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages that it makes."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                size = storage.nbytes()
                self._seen.add(storage)
                weakref.finalize(storage, self._free, size)
                self.now, self.largest = self.now + size, max(self.largest, size)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size
