"""The compute type that is fastest on the machine at hand: what `auto` stands for as a dtype."""

from typing import Literal, NamedTuple

import torch

DtypeName = Literal["float32", "bfloat16", "float16"]


class ComputeType(NamedTuple):
    """A type of the backbone's weights and arithmetic, and why it was chosen."""

    name: DtypeName
    reason: str


def fastest_type() -> ComputeType:
    """bfloat16 where the machine multiplies matrices in it, else float32.

    Of CPUs, those with AMX do. AVX-512 with bfloat16 is not enough: matrix products are slower in it than in float32.
    """
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ComputeType("bfloat16", "this GPU computes in bfloat16")
        return ComputeType("float32", "this GPU has no bfloat16 arithmetic")
    if torch.cpu._is_amx_tile_supported():
        return ComputeType("bfloat16", "this CPU has AMX")
    return ComputeType("float32", "this CPU has no AMX, and without it bfloat16 is slower")
