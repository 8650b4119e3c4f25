"""Rows and models for scoring as the leaderboard's runner did."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TEMPLATE, make_config, make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification

from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.data.types import Message, Preference, PreferenceGroup
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.reward_model import BackboneOptions
from rmtrain.scoring.run_rm import RunnerScorer, RunnerSettings


def pair(index: int, prompt: str, chosen: str, rejected: str) -> PreferenceGroup:
    completions = ((Message("assistant", chosen),), (Message("assistant", rejected),))
    return PreferenceGroup(f"r{index}", (Message("user", prompt),), completions, (Preference(0, 1),), "made")


def random_pairs(count: int, seed: int = 0) -> list[PreferenceGroup]:
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 60, rng.integers(2, 14)))

    return [pair(i, text(), text(), text()) for i in range(count)]


def write_model(folder: Path, family: str = "mistral", pad: str | None = "<unk>", side: str = "right") -> Path:
    """A random reward model whose tokenizer adds the BOS that its template writes too."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.chat_template, tokenizer.padding_side, tokenizer.pad_token = TEMPLATE, side, pad
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = make_config(family, initializer_range=0.3, num_labels=1, pad_token_id=tokenizer.pad_token_id)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def scorer(
    folder: Path,
    groups: list[PreferenceGroup],
    dtype: str = "float32",
    max_length: int = 512,
    quantization: str = "none",
    **options: Any,
) -> RunnerScorer:
    loaded = BackboneOptions(dtype, quantization, packing="none")
    checkpoint = load_checkpoint(str(folder), options=loaded, prompt=options.pop("prompt", None))
    tokenized = [
        g for g in tokenize_groups(groups, Tokenization(checkpoint.renderer, max_length, "truncate_prompt")) if g
    ]
    return RunnerScorer(checkpoint, groups, tokenized, **options)


def at(rows: RunnerScorer, step: int) -> RunnerSettings:
    return rows.steps()[step][1]


def rewards_of(rows: RunnerScorer, step: int) -> np.ndarray:
    return np.array(rows.score([at(rows, step)])[0])
