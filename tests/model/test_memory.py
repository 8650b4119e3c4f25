"""Memory as predicted from a config, against the tensors of the model itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups, make_tokenizer, write_base

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.model import activations
from rmtrain.model.activations import Activations, trial
from rmtrain.model.adapters import add_lora
from rmtrain.model.batch import GroupSize, pack
from rmtrain.model.memory import ModelSize, TrainedTensor, measure_model, optimizer_bytes
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


def made(base: Path, lora: LoraSection | None, dtype: str, quantization: str = "none") -> tuple[RewardModel, ModelSize]:
    """The model as a run loads it, and what is predicted of it from its config."""
    section = ModelSection.model_validate({"name": str(base), "dtype": dtype, "quantization": quantization})
    size = measure_model(load_config(str(base), None), section, lora)
    model = load_backbone(str(base), None, BackboneOptions(dtype, quantization), 0, seed=0, trainable=lora is None)
    return (add_lora(model, lora, seed=0) if lora else model), size


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
    model, size = made(bases[family], LORA[lora], dtype)
    parameters = list(model.module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    assert size.frozen_bytes == sum(p.nbytes for p in parameters if not p.requires_grad)
    assert size.trained_bytes == sum(p.nbytes for p in trained)
    batch = packed(2)
    model.module(**batch).logits.sum().backward()
    assert size.trained_bytes == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_is_exact_with_its_scales(bases: dict[str, Path], quantization: str) -> None:
    model, size = made(bases["mistral"], LORA["all"], "bfloat16", quantization)
    frozen = [p for p in model.module.parameters() if not p.requires_grad]
    assert size.frozen_bytes == sum(size for p in frozen for size in stored(p))


@pytest.mark.parametrize("lora", ["all", "full"])
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_optimiser_state_is_exact(bases: dict[str, Path], name: str, lora: str) -> None:
    model, size = made(bases["mistral"], LORA[lora], "float32")
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
    total, _ = optimizer_bytes(size.trained, name)
    assert total == found + sum(shared.values())


def test_only_large_tensors_are_paged() -> None:
    small, large = TrainedTensor(99_999, embedding=False), TrainedTensor(200_000, embedding=False)
    assert optimizer_bytes((small, large), "paged_adamw_8bit")[1] == 2 * 200_000
    assert optimizer_bytes((small, large), "adamw_8bit")[1] == 0


def tokenized(count: int) -> list[Any]:
    renderer = Renderer.for_tokenizer(make_tokenizer())
    return [
        group for group in tokenize_groups(make_groups(count, seed=1), Tokenization(renderer, 128, "error")) if group
    ]


def packed(count: int) -> dict[str, Any]:
    return dict(pack(tokenized(count), "shared_prompt", 0))


def foreseen(base: Path, lora: str, dtype: str, count: int, checkpointing: str | None = "none") -> Activations:
    section = ModelSection.model_validate({"name": str(base), "dtype": dtype})
    sizes = [GroupSize.of(group) for group in tokenized(count)]
    found = trial(load_config(str(base), None), section, LORA[lora], sizes, "shared_prompt", checkpointing)
    assert found is not None
    return found


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
@pytest.mark.parametrize("lora", ["all", "dropout", "dora", "queries and values", "full"])
@pytest.mark.parametrize("family", ["mistral", "llama", "qwen2", "gemma"])
def test_activations_are_within_15_percent(bases: dict[str, Path], family: str, lora: str, dtype: str) -> None:
    model, _ = made(bases[family], LORA[lora], dtype)
    model.module.train()
    assert foreseen(bases[family], lora, dtype, 12).kept == pytest.approx(kept_by_autograd(model, packed(12)), rel=0.15)


def test_recomputing_leaves_less_on_the_device(bases: dict[str, Path]) -> None:
    kinds = ("none", "selective", "full", None)
    found = [foreseen(bases["mistral"], "all", "bfloat16", 12, kind) for kind in kinds]
    assert [one.kept for one in found] == sorted((one.kept for one in found), reverse=True)
    assert [one.peak for one in found] == sorted((one.peak for one in found), reverse=True)
    assert len({one.kept for one in found[:3]}) == 3
    assert all(one.kept <= one.peak for one in found)


def test_every_layer_counts_as_much_as_the_second(bases: dict[str, Path], tmp_path: Path) -> None:
    deeper = write_base(tmp_path, "mistral", **(SHAPE | {"num_hidden_layers": 7}))
    four, seven = (foreseen(base, "all", "float32", 3) for base in (bases["mistral"], deeper))
    model, _ = made(deeper, LORA["all"], "float32")
    model.module.train()
    assert seven.kept == pytest.approx(kept_by_autograd(model, packed(3)), rel=0.05)
    assert seven.peak - seven.kept == pytest.approx(four.peak - four.kept)


def test_a_model_that_needs_real_numbers_to_run_is_not_predicted(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that sends each token to experts of its own."""
    monkeypatch.setattr(activations, "_run", lambda module, batch: batch["input_ids"].sum().item())
    section = ModelSection.model_validate({"name": str(bases["mistral"])})
    config = load_config(str(bases["mistral"]), None)
    assert trial(config, section, None, [GroupSize(4, (3, 2))], "shared_prompt") is None


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
