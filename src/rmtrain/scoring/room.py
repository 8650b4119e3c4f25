"""How many tokens the memory has room for at once: predicted from what is free, then learnt from what did not fit."""

from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch

from rmtrain.model.devices import process_state
from rmtrain.model.reward_model import RewardModel

CPU_PASS = 2048  # tokens: wider activations fall out of a CPU's caches, and a pass has nothing to gain there
_SHARE = 0.5  # of the free memory: the rest is for what the prediction leaves out
_LEAST = 256  # tokens: below, memory is out anyway, and the first pass says so
_rooms: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # by module, so that what did not fit once is not tried again


def room_of(model: RewardModel) -> int | None:
    """Tokens that go through a model at once on this device; None where its config does not say how wide it is."""
    if model.module not in _rooms:
        width = bytes_per_token(model.module)
        if width is None:
            return None
        _rooms[model.module] = max(_LEAST, int(_SHARE * free_memory(model.device) / width))
    return _rooms[model.module]


def shrink_room(model: RewardModel, tokens: int) -> int:
    """Half of so many tokens, which did not fit: the room from now on."""
    _rooms[model.module] = max(1, tokens // 2)
    return _rooms[model.module]


def bytes_per_token(module: Any) -> int | None:
    """Memory that a forward pass takes a token, beside the weights, where nothing is kept for a backward pass.

    That is the widest moment of a layer: gate, up, their product and its copy in the feed-forward block, beside three
    copies of the residual stream in float32 (a norm's input, its output, and the sum).
    """
    config = getattr(module, "config", None)
    text = config.get_text_config() if config is not None else None
    hidden = getattr(text, "hidden_size", None)
    if hidden is None:
        return None
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    return int(4 * getattr(module, "compute_dtype", torch.float32).itemsize * inner + 3 * 4 * hidden)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can take: of the GPU, or its share of the host's."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, _ = torch.cuda.mem_get_info(device)
        return free + cached
    return int(psutil.virtual_memory().available // process_state().num_processes)
