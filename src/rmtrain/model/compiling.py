"""Decoder layers through torch.compile, one by one and in place: parameters, checkpoints and hooks stay as they are.

All layers share the same few graphs, which take any number of tokens. Attention stays outside of them.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rmtrain.data.cache_entry import cache_folder
from rmtrain.errors import first_line

Notify = Callable[[str], None]


def compiler_obstacle() -> str | None:
    """Why nothing can be compiled on this machine, in words; None if it seems possible."""
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler"
    return None if shutil.which(found) else "there is no C++ compiler"


def compile_layers(module: nn.Module, notify: Notify) -> int:
    """Have each decoder layer compiled when it first runs; returns the number of layers.

    What was compiled is kept between runs, under rmtrain's cache folder unless TORCHINDUCTOR_CACHE_DIR is set. Dropout
    draws the same random numbers as without compiling.

    Args:
        module: the model, or the PEFT model around it.
        notify: takes one line if compiling fails, after which what failed runs uncompiled.
    """
    import torch._dynamo

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    torch._dynamo.config.suppress_errors = True  # what can't be traced runs as it is, and torch logs why
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    backend = _Backend(notify)
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return len(layers)


def uncompiled(module: nn.Module) -> AbstractContextManager[None]:
    """Run a module without its compiled graphs, so that its rewards equal those of every other command."""
    if all(layer._compiled_call_impl is None for layer in module.modules()):
        return nullcontext()  # without importing the compiler
    return cast("AbstractContextManager[None]", torch.compiler.set_stance("force_eager"))


class _Backend:
    """torch's inductor; a graph that it can't compile runs uncompiled, and the first one is reported."""

    def __init__(self, notify: Notify) -> None:
        self._notify: Notify | None = notify

    def __call__(self, graph: Any, inputs: Any) -> Any:
        """Compile what dynamo found; the forward and the backward graph come to `_inner` one by one."""
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs, inner_compile=self._inner, config_patches={"fallback_random": True})

    def _inner(self, graph: Any, inputs: Any, **options: Any) -> Any:
        from torch._functorch._aot_autograd.utils import make_boxed_func
        from torch._inductor.compile_fx import compile_fx_inner

        try:
            return compile_fx_inner(graph, inputs, **options)
        except Exception as error:  # of any kind: a C++ compiler that fails, a full disk, a bug
            if self._notify is not None:
                self._notify(f"compiling failed, so the layers run uncompiled: {first_line(error)}")
                self._notify = None
            return make_boxed_func(graph.forward)
