"""The base's dropout is off in training, whatever its architecture calls it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

from rmtrain.model.dropout import disable_dropout, has_dropout
from rmtrain.model.start import build_model
from rmtrain.recipe.schema import Recipe

BASES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5, "intermediate_size": 32},
    "gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "mistral": {"attention_dropout": 0.5, "num_key_value_heads": 2, "intermediate_size": 32},
    "stablelm": {"hidden_dropout": 0.5, "attention_dropout": 0.5, "num_key_value_heads": 2, "intermediate_size": 32},
}


def model_of(kind: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    config = AutoConfig.for_model(kind, vocab_size=65, pad_token_id=0, num_labels=1, **sizes, **BASES[kind])
    torch.manual_seed(0)
    return CLASSES[type(config)](config)


def rewards(module: Any, training: bool) -> torch.Tensor:
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        return module.train(training)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("kind", BASES)
def test_a_model_in_training_computes_what_it_does_in_evaluation(kind: str) -> None:
    module = model_of(kind)
    assert has_dropout(module.config)
    assert not torch.equal(rewards(module, True), rewards(module, False))
    disable_dropout(module)
    assert torch.equal(rewards(module, True), rewards(module, False))


@pytest.mark.parametrize("dropout", [False, True])
def test_the_recipe_says_whether_the_base_drops(tmp_path: Path, dropout: bool) -> None:
    model_of("gpt_neox").base_model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    section = {"name": str(tmp_path), "dtype": "float32", "dropout": dropout}
    lora = {"rank": 2, "dropout": 0.25}
    recipe = Recipe.model_validate({"model": section, "lora": lora, "data": {"source": "demo"}})
    module = build_model(recipe, 0).module.train()
    kept = {layer.p for layer in module.modules() if isinstance(layer, torch.nn.Dropout)}
    assert kept == ({0.5, 0.25} if dropout else {0.0, 0.25})
