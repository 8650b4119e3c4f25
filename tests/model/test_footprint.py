"""Memory as predicted from a config, against the tensors of the model itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups, make_tokenizer, write_base

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import tokenize_groups
from rmtrain.model.adapters import add_lora
from rmtrain.model.batch import pack
from rmtrain.model.footprint import Census, Trained, activation_bytes, optimizer_bytes, take_census
from rmtrain.model.recompute import checkpointing_options
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone, load_config
from rmtrain.recipe.schema import LoraSection, ModelSection

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 4,
}
LORA = {
    "all": LoraSection(rank=8, alpha=8.0, dropout=0.0),
    "dropout": LoraSection(rank=8, alpha=8.0, dropout=0.1),
    "queries and values": LoraSection(rank=8, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj"]),
    "dora": LoraSection(rank=8, alpha=8.0, dropout=0.0, dora=True),
    "full": None,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: write_base(folder / family, family, **SHAPE) for family in ("mistral", "llama", "qwen2", "gemma")}


def made(base: Path, lora: LoraSection | None, dtype: str, quantization: str = "none") -> tuple[RewardModel, Census]:
    """The model as a run loads it, and what is predicted of it from its config."""
    section = ModelSection.model_validate({"name": str(base), "dtype": dtype, "quantization": quantization})
    census = take_census(load_config(str(base), None), section, lora)
    model = load_backbone(str(base), None, BackboneOptions(dtype, quantization), 0, seed=0, trainable=lora is None)
    return (add_lora(model, lora, seed=0) if lora else model), census


def stored(parameter: Any) -> Iterator[int]:
    """Bytes of a parameter, and of the state that its quantisation keeps beside it."""
    yield parameter.nbytes
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        for tensor in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code):
            yield tensor.nbytes
    if (scales := getattr(parameter, "SCB", None)) is not None:
        yield scales.nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", LORA)
@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_parameters_and_gradients_are_exact(bases: dict[str, Path], family: str, lora: str, dtype: str) -> None:
    model, census = made(bases[family], LORA[lora], dtype)
    parameters = list(model.module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    assert census.frozen_bytes == sum(p.nbytes for p in parameters if not p.requires_grad)
    assert census.trained_bytes == sum(p.nbytes for p in trained)
    batch = packed(2)
    model.module(**batch).logits.sum().backward()
    assert census.trained_bytes == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_is_exact_with_its_scales(bases: dict[str, Path], quantization: str) -> None:
    model, census = made(bases["mistral"], LORA["all"], "bfloat16", quantization)
    frozen = [p for p in model.module.parameters() if not p.requires_grad]
    assert census.frozen_bytes == sum(size for p in frozen for size in stored(p))


@pytest.mark.parametrize("lora", ["all", "full"])
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_optimiser_state_is_exact(bases: dict[str, Path], name: str, lora: str) -> None:
    model, census = made(bases["mistral"], LORA[lora], "float32")
    trained = [p for p in model.module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer: Any
    if name == "adamw":
        optimizer = torch.optim.AdamW(trained)
    else:
        import bitsandbytes as bnb

        optimizer = bnb.optim.AdamW8bit(trained)
        manager = bnb.optim.GlobalOptimManager.get_instance()
        for module in model.module.modules():  # as transformers' Trainer does
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    try:
        optimizer.step()
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"8-bit optimisers need a GPU: {error}")
    found, shared = 0, {}
    for state in optimizer.state.values():
        for key, value in state.items():
            if not torch.is_tensor(value):
                continue
            if key.startswith("qmap"):  # one table for all
                shared[key] = value.nbytes
            else:
                found += value.nbytes
    total, _ = optimizer_bytes(census.trained, name)
    assert total == found + sum(shared.values())


def test_only_large_tensors_are_paged() -> None:
    small, large = Trained(99_999, embedding=False), Trained(200_000, embedding=False)
    assert optimizer_bytes((small, large), "paged_adamw_8bit")[1] == 2 * 200_000
    assert optimizer_bytes((small, large), "adamw_8bit")[1] == 0


def packed(count: int) -> dict[str, Any]:
    renderer = Renderer.for_tokenizer(make_tokenizer())
    groups = [group for group in tokenize_groups(make_groups(count, seed=1), renderer, 128, "error") if group]
    return dict(pack(groups, "shared_prompt", renderer.pad_id))


def kept_by_autograd(model: RewardModel, batch: dict[str, Any]) -> int:
    """Bytes that the forward pass leaves for the backward pass, each storage once, parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    held: dict[int, Any] = {}

    def hold(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() and storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        model.module(**batch).logits.sum()
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", ["all", "dropout", "queries and values", "full"])
@pytest.mark.parametrize("family", ["mistral", "llama", "qwen2", "gemma"])
def test_activations_are_within_15_percent(bases: dict[str, Path], family: str, lora: str, dtype: str) -> None:
    model, census = made(bases[family], LORA[lora], dtype)
    model.module.train()
    batch = packed(12)
    found = activation_bytes(census, batch["input_ids"].numel(), "none", offloading=False)
    assert found is not None
    assert found.kept == pytest.approx(kept_by_autograd(model, batch), rel=0.15)


def test_recomputing_and_offloading_leave_less_on_the_device(bases: dict[str, Path]) -> None:
    _, census = made(bases["mistral"], LORA["all"], "bfloat16")

    def kept(checkpointing: str, offloading: bool = False) -> int:
        found = activation_bytes(census, 4096, checkpointing, offloading)
        assert found is not None
        return found.kept

    assert kept("none") > kept("selective") > kept("full")
    assert kept("none") > kept("none", offloading=True)
    moved = activation_bytes(census, 4096, "none", offloading=True)
    assert moved is not None
    assert moved.kept + moved.offloaded == kept("none")


def test_dora_is_said_to_be_unpredictable(bases: dict[str, Path]) -> None:
    _, census = made(bases["mistral"], LORA["dora"], "bfloat16")
    assert activation_bytes(census, 512, "none", offloading=False) is None


@pytest.mark.parametrize("lora", ["all", "full"])
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recomputed_gradients_are_those_that_were_kept(bases: dict[str, Path], kind: str, lora: str) -> None:
    batch, gradients = packed(3), []
    for checkpointing in ("none", kind):
        model, _ = made(bases["mistral"], LORA[lora], "float32")
        model.module.train()
        if checkpointing != "none":
            section = LORA[lora]
            options = checkpointing_options(kind, section.rank if section else 0)
            model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            if section:
                model.module.enable_input_require_grads()
        output = model.module(**batch)
        kept = kept_by_autograd(model, batch)
        output.logits.square().sum().backward()
        gradients.append(({n: p.grad for n, p in model.module.named_parameters() if p.requires_grad}, kept))
    (whole, all_kept), (again, some_kept) = gradients
    assert some_kept < all_kept
    for name, gradient in whole.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
