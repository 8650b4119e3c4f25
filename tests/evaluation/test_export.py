"""Exported models against the adapters that they come from, and what is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups, make_tokenizer, save_reward_model, write_base
from published_cases import CASES
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.errors import InputError, RunFailedError
from rmtrain.evaluation import export as module_under_test
from rmtrain.evaluation.export import export
from rmtrain.model.adapters import add_lora
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.quantization import dequantise, in_float32
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone
from rmtrain.recipe.schema import LoraSection
from rmtrain.scoring.batches import score_groups

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:MatMul8bitLt")
GROUPS = make_groups(4, seed=5)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer.for_tokenizer(make_tokenizer())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(
        tmp_path_factory.mktemp("models") / "wide",
        hidden_size=128,
        intermediate_size=128,
        num_key_value_heads=4,
        head_dim=32,
    )


Write = Callable[..., Path]


@pytest.fixture
def write(wide: Path, renderer: Renderer, tmp_path: Path) -> Write:
    """Writes a checkpoint with weights as after some training."""

    def write(dtype: str = "float32", quantization: str = "none", **lora: Any) -> Path:
        options = BackboneOptions(dtype, quantization)
        adapted = lora.pop("lora", True)
        model = load_backbone(str(wide), None, options, renderer.pad_id, seed=0, trainable=not adapted)
        if adapted:
            model = add_lora(model, LoraSection(**{"rank": 2, "alpha": 4.0, **lora}), seed=0)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        section = {"dtype": dtype, "quantization": quantization, "attention": "auto", "packing": "shared_prompt"}
        folder = tmp_path / "trained"
        sidecar = {"recipe": {"model": section, "data": {"max_length": 96}}}
        save_reward_model(model.module, renderer, folder, sidecar)
        return folder

    return write


def rewards_of(model: RewardModel, renderer: Renderer) -> torch.Tensor:
    tokenized = [group for group in tokenize_groups(GROUPS, Tokenization(renderer, 96, "error")) if group is not None]
    return torch.tensor(score_groups(model, tokenized, renderer.pad_id, 2048))


@pytest.mark.parametrize("lora", [{}, {"rslora": True}, {"dora": True}, {"lora": False}], ids=str)
def test_merged_rewards_are_those_of_the_adapter(write: Write, tmp_path: Path, lora: dict[str, Any]) -> None:
    folder, output = write(**lora), tmp_path / "plain"
    result = export(str(folder), output)
    before, after = load_checkpoint(str(folder)), load_checkpoint(str(output))
    truth = rewards_of(before.model, before.renderer)
    assert truth.std() > 0.05
    torch.testing.assert_close(rewards_of(after.model, after.renderer), truth, atol=1e-5, rtol=0)
    assert result["merged"] == lora.get("lora", True)
    assert result["proof"]["merging"] <= 1e-5
    assert after.max_length == 96
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "trained"]


def test_folder_holds_no_trace_of_an_adapter(write: Write, tmp_path: Path) -> None:
    output = tmp_path / "plain"
    export(str(write()), output)
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "rmtrain.json"} <= names
    assert not [name for name in names if "adapter" in name]
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["MistralForSequenceClassification"]
    assert "quantization_config" not in config
    assert not [name for name in load_file(output / "model.safetensors") if "lora" in name or "base_layer" in name]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_dtype_is_the_one_asked_for_and_the_head_stays_float32(write: Write, tmp_path: Path, dtype: Any) -> None:
    output = tmp_path / "plain"
    result = export(str(write()), output, dtype)
    tensors = load_file(output / "model.safetensors")
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    assert dtypes.pop("score.weight") == "float32"
    assert set(dtypes.values()) == {dtype}
    assert json.loads((output / "config.json").read_text())["dtype"] == dtype
    assert result["dtype"] == dtype
    assert result["trained_dtype"] == "float32"
    assert 0 < result["proof"]["storing"] <= result["proof"]["storing_allowed"]
    checkpoint = load_checkpoint(str(output))
    assert checkpoint.model.module.compute_dtype == getattr(torch, dtype)
    assert checkpoint.sidecar["exported"]["proof"] == result["proof"]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_base_is_merged_as_it_was_trained(write: Write, tmp_path: Path, quantization: str) -> None:
    folder, output = write("float32", quantization), tmp_path / "plain"
    result = export(str(folder), output)
    unmerged = load_checkpoint(str(folder), through=dequantise)
    exported = load_checkpoint(str(output))
    mine = rewards_of(exported.model, exported.renderer)
    torch.testing.assert_close(mine, rewards_of(unmerged.model, unmerged.renderer), atol=1e-5, rtol=0)
    assert result["quantization"] == quantization
    if quantization == "nf4":  # int8 layers round their inputs too
        trained = load_checkpoint(str(folder))
        in_float32(trained.model.module)  # some CPUs run 4-bit layers in bfloat16
        truth = rewards_of(trained.model, trained.renderer)
        torch.testing.assert_close(mine, truth, atol=1e-5, rtol=0)
        unquantised = load_checkpoint(str(folder), options=BackboneOptions("float32"))
        assert (rewards_of(unquantised.model, unquantised.renderer) - truth).abs().max() > 1e-3


def test_proof_is_what_an_independent_reading_finds(write: Write, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from rmtrain.data.reader import read_source

    folder, output = write(), tmp_path / "plain"
    result = export(str(folder), output, "bfloat16")
    groups = read_source("demo", "test", evaluation=True).groups[:16]
    checkpoint = load_checkpoint(str(folder))
    plain = AutoModelForSequenceClassification.from_pretrained(output, dtype=torch.float32).eval()
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    for group in tokenize_groups(groups, Tokenization(checkpoint.renderer, 96, "truncate_prompt")):
        assert group is not None
        before.append(torch.tensor(score_groups(checkpoint.model, [group], 0, 2048)[0]))
        rows = [torch.tensor([[*group.prefix, *suffix]]) for suffix in group.spread(group.suffixes)]
        with torch.no_grad():
            after.append(torch.stack([plain(input_ids=row).logits[0, 0] for row in rows]))
    moved = [((a - a.mean()) - (b - b.mean())).abs().max() for a, b in zip(after, before, strict=True)]
    assert result["proof"]["n"] == sum(map(len, after))
    assert max(moved).item() == pytest.approx(result["proof"]["storing"], abs=1e-5)


@pytest.mark.parametrize("step", ["merging", "storing"])
def test_a_model_that_ranks_differently_is_never_written(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = write()
    if step == "merging":
        merge = module_under_test.merge

        def wrong(model: RewardModel) -> RewardModel:
            model = merge(model)
            model.module.model.layers[0].mlp.up_proj.weight.data *= 1.01
            return model

        monkeypatch.setattr(module_under_test, "merge", wrong)
    else:
        write_model = module_under_test.write_model

        def torn(module: Any, renderer: Renderer, scoring: Any, record: dict[str, Any], folder: Path) -> None:
            write_model(module, renderer, scoring, record, folder)
            tensors = load_file(folder / "model.safetensors")
            tensors["model.layers.0.mlp.up_proj.weight"][0] += 0.01
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

        monkeypatch.setattr(module_under_test, "write_model", torn)
    with pytest.raises(RunFailedError, match=f"{step} changes a sample's reward"):
        export(str(folder), tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_full_disk_is_told_before_anything_is_written(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    full = module_under_test.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module_under_test.shutil, "disk_usage", lambda path: full)
    with pytest.raises(RunFailedError, match="free"):
        export(str(folder), tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_a_disk_that_fills_up_while_writing_leaves_nothing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write_model = write(), module_under_test.write_model

    def torn(*args: Any) -> None:
        write_model(*args)
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module_under_test, "write_model", torn)
    with pytest.raises(RunFailedError, match=r"can't be written: the disk is full: .* free") as caught:
        export(str(folder), tmp_path / "plain")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_an_existing_folder_is_kept(write: Write, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "mine").write_text("kept")
    with pytest.raises(InputError, match="exists"):
        export(str(write()), tmp_path / "plain")
    assert (tmp_path / "plain" / "mine").read_text() == "kept"
    with pytest.raises(InputError, match="no such folder"):
        export(str(tmp_path / "trained"), tmp_path / "not" / "there")


@pytest.mark.parametrize("name", ["ultrarm", "oasst"])
def test_layouts_of_others_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="published by others"):
        export(str(CASES[name].write(tmp_path)), tmp_path / "plain")
