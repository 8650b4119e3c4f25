"""How many tokens a model takes: the rows of its table of positions, or the window of its rotary embeddings."""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from rmtrain.errors import InputError

_OFFSET = 2  # the most rows that a table has before its first position (OPT, BioGPT)


def position_table(module: Any) -> int | None:
    """Positions of a model, perhaps on the meta device, that looks them up in a table; None if it computes them."""
    text = module.config.get_text_config()
    if longest := getattr(text, "max_seq_len", None):  # MPT: its biases are made for so many tokens
        return int(longest)
    positions = getattr(text, "max_position_embeddings", None)
    if not positions:
        return None
    tokens = module.get_input_embeddings()
    tables = [m.weight for m in module.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    tables += [buffer for buffer in module.buffers() if buffer.ndim > 1]
    known = any(positions <= table.shape[0] <= positions + _OFFSET for table in tables)
    return int(positions) if known else None


def max_positions(module: Any) -> int | None:
    """Largest number of tokens that a model's table of positions or its config states; None if neither does."""
    stated = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    return position_table(module) or (int(stated) if stated else None)


def rotary_window(config: PretrainedConfig) -> int | None:
    """The context length of a model, scaled as its rotary embeddings are; None if its config does not state it."""
    text = config.get_text_config()
    window = getattr(text, "max_position_embeddings", None)
    parameters: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    if not window or not parameters:
        return None
    kinds = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    scaled = [
        (each.get("factor") or 1.0) * (each.get("original_max_position_embeddings") or window)
        for each in kinds
        if each.get("rope_type", "default") != "default"
    ]
    return int(max([window, *scaled]))


def check_positions(config: PretrainedConfig, model_class: type, max_length: int, longest: int) -> list[str]:
    """Refuse a length beyond a model's table of positions; a note if the longest row is beyond its rotary window.

    Raises:
        InputError: says how many positions there are.
    """
    with torch.device("meta"):
        table = position_table(model_class(config))
    if table is not None and max_length > table:
        raise InputError(
            f"data.max_length: {max_length} tokens, and the model has {table} positions", f"set it to at most {table}"
        )
    window = rotary_window(config)
    if window is None or longest <= window:
        return []
    return [f"a row has {longest:,} tokens, and the model was made for {window:,}: rewards beyond may be poor"]
