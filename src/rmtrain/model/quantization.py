"""Quantised bases: loading them, and converting them back to float32 for merging and exact comparison."""

from typing import Any

import torch

from rmtrain.model.forward import HEAD, unwrapped


def quantization_config(kind: str, dtype: torch.dtype) -> Any:
    """transformers' configuration of an `nf4` or `int8` base (`kind`), which leaves the score head unquantised."""
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[HEAD])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[HEAD],
    )


def is_quantised(module: Any) -> bool:
    """Whether a model, or the base of a PEFT model, was loaded quantised."""
    return bool(getattr(unwrapped(module), "is_quantized", False))


def dequantise(module: Any) -> Any:
    """The model on the CPU with plain layers, which hold the values of the quantised weights.

    The model must not have run before: in its first pass on a CPU, bitsandbytes reorders 4-bit weights, and then reads
    them back in the wrong order.
    """
    plain = module.dequantize().to("cpu")
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    return plain


def in_float32(module: Any) -> None:
    """Convert all unquantised weights to float32, and compute in float32 everywhere, in quantised layers too."""
    base = unwrapped(module)
    base.compute_dtype = torch.float32
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    for layer in module.modules():
        if layer is not base and isinstance(getattr(layer, "compute_dtype", None), torch.dtype):
            layer.compute_dtype = torch.float32  # bitsandbytes' 4-bit layers
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # this fast path on CPUs always rounds to bfloat16
        if hasattr(layer, "cast_input_dtype_enabled"):
            layer.cast_input_dtype_enabled = True
