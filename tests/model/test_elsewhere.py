"""The final model of a LoRA run as TRL's GRPO takes it: by its folder, with its own tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_config, make_tokenizer, save_reward_model, write_base

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.data.types import Message, PreferenceGroup
from rmtrain.model.adapters import add_lora
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.recipe.schema import LoraSection
from rmtrain.scoring.batches import score_groups


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of TRL and what it brings
@pytest.mark.parametrize("pad", [None, 2])
def test_grpo_gives_the_rewards_of_rmtrain(tmp_path: Path, pad: int | None) -> None:
    """On a base without a pad token, and on one that has its end token as such."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    base, final, policy = write_base(tmp_path / "base", pad_token_id=pad), tmp_path / "final", tmp_path / "policy"
    renderer = Renderer.for_tokenizer(make_tokenizer())
    model = add_lora(load_backbone(str(base), None, BackboneOptions("float32"), None, seed=0), LoraSection(rank=2), 0)
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    save_reward_model(model.module, renderer, final, {"recipe": {"model": {"dtype": "float32"}}})
    AutoModelForCausalLM.from_config(make_config()).save_pretrained(policy)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(policy)

    prompts = [" ".join(WORDS[i : i + 1 + i % 3]) for i in range(4)]
    seen: list[tuple[Any, Any]] = []

    class Recording(GRPOTrainer):  # type: ignore[misc]
        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, *rest: Any) -> Any:
            rewards = super()._calculate_rewards(inputs, prompts, completions, *rest)
            seen.extend(zip(zip(prompts, completions, strict=True), rewards[:, 0].tolist(), strict=True))
            return rewards

    trainer = Recording(
        model=str(policy),
        reward_funcs=str(final),
        reward_processing_classes=AutoTokenizer.from_pretrained(final),
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=5,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in prompts]),
    )
    trainer.train()
    assert len(seen) == 4
    groups = [
        PreferenceGroup(str(index), tuple(Message(**m) for m in prompt), (tuple(Message(**m) for m in completion),), ())
        for index, ((prompt, completion), _) in enumerate(seen)
    ]
    checkpoint = load_checkpoint(str(final))
    tokens = [
        group for group in tokenize_groups(groups, Tokenization(checkpoint.renderer, 64, "error")) if group is not None
    ]
    mine = torch.tensor([rewards[0] for rewards in score_groups(checkpoint.model, tokens, renderer.pad_id, 1000)])
    assert mine.std() > 0.05
    torch.testing.assert_close(torch.tensor([reward for _, reward in seen]), mine, atol=1e-5, rtol=0)
