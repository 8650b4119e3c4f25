"""Config and tokenizer files that older and other readers (transformers 4, vLLM) read as transformers 5 does."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtrain.files import write_json
from rmtrain.model.weights import read_object

# keys to write beside rope_parameters, which transformers 4 ignores: without them it silently rotates otherwise
_OLD_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def make_portable(folder: Path) -> None:
    """Add to a saved model's config.json and tokenizer_config.json what other readers need; nothing is taken away.

    A reward is no probability: `problem_type` keeps vLLM from applying a sigmoid to it.
    """
    config, tokenizer = folder / "config.json", folder / "tokenizer_config.json"
    if config.exists():
        values = read_object(config)
        write_json(config, {**values, **old_rotation(values), "problem_type": "regression"})
    if tokenizer.exists():
        write_json(tokenizer, _old_tokenizer(read_object(tokenizer)))


def serve_command(folder: str, dtype: str, scale: Mapping[str, float] | None = None) -> str:
    """The command by which vLLM serves a whole model with the same rewards; left to itself, it halves float32 weights.

    With a scale, `mean` and `std`, vLLM answers (reward - mean) / std: its pooler takes both, and reads no config's.
    """
    pooler = {"logit_mean": scale["mean"], "logit_sigma": scale["std"]} if scale else None
    options = ["--pooler-config", json.dumps(pooler)] if pooler else []
    return shlex.join(["vllm", "serve", folder, "--runner", "pooling", "--dtype", dtype, *options])


def old_rotation(config: dict[str, Any]) -> dict[str, Any]:
    """The keys by which transformers 4 knows the rotary embedding of a config of transformers 5."""
    parameters = config.get("rope_parameters") or {}
    layers = {kind: part for kind, part in parameters.items() if isinstance(part, dict)}
    if not layers:
        return _old_rotation(parameters, config)
    old = _old_rotation(layers.get("full_attention", {}), config)
    if not config["model_type"].startswith("gemma3"):
        old.pop("rope_scaling", None)  # transformers 5 would take it in place of those by layer
    if local := layers.get("sliding_attention"):
        old["rope_local_base_freq"] = local["rope_theta"]
    return old


def _old_rotation(parameters: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    names = _OLD_NAMES.get(config["model_type"], {})
    moved = ("rope_theta", "partial_rotary_factor")
    old = {names.get(key, key): parameters[key] for key in moved if key in parameters}
    kind = parameters.get("rope_type", "default")
    scaling = {key: value for key, value in parameters.items() if key not in moved and value is not None}
    length = "original_max_position_embeddings"
    if kind == "longrope" and length in scaling:
        old[length] = scaling[length]  # where transformers 4 looks for it
    if config["model_type"] == "phi3":  # which refuses any fourth key
        scaling = {"type": kind, **{key: scaling[key] for key in ("short_factor", "long_factor") if key in scaling}}
    if kind == "yarn" and scaling.get(length) == config.get("max_position_embeddings"):
        del scaling[length]  # transformers 4 would take their ratio, 1, for the factor
    return old if kind == "default" else {**old, "rope_scaling": scaling}


def _old_tokenizer(values: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, which is that of tokenizer.json, under names that transformers 4 knows."""
    values = {**values, "tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(special := values.get("extra_special_tokens"), list):  # a mapping there
        del values["extra_special_tokens"]
        values["additional_special_tokens"] = special
    return {**values, "model_input_names": ["input_ids", "attention_mask"]}
