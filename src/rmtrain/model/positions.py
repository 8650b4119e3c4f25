"""How many tokens a model takes: the rows of its table of positions, or the window of its rotary embeddings."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from rmtrain.errors import InputError
from rmtrain.model.config_check import model_without_weights

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


def _rotations(text: Any) -> list[Mapping[str, Any]]:
    """The parameters of a model's rotary embeddings: one set for all layers, or one for each type of layer."""
    parameters = getattr(text, "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, Mapping)]
    return by_layer or ([parameters] if parameters else [])


def rotary_window(config: PretrainedConfig) -> int | None:
    """The context length of a model, scaled as its rotary embeddings are; None if its config does not state it."""
    text = config.get_text_config()
    window, rotations = getattr(text, "max_position_embeddings", None), _rotations(text)
    if not window or not rotations:
        return None
    scaled = [
        (rotation.get("factor") or 1.0) * (rotation.get("original_max_position_embeddings") or window)
        for rotation in rotations
        if rotation.get("rope_type", "default") != "default"
    ]
    return int(max([window, *scaled]))


def check_positions(config: PretrainedConfig, model_class: type, max_length: int, longest: int) -> list[str]:
    """Refuse a length beyond a model's table of positions; a note if the longest row is beyond its rotary window.

    Raises:
        InputError: says how many positions there are.
    """
    table = position_table(model_without_weights(model_class, config))
    if table is not None and max_length > table:
        raise InputError(
            f"data.max_length: {max_length} tokens, and the model has {table} positions", f"set it to at most {table}"
        )
    window = rotary_window(config)
    if window is None or longest <= window:
        return []
    return [f"a row has {longest:,} tokens, and the model was made for {window:,}: rewards beyond may be poor"]


def fixed_rotation(config: PretrainedConfig) -> int | None:
    """Tokens of a row up to which its rotary frequencies are its own, whatever lies beside it; None is any number.

    Beyond, the frequencies of dynamic NTK and LongRoPE follow the longest row of a batch.
    """
    text = config.get_text_config()
    limits: list[Any] = []
    for rotation in _rotations(text):
        kind = str(rotation.get("rope_type"))
        if "dynamic" in kind:
            limits.append(text.max_position_embeddings)
        elif kind == "longrope":
            limits.append(rotation.get("original_max_position_embeddings") or text.max_position_embeddings)
    return int(min(limits)) if limits else None


def require_fixed_rotation(config: PretrainedConfig, longest: int) -> None:
    """Refuse rows longer than `fixed_rotation`: transformers would turn all rows of their batch by other frequencies.

    Raises:
        InputError: says up to which length rows can be scored.
    """
    limit = fixed_rotation(config)
    if limit is not None and longest > limit:
        raise InputError(
            f"a row has {longest} tokens, and beyond {limit} the rotary frequencies of this model follow the longest "
            "row of a batch: rewards would depend on what is scored together",
            f"set data.max_length to at most {limit}",
        )
