"""The widths of a decoder layer that decide what autograd keeps of it, read off its modules."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from rmtrain.recipe.schema import LoraSection

# entries of configs: experts, for which a token's share depends on where it is routed, and scores kept one by one
_UNPREDICTABLE = ("num_experts", "num_local_experts", "n_routed_experts", "attn_logit_softcapping")


class LayerShape(NamedTuple):
    """One decoder layer, for what autograd keeps of it per token; widths are in elements.

    In eager mode, with compute type b bytes, transformers 5's decoders keep per token

        4 N              each norm's input in float32 (and 4 N again, normalised, where the norms are trained)
        b (Q + 2 KV + Q) queries, keys, values and output of attention, and 4 bytes a head of log-sum-exp
        b I              inputs of linear layers, each distinct one once, where these have adapters or are trained; cast
                         for each layer by itself where the weights are float32 and b is not 4
        b A              of the gated feed-forward block: gate, activated gate and up
        b R              output of each adapter's first matrix
        (b + 1) D        with LoRA dropout: a dropped copy and a mask for each adapter

    so that Mistral-7B with LoRA of rank 32 on all linear layers keeps 185 kB a token and layer in bfloat16.
    """

    hidden: int
    norms: int  # N: widths of all norms
    queries: int  # Q
    keys: int  # KV
    heads: int
    inputs: int  # I, but for the attention's output, which is kept in any case
    gate: int  # A
    ranks: int  # R
    dropped: int  # D
    outputs: int  # of all linear layers, which selective checkpointing keeps
    inner: int  # width of the feed-forward block
    weights: int  # elements of all weights
    largest: int  # elements of the largest weight


def shape_of(layer: nn.Module, config: PretrainedConfig, lora: LoraSection | None, casts: bool) -> LayerShape | None:
    """The shape of a layer; None where it is not gated, routes tokens, or has other state than the formula knows.

    Args:
        layer: of the model with its adapters, on any device.
        config: of the model.
        lora: the recipe's section; None trains everything.
        casts: autocast makes copies of trained weights and their inputs in the compute type.
    """
    text = config.get_text_config()
    if any(getattr(text, name, None) for name in _UNPREDICTABLE) or (lora is not None and lora.dora):
        return None
    linears = {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "lora_" not in name
    }
    sizes = {name: _in_out(module) for name, module in linears.items()}
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    if not sizes:
        return None
    head = int(getattr(text, "head_dim", None) or hidden // heads)
    queries, keys = heads * head, head * int(getattr(text, "num_key_value_heads", None) or heads)
    inner = max(inputs for inputs, outputs in sizes.values() if outputs == hidden)  # of what leads back to the stream
    gated = sum(outputs for _, outputs in sizes.values() if outputs % inner == 0 and outputs >= inner) // inner > 1
    if not gated:
        return None
    adapted = {name for name in sizes if lora is None or name.endswith(".base_layer")}
    if lora is None and casts:
        inputs = sum(width for width, _ in sizes.values() if width == hidden) - hidden * (queries == hidden) + inner
    else:
        distinct = {(name.removesuffix(".base_layer").rpartition(".")[0], sizes[name][0]) for name in adapted}
        inputs = sum(width for _, width in distinct if width != queries or queries == hidden)
    wide = {"q_norm": queries, "k_norm": keys}  # these run for each head
    norms = sum(
        wide.get(name.rpartition(".")[2], weight.numel())
        for name, module in layer.named_modules()
        if "norm" in type(module).__name__.lower() and (weight := getattr(module, "weight", None)) is not None
    )
    return LayerShape(
        hidden=hidden,
        norms=norms,
        queries=queries,
        keys=keys,
        heads=heads,
        inputs=inputs,
        gate=3 * inner,
        ranks=lora.rank * len(adapted) if lora else 0,
        dropped=sum(sizes[name][0] for name in adapted) if lora and lora.dropout else 0,
        outputs=sum(outputs for _, outputs in sizes.values()),
        inner=inner,
        weights=sum(inputs * outputs for inputs, outputs in sizes.values()),
        largest=max(inputs * outputs for inputs, outputs in sizes.values()),
    )


def _in_out(module: Any) -> tuple[int, int]:
    first, second = module.weight.shape
    return (int(first), int(second)) if isinstance(module, Conv1D) else (int(second), int(first))
