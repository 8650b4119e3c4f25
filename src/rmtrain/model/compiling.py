"""Decoder layers through torch.compile, one by one and in place: parameters, checkpoints and hooks stay as they are.

All layers share the same few graphs, which take any number of tokens. Attention stays outside of them.
"""

import logging
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
        compiler = get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler"
    return None if shutil.which(compiler) else "there is no C++ compiler"


def compile_layers(module: nn.Module, notify: Notify) -> int:
    """Have each decoder layer compiled when it first runs; returns the number of layers.

    What was compiled is kept between runs, under rmtrain's cache folder unless TORCHINDUCTOR_CACHE_DIR is set. Dropout
    draws the same random numbers as without compiling. Hooks on a layer, and gradient checkpointing of a whole layer,
    stay outside of its graphs.

    Args:
        module: the model, or the PEFT model around it.
        notify: takes one line if compiling fails, after which what failed runs uncompiled.
    """
    import torch._dynamo
    import torch.fx.experimental._config

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    torch._dynamo.config.suppress_errors = True  # what can't be traced runs as it is
    torch.fx.experimental._config.use_duck_shape = False  # as many tokens as the model is wide: not another graph
    failures, log = _Failures(notify), logging.getLogger("torch._dynamo.convert_frame")
    log.filters = [*(other for other in log.filters if not isinstance(other, _Failures)), failures]
    return _replace_kinds(module, _Backend(failures), dynamic=True)


def trace_layers(module: nn.Module) -> None:
    """Cut each decoder layer into the graphs that `compile_layers` would compile, and run these operation by operation.

    The passes keep the same tensors for the gradient as compiled ones, also with fake tensors.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def as_it_is(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=as_it_is,
        bw_compiler=as_it_is,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    _replace_kinds(module, backend, dynamic=False)


def _replace_kinds(module: nn.Module, backend: Any, dynamic: bool) -> int:
    """Give each decoder layer a class with a compiled forward pass; returns the number of layers."""
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    kinds = dict[type[nn.Module], type[nn.Module]]()
    for layer in layers:
        kind = type(layer)
        if kind not in kinds:
            kinds[kind] = _compiled_kind(kind, backend, dynamic)
        layer.__class__ = kinds[kind]
    return len(layers)


def _compiled_kind(kind: type[nn.Module], backend: Any, dynamic: bool) -> type[nn.Module]:
    """A layer's class with a compiled forward pass.

    transformers checkpoints the outermost class that defines `forward` (or, in older versions, `__call__`), so it
    recomputes the compiled pass instead of being compiled with it.
    """
    compiled = torch.compile(kind.forward, dynamic=dynamic, backend=backend)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden, *others = args
        if torch.is_grad_enabled() and not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()  # so the first layer shares the graphs of the others
        return compiled(self, hidden, *others, **kwargs)

    # the name stays, by which layers are found that are sharded
    return type(kind.__name__, (kind, _Compiled), {"forward": forward, "__module__": kind.__module__})


class _Compiled:
    """Marks layers that are compiled."""


def uncompiled(module: nn.Module) -> AbstractContextManager[None]:
    """Run a module without its compiled graphs, so that its rewards equal those of every other command."""
    if not any(isinstance(layer, _Compiled) for layer in module.modules()):
        return nullcontext()  # without importing the compiler
    return cast("AbstractContextManager[None]", torch.compiler.set_stance("force_eager"))


class _Failures(logging.Filter):
    """Reports the compiler's first failure to the user, also one that torch only logs, with a traceback.

    The rest runs on uncompiled. With TORCH_LOGS set, torch's own log stays as it is beside it.
    """

    def __init__(self, notify: Notify) -> None:
        super().__init__()
        self._notify: Notify | None = notify

    def tell(self, reason: str) -> None:
        """Say why something was not compiled, once."""
        if self._notify is not None:
            self._notify(f"compiling failed, so the layers run uncompiled: {reason}")
            self._notify = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether torch logs a record itself: what it can't trace, or has to trace too often, is reported here."""
        if record.levelno < logging.WARNING:
            return True
        error = (record.exc_info[1] if record.exc_info else None) or RuntimeError(record.getMessage())
        self.tell(first_line(getattr(error, "inner_exception", error)))
        return "TORCH_LOGS" in os.environ


class _Backend:
    """torch's inductor; a graph that it can't compile runs uncompiled."""

    def __init__(self, failures: _Failures) -> None:
        self._failures = failures

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
            self._failures.tell(first_line(error))
            return make_boxed_func(graph.forward)
