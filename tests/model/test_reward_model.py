"""The score head, the adapters and the dtypes of a loaded reward model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.operations import convert_to_fp32
from conftest import write_base
from packing_cases import awkward_groups, one_at_a_time, packed
from safetensors.torch import load_file, save_file

from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.adapters import add_lora
from rmtrain.model.forward import RewardOutput, check_head
from rmtrain.model.memory import count_parameters
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone, load_config
from rmtrain.model.start import recipe_renderer
from rmtrain.recipe.schema import LoraSection, ModelSection

LORA = LoraSection(rank=2, alpha=4.0)


def load(folder: Path, dtype: str = "float32", seed: int | None = 0, **options: Any) -> RewardModel:
    return load_backbone(str(folder), None, BackboneOptions(dtype, **options), pad_id=0, seed=seed)


def score_head(folder: Path, labels: int = 1) -> Path:
    """A whole reward model as anyone would save it."""
    from transformers import AutoModelForSequenceClassification

    base = write_base(folder / "base")
    module = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    module.save_pretrained(folder / "whole")
    return folder / "whole"


# Dtypes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_head_and_rewards_are_float32_on_any_base(base: Path, dtype: str) -> None:
    model = load(base, dtype)
    assert model.module.score.weight.dtype == torch.float32
    assert model.module.model.layers[0].mlp.up_proj.weight.dtype == getattr(torch, dtype)
    rewards = packed(model, awkward_groups())
    assert rewards.dtype == torch.float32
    exact = packed(load(base), awkward_groups())
    assert rewards.tolist() != rewards.to(torch.bfloat16).float().tolist()  # not rounded by a half-precision head
    torch.testing.assert_close(rewards, exact, atol=0.05, rtol=0)


def test_a_backbone_that_is_trained_is_held_in_float32_and_computes_in_its_dtype(base: Path) -> None:
    model = load_backbone(str(base), None, BackboneOptions("bfloat16"), pad_id=0, seed=0, trainable=True)
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    half = packed(load(base, "bfloat16"), awkward_groups())
    torch.testing.assert_close(packed(model, awkward_groups()), half, atol=0.05, rtol=0)
    assert not torch.equal(packed(model, awkward_groups()), packed(load(base), awkward_groups()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapted", [False, True])
def test_rewards_are_the_same_whatever_autocast_is_around_them(base: Path, dtype: str, adapted: bool) -> None:
    model = load(base, dtype)
    model = add_lora(model, LORA, seed=0) if adapted else model
    expected = packed(model, awkward_groups())
    for enabled, outer in ((True, torch.bfloat16), (True, torch.float16), (False, torch.bfloat16)):
        with torch.autocast("cpu", dtype=outer, enabled=enabled):
            assert torch.equal(packed(model, awkward_groups()), expected)


# The head


def test_a_new_head_is_the_seeds_and_nothing_elses(base: Path) -> None:
    weights = []
    for noise, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(noise)
        weights.append(load(base, seed=seed).module.score.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert 0.5 < weights[0].std().item() * 33**0.5 < 1.5  # N(0, 1/(H+1)), H = 32


def test_new_adapters_are_the_seeds_and_nothing_elses(base: Path) -> None:
    states = []
    for noise, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(noise)
        model = load(base, seed=0)
        before = torch.random.get_rng_state()
        model = add_lora(model, LORA, seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append({n: p for n, p in model.module.named_parameters() if "lora_A" in n})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_head_of_an_existing_reward_model_is_kept(tmp_path: Path) -> None:
    whole = score_head(tmp_path)
    stored = load_file(whole / "model.safetensors")["score.weight"]
    assert torch.equal(load(whole, seed=7).module.score.weight, stored)
    assert torch.equal(load(whole, seed=None).module.score.weight, stored)


def test_a_base_without_a_head_is_no_reward_model(base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the weights have no score head \(score\.weight\)") as error:
        load(base, seed=None)
    assert str(base) in error.value.message


def test_a_head_with_several_labels_is_refused(tmp_path: Path) -> None:
    whole = score_head(tmp_path, labels=3)
    with pytest.raises(CheckpointError, match="its score head has 3 labels, a reward model has one"):
        load(whole)


def test_a_missing_layer_is_refused_by_name(tmp_path: Path) -> None:
    whole = score_head(tmp_path)
    tensors = load_file(whole / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(whole)


def test_a_layer_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    whole = score_head(tmp_path)
    tensors = load_file(whole / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(16)
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="whole: ") as error:
        load(whole)
    assert error.value.message.endswith("model.norm.weight has the shape (16,), not (32,)")


def test_an_architecture_without_a_linear_score_head_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, T5Config

    small = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"bert is an encoder \(bert\), which can be scored but not trained here"):
        recipe_renderer(ModelSection(name=str(tmp_path / "bert")))  # before its tokenizer is asked for
    with pytest.raises(InputError, match="BertForSequenceClassification has no linear score head"):
        load(tmp_path / "bert", packing="none")
    (tmp_path / "vit").mkdir()
    T5Config(model_type="t5").save_pretrained(tmp_path / "t5")
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(InputError, match="no sequence-classification head for the architecture 'vit'"):
        load(tmp_path / "vit")


def test_a_missing_model_and_missing_weights_are_refused_by_name(tmp_path: Path, base: Path) -> None:
    with pytest.raises(InputError, match="gone: no such folder"):
        load(tmp_path / "gone")
    load_config(str(base), None).save_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"empty: no weights could be loaded"):
        load(tmp_path / "empty")


def test_remote_code_is_never_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="no model config could be loaded") as error:
        load(tmp_path)
    assert "remote code is never run" in error.value.hint
    assert not (tmp_path / "ran").exists()


def test_a_pad_token_that_the_model_does_not_have_is_refused(base: Path) -> None:
    with pytest.raises(InputError, match="pad token 65 lies outside of the model's vocabulary of 65"):
        load_backbone(str(base), None, BackboneOptions("float32"), pad_id=65, seed=0)


# Adapters


def test_the_head_is_trained_beside_the_adapters_in_float32(base: Path) -> None:
    model = add_lora(load(base, "bfloat16"), LORA, seed=0)
    trained = {n: p for n, p in model.module.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert sum("score" in name for name in trained) == 1
    assert sum("lora_A" in name for name in trained) == 2 * 7  # all linear layers of two decoder layers
    assert len(trained) == 2 * 14 + 1
    check_head(model.module)
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    packed(model, awkward_groups()).pow(2).sum().backward()
    optimizer.step()
    changed = {name for name, parameter in trained.items() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in trained if "lora_A" not in name}  # lora_B is 0, so lora_A moves a step later


def test_new_adapters_change_no_reward(base: Path) -> None:
    before = packed(load(base), awkward_groups())
    torch.testing.assert_close(packed(add_lora(load(base), LORA, seed=0), awkward_groups()), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("section", [{"rslora": True}, {"dora": True}, {"targets": ["q_proj", "mlp.up_proj"]}])
def test_kinds_of_adapters(base: Path, section: dict[str, Any]) -> None:
    model = add_lora(load(base, "bfloat16"), LoraSection(rank=4, alpha=8.0, **section), seed=0)
    assert {p.dtype for p in model.module.parameters() if p.requires_grad} == {torch.float32}
    layer = model.module.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == (4.0 if section.get("rslora") else 2.0)
    adapted = {name.split(".lora_")[0] for name, _ in model.module.named_parameters() if "lora_A" in name}
    assert len(adapted) == (4 if "targets" in section else 14)


def test_targets_that_match_nothing_are_named_even_beside_some_that_do(base: Path) -> None:
    for targets in (["q_porj"], ["q_proj", "q_porj"], ["proj"], ["score", "q_porj"]):
        with pytest.raises(InputError, match="no layer beside the score head is called") as error:
            add_lora(load(base), LoraSection(targets=targets), seed=0)
        assert "q_proj" not in error.value.message.replace("score, ", "")
        assert "q_proj" in error.value.hint
        assert "score" not in error.value.hint
    with pytest.raises(InputError, match="score"):
        add_lora(load(base), LoraSection(targets=["score"]), seed=0)
    with pytest.raises(InputError, match=r"lora\.targets: "):
        add_lora(load(base), LoraSection(targets=["input_layernorm"]), seed=0)


def test_the_footprint_counts_what_is_loaded(base: Path) -> None:
    for section in (None, LORA):
        model = load(base) if section is None else add_lora(load(base), section, seed=0)
        counted = count_parameters(load_config(str(base), None), section)
        parameters = {n: p for n, p in model.module.named_parameters() if ".original_module." not in n}
        assert counted["parameters"] == sum(p.numel() for p in parameters.values())
        assert counted["parameters_trained"] == sum(p.numel() for p in parameters.values() if p.requires_grad)
        assert counted["parameters_of_score_head"] == 32


# What is asserted of a head before training


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda head: head.requires_grad_(False), "the score head is frozen"),
        (lambda head: head.data.zero_(), "is zero or not finite"),
        (lambda head: head.data.fill_(torch.nan), "is zero or not finite"),
        (lambda head: setattr(head, "data", head.data.bfloat16()), "is torch.bfloat16, not float32"),
    ],
)
def test_a_head_that_could_not_learn_is_refused(base: Path, damage: Any, named: str) -> None:
    model = add_lora(load(base), LORA, seed=0)
    check_head(model.module)
    damage(next(p for n, p in model.module.named_parameters() if "score" in n and p.requires_grad))
    with pytest.raises(CheckpointError, match=named):
        check_head(model.module)


# Quantisation


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_has_a_float32_head_and_trains_on_the_cpu(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = write_base(tmp_path / "base", hidden_size=64, intermediate_size=128, head_dim=16)
    model = load(folder, "bfloat16", quantization=kind)
    layer = model.module.model.layers[0].mlp.up_proj
    assert layer.weight.dtype in (torch.uint8, torch.int8)
    assert type(model.module.score) is torch.nn.Linear
    assert model.module.score.weight.dtype == torch.float32
    model = add_lora(model, LORA, seed=0)
    rewards = packed(model, awkward_groups())
    exact = packed(load(folder), awkward_groups())
    assert rewards.dtype == torch.float32
    assert (rewards - exact).abs().max() < 0.5 * exact.std()
    rewards.sum().backward()
    gradients = {n: p.grad for n, p in model.module.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() and g.dtype == torch.float32 for g in gradients.values())
    assert all(g.any() for n, g in gradients.items() if "lora_B" in n or "score" in n)


# Without positions, transformers' own forward answers


def test_accelerate_rebuilds_an_output_of_float16_in_float32() -> None:
    """As it does after each forward pass under its loss scaler, from a dict of the fields."""
    half = torch.ones(3, 2, dtype=torch.float16)
    out = convert_to_fp32(RewardOutput(logits=half[:, 0], states=half))
    assert (type(out), out.loss, out.logits.dtype, out.states.dtype) == (
        RewardOutput,
        None,
        torch.float32,
        torch.float32,
    )


def test_without_ends_the_model_is_a_plain_one(base: Path) -> None:
    model = load(base, packing="none")
    groups = awkward_groups()
    torch.testing.assert_close(one_at_a_time(model.module, groups), packed(model, groups), atol=1e-5, rtol=0)
