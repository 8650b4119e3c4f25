"""Every family of decoders: where a model says that it packs, packed rewards are those of single rows."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.model import attention
from rmtrain.model.batch import pack
from rmtrain.model.forward import HEAD
from rmtrain.model.reward_model import choose_packing, reward_model_class

# not every family knows every one of these
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_labels": 1,
    "pad_token_id": 0,
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
LATENT = {"deepseek_v2", "deepseek_v3", "minicpm3", "mistral4"}  # their attention has as many key heads as query heads
NEEDED = {  # those known to pack; a family that stops is not passed over
    *("arcee", "deepseek_v2", "deepseek_v3", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt_neox", "llama"),
    *("mistral", "mixtral", "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe"),
    *("qwen3", "qwen3_moe", "smollm3", "starcoder2"),
}


def packable() -> dict[str, Any]:
    """Small configs of the families that pack, by model type."""
    found = {}
    for config_class in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        kind = config_class.model_type
        try:
            parts = {name: {k: SMALL[k] for k in SIZES} for name in config_class.sub_configs}  # by default of full size
            config = config_class(**(SMALL | parts | ({"num_key_value_heads": 4} if kind in LATENT else {})))
            packing, _ = choose_packing(reward_model_class(config), config, "shared_prompt")
        except Exception:  # a family whose sizes go by other names
            continue
        if packing != "none":
            found[kind] = config
    return found


def rewards(model: Any, groups: list[TokenizedGroup], packing: Any) -> list[float]:
    with torch.no_grad():
        return [float(reward) for reward in model(**pack(groups, packing, 0)).logits]


@pytest.mark.slow
def test_packed_rewards_of_every_family_are_those_of_single_rows() -> None:
    draw = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return draw.integers(3, 120, count).astype(np.int32)

    lengths = ((5, (3, 7)), (9, (1, 4, 2)), (2, (6,)))
    groups = [TokenizedGroup("", "", tokens(p), tuple(map(tokens, suffixes)), (), False) for p, suffixes in lengths]
    singles = [group._replace(suffixes=(suffix,)) for group in groups for suffix in group.suffixes]
    checked = set()
    for kind, config in packable().items():
        torch.manual_seed(0)
        model = reward_model_class(config)(config).float().eval()
        if not hasattr(model, HEAD):
            continue
        model.set_attn_implementation("eager")
        alone = [reward for single in singles for reward in rewards(model, [single], "none")]
        model.set_attn_implementation(attention.NAME)
        np.testing.assert_allclose(rewards(model, groups, "shared_prompt"), alone, rtol=0, atol=1e-5, err_msg=kind)
        checked.add(kind)
    assert not NEEDED - checked
