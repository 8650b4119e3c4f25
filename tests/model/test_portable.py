"""Configs and tokenizers with what older readers need: transformers 5 reads them as before.

That transformers 4.51 and vLLM give the same rewards is shown by scripts/check_readers.py, in their own environments.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_config
from transformers import AutoConfig, AutoTokenizer

from rmtrain.model.portable import make_portable, serve_command

LENGTH = {"original_max_position_embeddings": 128}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, **LENGTH},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LENGTH},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, **LENGTH},
}
OLD = ("rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_emb_base", "rotary_pct", "partial_rotary_factor")


def rewritten(config: Any, folder: Path) -> dict[str, Any]:
    """The config's file as it is made portable, after a check that transformers 5 reads the same of it."""
    config.save_pretrained(folder)
    before = AutoConfig.from_pretrained(folder)
    make_portable(folder)
    after = AutoConfig.from_pretrained(folder)
    assert _known(after.rope_parameters) == _known(before.rope_parameters)
    assert after.problem_type == "regression"
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def _known(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _known(entry) for key, entry in value.items() if key != "type" and entry is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mistral", "llama", "qwen2", "gemma2", "granite", "cohere"])
def test_a_rotation_is_there_in_the_old_form_too(tmp_path: Path, family: str, kind: str) -> None:
    rotary = {"rope_type": kind, "rope_theta": 5000.0, **KINDS[kind]}
    values = rewritten(make_config(family, rope_parameters=rotary), tmp_path)
    assert values["rope_theta"] == 5000.0
    assert values.get("rope_scaling") == (None if kind == "default" else {"rope_type": kind, **KINDS[kind]})


def test_a_factor_is_kept_where_transformers_4_would_make_one_of_the_lengths(tmp_path: Path) -> None:
    rotary = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}
    values = rewritten(make_config("llama", rope_parameters=rotary), tmp_path)
    assert values["rope_parameters"]["original_max_position_embeddings"] == 512
    assert values["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}


def test_families_with_names_of_their_own_have_these(tmp_path: Path) -> None:
    import transformers

    layers = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
    long = {"rope_type": "longrope", "rope_theta": 5000.0, **KINDS["longrope"]}
    neox = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    partial = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    cases = {
        "gemma3": make_config("gemma3_text", rope_parameters=layers),
        "phi3": make_config("phi3", rope_parameters=long, original_max_position_embeddings=128),
        "gpt_neox": transformers.GPTNeoXConfig(**neox, rope_parameters=dict(partial)),
        "stablelm": transformers.StableLmConfig(**neox, rope_parameters=dict(partial)),
        "gpt2": make_config("gpt2"),
    }
    found = {}
    for name, config in cases.items():
        if name == "gpt2":
            config.save_pretrained(tmp_path / name)
            make_portable(tmp_path / name)
            values = json.loads((tmp_path / name / "config.json").read_text())
        else:
            values = rewritten(config, tmp_path / name)
        found[name] = {key: values[key] for key in OLD if key in values}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert found["gemma3"] == {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 300.0,
    }
    assert found["phi3"].pop("partial_rotary_factor") == 1.0
    assert found["phi3"] == {"rope_theta": 5000.0, "rope_scaling": {"type": "longrope", **factors}}
    assert found["gpt_neox"] == {"rotary_emb_base": 5000.0, "rotary_pct": 0.5}
    assert found["stablelm"] == {"rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    assert found["gpt2"] == {}


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer"])
def test_a_tokenizer_of_a_family_makes_the_same_tokens_under_the_common_name(tmp_path: Path, name: str) -> None:
    import transformers

    letters = ["▁", "Ġ", *"abcdefghijklmnopqrstuvwxyz!\n"]
    specials = ["<unk>", "<s>", "</s>", "<pad>", "<|a|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *letters, "th", "the"])}
    tokenizer = getattr(transformers, name)(
        vocab=vocabulary,
        merges=[("t", "h"), ("th", "e")],
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<|a|>"],
    )
    tokenizer.save_pretrained(tmp_path)
    texts = ["the them <|a|> the!!", " a\n\nthe  b", "<s>the</s>"]
    before = [AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"], tokenizer(texts)["input_ids"]]
    make_portable(tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in values
    assert values["additional_special_tokens"] == ["<|a|>"]
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again(texts)["input_ids"]] * 2 == before
    assert sorted(again("the")) == ["attention_mask", "input_ids"]
    assert again.pad_token == "<pad>"


def test_the_command_of_vllm_is_safe_to_paste() -> None:
    assert serve_command("my model; rm", "float32").startswith(
        "vllm serve 'my model; rm' --runner pooling --dtype float"
    )
