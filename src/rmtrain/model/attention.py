"""Attention over a packed row, registered with transformers' public AttentionInterface.

Only the attention function is registered, and no function that builds masks. So transformers builds no mask and does
not infer packing from the positions, which repeat after a shared prompt and would mislead it.
"""

import copy
import inspect
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import InputError, first_line
from rmtrain.model.batch import Layout, pack
from rmtrain.model.config_check import model_without_weights
from rmtrain.model.cpu_attention import causal_attention, is_faster

NAME = "rmtrain_shared_prompt"
# arguments that do not change attention; a layer that passes any other is refused
_NEUTRAL = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states"})


class Pass:
    """The state of one forward pass over a packed batch, which all its attention layers share.

    It is an object because torch.compile guards on the values in a dict, and would recompile for every batch.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.calls: list[bool] = []  # for each attention call so far, whether it had a sliding window
        self.masks: dict[Any, Tensor] = {}  # the segments' masks made so far, by shape


@torch.compiler.disable  # type: ignore[untyped-decorator]
def shared_prompt_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads T D"],
    key: Float[Tensor, "1 key_heads T D"],
    value: Float[Tensor, "1 key_heads T V"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Pass | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 T heads V"], None]:
    """Causal attention within the segments of a packed row.

    Args:
        query: the queries of T tokens, after rotation.
        key: their keys, not repeated for grouped queries.
        attention_mask: must be None.
        scaling: factor of the scores; None is 1/sqrt(D).
        dropout: must be 0, since all completions of a prompt share its attention.
        sliding_window: number of keys that a query sees, its own included; None is all.

    Returns:
        The output for each token, and None for the attention weights.

    Raises:
        InputError: the layer asks for something that packed attention does not support.
    """
    if layout is None:
        raise _unpackable("no layout of a packed batch reaches its attention")
    is_causal = kwargs.pop("is_causal", None)
    wishes = {
        "a mask of its own": attention_mask is not None,
        "dropout": bool(dropout),
        "attention to later tokens": not (getattr(module, "is_causal", True) if is_causal is None else is_causal),
        "soft-capped scores": kwargs.pop("softcap", None) is not None,
        **{name: value is not None and value is not False for name, value in kwargs.items() if name not in _NEUTRAL},
    }
    if any(wishes.values()):
        raise _unpackable(f"its attention has {', '.join(name for name, wished in wishes.items() if wished)}")
    layout.calls.append(sliding_window is not None)
    device = query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # a rotary embedding in float32 leaves queries and keys in float32, which the fast kernel does not take
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    if _has_varlen(query, value):
        output = _varlen(query, key, value, layout.layout, scaling, sliding_window)
    else:
        output = _segmentwise(query, key, value, layout, scaling, sliding_window)
    return output, None


AttentionInterface.register(NAME, shared_prompt_attention)


def _segmentwise(
    query: Tensor, key: Tensor, value: Tensor, layout: Pass, scaling: float | None, window: int | None
) -> Tensor:
    """One scaled-dot-product attention for each segment: on CPUs, and on GPUs where the fast kernel does not apply.

    A CPU computes 16 bits in float32, since torch has no fast kernel there that takes a mask in 16 bits. Long segments
    in bfloat16 are computed by `causal_attention` where that is faster.
    """
    if query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            rows, rounded = (query.float(), key.float(), value.float()), query.dtype is torch.bfloat16
            whole = _each_segment(*rows, layout, scaling, window, rounded)
        return whole.to(query.dtype)
    return _each_segment(query, key, value, layout, scaling, window)


def _each_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Pass,
    scaling: float | None,
    window: int | None,
    rounded: bool = False,  # whether the values are those of bfloat16
) -> Tensor:
    if query.is_meta and len(layout.calls) > 1:  # a trial run without data: checking the first layer is enough
        return query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
    grouped = query.shape[1] != key.shape[1]
    segments = layout.layout["segments"]
    lengths = [length for _, length, *_ in segments]
    # split, since the gradient of each slice would be as long as the whole row
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    places = {start: place for place, (start, *_) in enumerate(segments)}
    outputs = []
    for (_, length, prompt_start, prompt), q, k, v in zip(segments, queries, keys, values, strict=True):
        if prompt:
            first = places[prompt_start]  # of the segment that begins with the prompt
            k, v = (torch.cat([rows[first][:, :, :prompt], own], dim=2) for rows, own in ((keys, k), (values, v)))
        narrow = window is not None and window < k.shape[2]
        if rounded and not narrow and is_faster(length, k.shape[2]):
            outputs.append(causal_attention(q, k, v, scaling))
            continue
        mask = None
        if prompt or narrow:
            shape = (length, prompt + length, window)
            if shape not in layout.masks:  # made once, and shared by all layers
                layout.masks[shape] = _lower_right_mask(*shape, query)
            mask = layout.masks[shape]
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _lower_right_mask(queries: int, keys: int, window: int | None, like: Tensor) -> Float[Tensor, "{queries} {keys}"]:
    """0 where a query sees a key, else minus infinity: causal, with the last query aligned to the last key.

    It has the dtype of `like`: torch would convert a boolean mask to it, and keep a copy for every layer.
    """
    distance = torch.arange(keys - queries, keys, device=like.device)[:, None] - torch.arange(keys, device=like.device)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)


def _has_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether FlashAttention applies: 16 bits, head sizes up to 256 divisible by 8, an Ampere GPU or newer."""
    head = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and head == value.shape[-1] <= 256
        and head % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """torch's variable-length attention, whose causal mask aligns the last query to the last key."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if "key_index" in layout:
        k, v = (cast(Tensor, _Gather.apply(rows, layout["key_index"])) for rows in (k, v))  # type: ignore[no-untyped-call]
    # before 2.12 the kernel takes fewer key heads without being told
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    output = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        layout["query_starts"],
        layout["key_starts"],
        layout["max_query"],
        layout["max_key"],
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # a tuple: a list is not recognised as causal
        **grouped,
    )
    return cast(Tensor, output)[None]


class _Gather(torch.autograd.Function):
    """Rows by index; the gradients of a prompt that several completions share are summed in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        """Rows [n, ...] and indices [m] → selected rows [m, ...]."""
        ctx.save_for_backward(index)
        ctx.count = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the rows, summed over equal indices."""
        (index,) = ctx.saved_tensors
        summed = gradient.new_zeros((ctx.count, *gradient.shape[1:]), dtype=torch.float32)
        return summed.index_add_(0, index, gradient.float()).to(gradient.dtype), None


def check_calls(calls: list[bool], config: PretrainedConfig) -> None:
    """Refuse a model in which some layer mixes tokens without calling the registered attention.

    `calls` says of each attention call of a forward pass whether it had a sliding window.

    Raises:
        InputError: the calls do not match the layers of the config.
    """
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    if len(calls) != layers:
        raise _unpackable(f"{len(calls)} of its {layers} layers use transformers' exchangeable attention")
    types = getattr(text, "layer_types", None) or []
    if others := sorted({*types} - {"full_attention", "sliding_attention"}):
        raise _unpackable(f"it has layers of {', '.join(others)}")
    # a sliding_window that the config class does not define has no effect on the model
    everywhere = hasattr(type(text), "sliding_window") and text.sliding_window
    windowed = types.count("sliding_attention") if types else layers * bool(everywhere)
    if sum(calls) != windowed:  # a model that applies the window only in its masks would lose it
        raise _unpackable(f"{sum(calls)} of its {windowed} sliding windows are passed to the attention function")


def _unpackable(reason: str) -> InputError:
    return InputError(f"the model can't be packed: {reason}", "set model.packing: none")


def packing_obstacle(model_class: type[Any], config: PretrainedConfig) -> str | None:
    """Why a model can't be packed, in words; None if it can.

    Found by trying, once for each class and config: a copy without weights, on the meta device, runs a packed batch.
    """
    if not getattr(model_class, "_supports_attention_backend", False):
        return "it has no exchangeable attention"
    config = copy.deepcopy(config)
    # with a pad id, some models read the ids, which have no values here; vars() avoids the config's own checks
    vars(config.get_text_config())["pad_token_id"] = None
    key = (*model_class.__bases__, repr(config.to_dict()))  # the class itself is a new one in each call
    if key not in _OBSTACLES:
        _OBSTACLES[key] = _try_packed(model_class, config)
    return _OBSTACLES[key]


_OBSTACLES: dict[tuple[Any, ...], str | None] = {}


def _try_packed(model_class: type[Any], config: PretrainedConfig) -> str | None:
    tokens = np.arange(2, dtype=np.int32)
    batch = pack([TokenizedGroup("", "", tokens, (tokens, tokens), (), False)], "shared_prompt", pad_id=0)
    ids, positions = batch["input_ids"].to("meta"), batch["position_ids"].to("meta")
    layout = Pass(cast(Layout, batch["layout"]))
    module = model_without_weights(model_class, config).to(torch.bfloat16).train()
    with torch.device("meta"), torch.no_grad():
        module.set_attn_implementation(NAME)
        backbone = getattr(module, module.base_model_prefix)
        try:
            backbone(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, layout=layout)
            check_calls(layout.calls, config)
        except InputError as error:
            return error.message.removeprefix("the model can't be packed: ")
        except Exception as error:  # the model needs real values to run
            return f"a trial without its weights failed ({type(error).__name__}: {first_line(error)})"
    return None
