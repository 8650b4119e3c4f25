"""Compiled layers: a few graphs for all layouts, rewards and draws as without, and a failure that is said."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_base
from packing_cases import VOCABULARY, awkward_groups, group
from transformers import AutoConfig

from rmtrain.data.cache_entry import cache_folder
from rmtrain.model import compiling
from rmtrain.model.activations import _kept_of_a_layer, saved_by_compiling
from rmtrain.model.adapters import add_lora
from rmtrain.model.batch import GroupSize, pack
from rmtrain.model.compiling import compile_layers, uncompiled
from rmtrain.model.recompute import checkpointing_options
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.recipe.schema import LoraSection, ModelSection

# torch's compiler warns itself, of the gradients that it looks at, and hides that by a way that errors get around
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")]


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers are traced and split as always, and the graphs run as they are: C++ takes most of the time."""
    from torch._functorch._aot_autograd.utils import make_boxed_func

    monkeypatch.setattr(
        compiling._Backend, "_inner", lambda self, graph, *rest, **options: make_boxed_func(graph.forward)
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def adapted(folder: Path, dropout: float = 0.0, quantization: str = "none") -> Any:
    model = load_backbone(str(folder), None, BackboneOptions("float32", quantization=quantization), 0, seed=0)
    module = add_lora(model, LoraSection(rank=2, alpha=4.0, dropout=dropout), seed=0).module.train()
    drawn = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=drawn)
    return module


def step(module: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module.zero_grad()
    rewards = module(**batch).logits
    rewards.square().sum().backward()
    return rewards.detach(), torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad])


def kept(module: Any, batch: Any) -> int:
    """Bytes that a forward pass keeps for its backward pass."""
    sizes = list[int]()

    def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        module(**batch)
    return sum(sizes)


def test_what_compiled_layers_keep_less_is_predicted_without_weights(traced: None, tmp_path: Path) -> None:
    folder, groups = write_base(tmp_path / "base", num_hidden_layers=2), awkward_groups()
    plain, compiled = adapted(folder), adapted(folder)
    compile_layers(compiled, print)
    batch = pack(groups, "shared_prompt", 0)
    saved = 2 * (_kept_of_a_layer(plain, batch) - _kept_of_a_layer(compiled, batch))
    torch._dynamo.reset()
    sizes = [GroupSize(len(group.prefix), tuple(map(len, group.suffixes))) for group in groups]
    model, lora = ModelSection(name="base", dtype="float32"), LoraSection(rank=2, alpha=4.0)
    config = AutoConfig.from_pretrained(folder)
    predicted = saved_by_compiling(config, model, lora, sizes, "shared_prompt")
    assert saved > 0
    assert predicted == pytest.approx(saved, rel=0.02)
    assert saved_by_compiling(config, model, lora, sizes * 2, "shared_prompt") == pytest.approx(2 * predicted, rel=0.02)


def test_layers_that_can_not_be_traced_are_taken_as_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._dynamo.backends.common.aot_autograd", lambda **_: 1 / 0)
    config = AutoConfig.from_pretrained(write_base(tmp_path / "base"))
    model, sizes = ModelSection(name="base", dtype="float32"), [GroupSize(3, (4, 5))]
    assert saved_by_compiling(config, model, None, sizes, "shared_prompt") == 0


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("recomputed", "quantization"), [(False, "none"), (True, "none"), (False, "nf4")])
def test_layers_of_any_layout_share_the_first_graphs(
    traced: None, tmp_path: Path, recomputed: bool, quantization: str
) -> None:
    from torch._dynamo.utils import counters

    folder = write_base(tmp_path / "base", num_hidden_layers=2)
    plain, compiled = (adapted(folder, 0.1, quantization) for _ in range(2))
    if recomputed:
        for module in (plain, compiled):
            module.base_model.model.activation_checkpointing_enable(checkpointing_options("full", 2))
    names = [name for name, _ in compiled.named_parameters()]
    assert compile_layers(compiled, print) == 2
    assert [name for name, _ in compiled.named_parameters()] == names
    drawn, graphs = np.random.default_rng(0), []

    def words(count: int) -> list[int]:
        return drawn.integers(5, VOCABULARY, count).tolist()  # type: ignore[no-any-return]

    counters.clear()
    for number in range(50):  # layouts of one to three groups of one to four completions
        groups = [
            group(words(p), [words(n) for n in drawn.integers(0, 9, k)])
            for p, k in zip(drawn.integers(1, 12, 1 + number % 3), drawn.integers(1, 5, 3), strict=False)
        ]
        batch = pack(groups, "shared_prompt", 0)
        rewards, gradient = step(compiled, batch)
        graphs.append(counters["stats"]["unique_graphs"])
        if number % 10 == 0:
            expected = step(plain, batch)
            torch.testing.assert_close(rewards, expected[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(gradient, expected[1], atol=1e-4, rtol=1e-4)
    assert 0 < graphs[0] == graphs[-1] < 9
    if quantization != "none":  # scored on a CPU, bitsandbytes wants rows of 64 values
        return
    if not recomputed:
        assert kept(compiled, batch) < kept(plain, batch)
    batch = pack(awkward_groups(), "shared_prompt", 0)
    with torch.no_grad(), uncompiled(compiled):
        assert torch.equal(compiled.eval()(**batch).logits, plain.eval()(**batch).logits)


def test_a_graph_that_can_not_be_compiled_runs_as_it_is_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", lambda *args, **kwargs: 1 / 0)
    folder, notes = write_base(tmp_path / "base"), list[str]()
    plain, compiled = adapted(folder), adapted(folder)
    compile_layers(compiled, notes.append)
    batch = pack(awkward_groups(), "shared_prompt", 0)
    for ours, theirs in zip(step(compiled, batch), step(plain, batch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert notes == ["compiling failed, so the layers run uncompiled: division by zero"]
    torch._dynamo.reset()


def test_a_layer_that_can_not_be_traced_runs_as_it_is_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(compiling._Backend, "__call__", lambda *args: 1 / 0)
    folder, notes = write_base(tmp_path / "base"), list[str]()
    plain, compiled = adapted(folder, 0.1), adapted(folder, 0.1)
    compile_layers(compiled, notes.append)
    batch = pack(awkward_groups(), "shared_prompt", 0)
    for ours, theirs in zip(step(compiled, batch), step(plain, batch), strict=True):
        assert torch.equal(ours, theirs)
    assert len(notes) == 1
    assert "division by zero" in notes[0]
    assert "\n" not in notes[0]
    assert "Traceback" not in capfd.readouterr().err
    torch._dynamo.reset()


@pytest.mark.timeout(1000)
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.skipif(os.environ.get("RMTRAIN_REHEARSE_GPU") != "1", reason="its C++ takes a minute: in rehearsals only")
def test_compiled_code_is_kept_and_draws_the_same_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "to be put back")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder, notes = write_base(tmp_path / "base", num_hidden_layers=1), list[str]()
    plain, compiled = adapted(folder, 0.2), adapted(folder, 0.2)
    compile_layers(compiled, notes.append)
    batch = pack(awkward_groups(), "shared_prompt", 0)
    for ours, theirs in zip(step(compiled, batch), step(plain, batch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert notes == []
    assert any((cache_folder() / "compiled").rglob("*.cpp"))
    torch._dynamo.reset()
