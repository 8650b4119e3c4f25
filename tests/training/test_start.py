"""Runs that start from an adapter: a run folder, its `final/`, a PEFT folder; trained further, or merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups, make_tokenizer
from training_cases import MAX_LENGTH, make_recipe, make_renderer, run

from rmtrain.data.tokenize import tokenize_groups
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.batch import pack
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.start import build_model, find_start, recipe_renderer, start_config
from rmtrain.recipe.schema import ModelSection

GROUPS = make_groups(4, seed=7)


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = run(base, tmp_path_factory.mktemp("first"), optim__max_steps=3).run
    return folder


def rewards(model: RewardModel) -> torch.Tensor:
    tokenized = [group for group in tokenize_groups(GROUPS, make_renderer(), MAX_LENGTH, "error") if group is not None]
    with torch.no_grad():
        return model.module.eval()(**pack(tokenized, model.packing, 0)).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", [".", "final"])
@pytest.mark.parametrize("lora", [True, False], ids=["trained further", "merged"])
def test_the_rewards_before_the_first_step_are_the_adapter_s(
    first: Path, base: Path, tmp_path: Path, place: str, lora: bool
) -> None:
    expected = rewards(load_checkpoint(str(first / "final")).model)
    recipe = make_recipe(first / place, tmp_path, **({} if lora else {"lora": None}))
    assert find_start(recipe.model)[::2] == (str(base), (first / "final").resolve())
    recipe_renderer(recipe.model)
    start_config(recipe)
    model = build_model(recipe, make_renderer().pad_id)
    torch.testing.assert_close(rewards(model), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    said = "which is trained further" if lora else "merged into it"
    assert any(said in note for note in model.notes)
    trained = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "score" in name for name in trained) == lora
    assert any("score" in name for name in trained)


@pytest.mark.parametrize("lora", [True, False], ids=["trained further", "merged"])
def test_what_comes_of_it_is_a_whole_checkpoint(first: Path, tmp_path: Path, base: Path, lora: bool) -> None:
    again = run(first, tmp_path, optim__max_steps=2, **({} if lora else {"lora": None})).run
    after = rewards(load_checkpoint(str(again / "final")).model)
    assert not torch.allclose(after, rewards(load_checkpoint(str(first / "final")).model), atol=1e-4)
    if lora:
        named = json.loads((again / "final" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == str(base)
    run(first, tmp_path, optim__max_steps=2, resume=again, **({} if lora else {"lora": None}))


def test_an_adapter_of_another_shape_is_refused_before_anything_starts(first: Path, tmp_path: Path) -> None:
    recipe = make_recipe(first, tmp_path, lora={"rank": 8, "alpha": 8.0})
    for check in (start_config, lambda each: build_model(each, 0)):
        with pytest.raises(InputError, match=r"lora\.rank: 8 in the recipe, 4 there") as error:
            check(recipe)
        assert error.value.hint.endswith(
            f"rmtrain export --ckpt {first} --output merged, then rmtrain train RECIPE model.name=merged"
        )


def test_a_damaged_adapter_is_refused_before_anything_starts(first: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(first / "final", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    section = ModelSection(name=str(tmp_path / "adapter"))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: has changed since it was saved"):
        recipe_renderer(section)
    recipe_renderer(section, verify=False)


def test_a_head_of_two_labels_is_refused_before_anything_starts(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model.save_pretrained(tmp_path / "two")
    make_renderer().save_pretrained(tmp_path / "two")
    with pytest.raises(CheckpointError, match="its score head has 2 labels"):
        recipe_renderer(ModelSection(name=str(tmp_path / "two")))


@pytest.fixture(params=["resized", "trained"])
def grown(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> Path:
    """An adapter whose vocabulary has one token more than its base's, with its embeddings beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    more = {"modules_to_save": ["score", "embed_tokens"]} if request.param == "trained" else {}
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"], **more))
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    return tmp_path / "grown"


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8, "targets": ["q_proj"]}, None], ids=["further", "merged"])
def test_an_adapter_with_a_grown_vocabulary_is_trained_further(
    grown: Path, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    recipe = make_recipe(grown, tmp_path, lora=lora)
    pad = recipe_renderer(recipe.model).pad_id
    assert build_model(recipe, pad, on_meta=True).module.config.vocab_size == 66  # as a dry run does
    torch.testing.assert_close(
        rewards(build_model(recipe, pad)), rewards(load_checkpoint(str(grown)).model), atol=1e-5, rtol=0
    )
    again = run(grown, tmp_path, lora=lora, optim__max_steps=2).run
    trained = load_checkpoint(str(again / "final"))
    assert trained.model.module.config.vocab_size == 66
    run(grown, tmp_path, lora=lora, optim__max_steps=2, resume=again)
