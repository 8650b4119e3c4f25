"""The way from a quantised base back to float32."""

from pathlib import Path

import pytest
import torch
from conftest import write_base

from rmtrain.model.quantization import dequantise, in_float32, is_quantised
from rmtrain.model.reward_model import BackboneOptions, load_backbone

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:MatMul8bitLt")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "wide", hidden_size=64)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_plain_layers_hold_what_the_quantised_ones_stood_for(wide: Path, kind: str) -> None:
    import bitsandbytes.functional as bnb

    module = load_backbone(str(wide), None, BackboneOptions("bfloat16", kind), 0, seed=0).module
    assert is_quantised(module)
    weight = module.model.layers[0].mlp.up_proj.weight
    if kind == "nf4":
        truth = bnb.dequantize_4bit(weight.data, weight.quant_state).float()
    else:
        truth = bnb.int8_vectorwise_dequant(weight.data, weight.SCB).float()
    plain = dequantise(module)
    in_float32(plain)
    assert not is_quantised(plain)
    assert not hasattr(plain.config, "quantization_config")
    found = plain.model.layers[0].mlp.up_proj
    assert type(found) is torch.nn.Linear
    torch.testing.assert_close(found.weight.data, truth, atol=4e-3 if kind == "int8" else 0, rtol=0)


def test_float32_is_held_and_computed_everywhere(base: Path) -> None:
    module = load_backbone(str(base), None, BackboneOptions("bfloat16"), 0, seed=0).module
    before = {name: parameter.detach().float() for name, parameter in module.named_parameters()}
    in_float32(module)
    assert module.compute_dtype == torch.float32
    for name, parameter in module.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])
