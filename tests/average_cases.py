"""Small reward models that were trained from one base, as parts of averages and ensembles."""

from pathlib import Path
from typing import Any

import torch
from conftest import make_tokenizer, save_reward_model

from rmtrain.data.render import Renderer
from rmtrain.model.adapters import add_lora
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.recipe.schema import LoraSection

LORA = LoraSection(rank=2, alpha=4.0)


def make_part(
    folder: Path,
    base: Path,
    noise: int,
    lora: LoraSection | None = LORA,
    *,
    seed: int = 0,
    start: Path | None = None,
    quantization: str = "none",
    tokenizer: Any = None,
    **saved: Any,
) -> Path:
    """A model as after some training, by its own noise, with the record that a run leaves beside it."""
    renderer = Renderer.for_tokenizer(tokenizer or make_tokenizer())
    model = load_backbone(str(base), None, BackboneOptions("float32"), renderer.pad_id, seed, trainable=lora is None)
    model = model if lora is None else add_lora(model, lora, seed)
    generator = torch.Generator().manual_seed(noise)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    section = {"name": str(start or base), "dtype": "float32", "quantization": quantization}
    recipe = {"model": section, "data": {"source": "demo", "max_length": 64}, "run": {"seed": seed}}
    record = {"recipe": recipe, "base": {"name": str(base), "commit": None}}
    save_reward_model(model.module.to(saved.pop("dtype", torch.float32)), renderer, folder, record)
    return folder
