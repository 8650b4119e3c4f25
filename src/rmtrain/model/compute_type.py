"""The compute type that is fastest on the machine at hand: what `auto` stands for as a dtype."""

import timeit
from typing import NamedTuple

import torch

_ENOUGH = 2.0  # times as fast: matrix products are about half of a step in float32, and bfloat16 adds conversions


class ComputeType(NamedTuple):
    """A type of the backbone's weights and arithmetic, and why it was chosen."""

    name: str  # float32 or bfloat16
    reason: str


def fastest_type() -> ComputeType:
    """bfloat16 where the machine multiplies matrices in it much faster, else float32.

    CPUs with AMX do. Some CPUs with bfloat16 in AVX-512 do and others are slower in it, so there a product is timed.
    """
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ComputeType("bfloat16", "this GPU computes in bfloat16")
        return ComputeType("float32", "this GPU has no bfloat16 arithmetic")
    if torch.cpu._is_amx_tile_supported():
        return ComputeType("bfloat16", "this CPU has AMX")
    if not torch.cpu._is_avx512_bf16_supported():
        return ComputeType("float32", "this CPU has no bfloat16 arithmetic")
    gain = product_seconds(torch.float32) / product_seconds(torch.bfloat16)
    name = "bfloat16" if gain >= _ENOUGH else "float32"
    return ComputeType(name, f"this CPU multiplies matrices in bfloat16 {gain:.1f} times as fast as in float32")


def fastest_of_all_processes() -> ComputeType:
    """bfloat16 only where every process found it faster, so that all compute the same; all processes call it."""
    from rmtrain.model.devices import gather_values

    own = fastest_type()
    return next((other for other in gather_values([own]) if other.name == "float32"), own)


def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of a matrix product on one thread: the least of ten, so that other work on the machine counts little."""
    x, weight = torch.ones(128, 576, dtype=dtype), torch.ones(576, 576, dtype=dtype)  # they stay in the cache
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(timeit.repeat(lambda: torch.nn.functional.linear(x, weight), number=1, repeat=10))
    finally:
        torch.set_num_threads(threads)
