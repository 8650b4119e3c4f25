"""Parameters of a recipe's model, counted on the meta device: no weights are loaded."""

from typing import Any

import torch
from transformers import PretrainedConfig

from rmtrain.model.adapters import adapter_config
from rmtrain.model.forward import HEAD
from rmtrain.model.reward_model import reward_model_class
from rmtrain.recipe.schema import LoraSection


def count_parameters(config: PretrainedConfig, lora: LoraSection | None) -> dict[str, int]:
    """Parameters in all, trained, and of the score head.

    Args:
        config: of the backbone.
        lora: the recipe's section; None trains everything.
    """
    with torch.device("meta"):
        module: Any = reward_model_class(config)(config)
        if lora is not None:
            from peft import get_peft_model

            module = get_peft_model(module, adapter_config(lora))
    parameters = dict(module.named_parameters())
    return {
        "parameters": sum(p.numel() for n, p in parameters.items() if ".original_module." not in n),
        "parameters_trained": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "parameters_of_score_head": sum(
            p.numel() for n, p in parameters.items() if f"{HEAD}." in n and p.requires_grad
        ),
    }
