"""How many tokens a model takes, told by its structure and proved by running it."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

from rmtrain.errors import InputError
from rmtrain.model.positions import check_positions, position_table, rotary_window

ROOM = 24
TABLES: dict[str, dict[str, Any]] = {  # of learned positions, sines, rotary angles or biases
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "biogpt": {"intermediate_size": 32},
    "openai-gpt": {},
    "ctrl": {"dff": 32},
    "mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": ROOM},
}
COMPUTED: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "llama": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "bloom": {"n_head": 4, "n_layer": 2},
    "stablelm": {"num_key_value_heads": 2},
}


def config_of(kind: str, own: dict[str, Any]) -> Any:
    values = {"vocab_size": 40, "pad_token_id": 0, "num_labels": 1}
    if kind != "mpt":
        values |= {"hidden_size": 16, "max_position_embeddings": ROOM}
    if kind not in ("mpt", "gpt_neo", "bloom"):
        values |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoConfig.for_model(kind, **(values | own))


@pytest.mark.parametrize("kind", [*TABLES, *COMPUTED])
def test_the_structure_tells_what_running_it_shows(kind: str) -> None:
    config = config_of(kind, (TABLES | COMPUTED)[kind])
    with torch.device("meta"):
        told = position_table(CLASSES[type(config)](config))
    assert told == (ROOM if kind in TABLES else None)
    model = CLASSES[type(config)](config).eval()
    assert position_table(model) == told
    for length, works in ((ROOM, True), (ROOM + 1, kind in COMPUTED)):
        ids = torch.randint(1, 40, (1, length))
        if works:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_a_length_beyond_the_table_is_refused_and_one_within_it_is_not() -> None:
    config = config_of("gpt2", {})
    with pytest.raises(InputError, match=r"data\.max_length: 25 tokens, and the model has 24 positions") as caught:
        check_positions(config, CLASSES[type(config)], ROOM + 1, 5)
    assert "at most 24" in caught.value.hint
    assert check_positions(config, CLASSES[type(config)], ROOM, ROOM) == []


@pytest.mark.parametrize(
    ("rope", "window"),
    [
        ({"rope_type": "default"}, 24),
        ({"rope_type": "linear", "factor": 4.0}, 96),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}, 96),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6}, 24),
    ],
)
def test_rows_beyond_a_rotary_window_are_noted(rope: dict[str, Any], window: int) -> None:
    config = config_of("llama", COMPUTED["llama"] | {"rope_parameters": rope | {"rope_theta": 1e4}})
    assert rotary_window(config) == window
    assert check_positions(config, CLASSES[type(config)], 999, window) == []
    (note,) = check_positions(config, CLASSES[type(config)], 999, window + 1)
    assert f"a row has {window + 1} tokens, and the model was made for {window}" in note
