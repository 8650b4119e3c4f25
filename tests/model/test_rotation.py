"""Rows so long that a model's rotary frequencies would follow the rest of their batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_config, write_base

from rmtrain.data.tokenize import TokenizedGroup
from rmtrain.errors import InputError
from rmtrain.model.positions import fixed_rotation, require_fixed_rotation
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone
from rmtrain.scoring import batches

LIMIT = 24
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": LIMIT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 64.0}
FAMILIES = {
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": LIMIT, "max_position_embeddings": 96},
    "llama": {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT},
}


def a_group(tokens: int, seed: int) -> TokenizedGroup:
    random = np.random.default_rng(seed)
    prefix, *suffixes = (random.integers(5, 60, n).astype(np.int32) for n in (tokens - 6, 6, 4))
    return TokenizedGroup(f"g{seed}", "", prefix, tuple(suffixes), (), False)


def load(folder: Path, family: str, packing: Any) -> RewardModel:
    write_base(folder, family, **FAMILIES[family])
    return load_backbone(str(folder), None, BackboneOptions("float32", packing=packing), pad_id=0, seed=0)


@pytest.mark.parametrize("packing", ["shared_prompt", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_within_the_limit_do_not_feel_each_other_and_longer_ones_are_refused(
    family: str, packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path, family, packing)
    short, whole, long = a_group(12, 1), a_group(LIMIT, 2), a_group(LIMIT + 9, 3)
    alone = [batches.score_groups(model, [group], 0, 1000)[0] for group in (short, whole)]
    together = batches.score_groups(model, [short, whole], 0, 1000)
    np.testing.assert_allclose(np.array(together), np.array(alone), atol=1e-5)
    with pytest.raises(InputError, match=rf"a row has {LIMIT + 9} tokens, and beyond {LIMIT}") as error:
        batches.score_groups(model, [short, long], 0, 1000)
    assert f"data.max_length to at most {LIMIT}" in error.value.hint
    monkeypatch.setattr(batches, "require_fixed_rotation", lambda *_: None)  # what the refusal is for
    beside = batches.score_groups(model, [short, long], 0, 1000)
    assert np.abs(np.array(beside[0]) - np.array(alone[0])).max() > 1e-4


def test_fixed_frequencies_have_no_limit() -> None:
    for family in ("mistral", "llama", "qwen2", "gpt2", "gemma3_text"):
        assert fixed_rotation(make_config(family)) is None
    require_fixed_rotation(make_config("llama"), 10**6)
    scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    assert fixed_rotation(make_config("llama", rope_parameters=scaled)) is None


def test_the_limit_is_the_least_of_all_kinds_of_layers() -> None:
    dynamic = make_config("llama", **FAMILIES["llama"])
    plain = {"rope_type": "default", "rope_theta": 1e4}
    dynamic.rope_parameters = {"full_attention": DYNAMIC, "sliding_attention": plain}
    assert fixed_rotation(dynamic) == LIMIT
