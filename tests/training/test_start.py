"""Runs that start from an adapter: a run folder, its `final/`, a PEFT folder; trained further, or merged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups, make_tokenizer
from training_cases import MAX_LENGTH, Recorder, flipped, make_recipe, make_renderer, make_splits, run, weights

from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.errors import CheckpointError, RunFailedError
from rmtrain.evaluation.export import export
from rmtrain.model.batch import pack
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.merged_base import merged_start
from rmtrain.model.reward_model import RewardModel
from rmtrain.model.start import build_model, find_start, recipe_renderer, start_config
from rmtrain.recipe.schema import ModelSection
from rmtrain.training.build import plan_run
from rmtrain.training.rehearsal import rehearse

GROUPS = make_groups(4, seed=7)


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = run(base, tmp_path_factory.mktemp("first"), optim__max_steps=3).run
    return folder


def rewards(model: RewardModel) -> torch.Tensor:
    tokenized = [
        group
        for group in tokenize_groups(GROUPS, Tokenization(make_renderer(), MAX_LENGTH, "error"))
        if group is not None
    ]
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


OTHER_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"rank": 8, "alpha": 8.0}, "lora.rank: 8 in the recipe, 4 in the adapter"),
    "targets": ({"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]}, "lora.targets: 4 layers in the recipe, 14"),
    "regex": ({"rank": 4, "alpha": 8.0, "targets": r"model\.layers\.1\..*proj"}, "lora.targets: 7 layers"),
    "dora": ({"rank": 4, "alpha": 8.0, "dora": True}, "lora.dora: True in the recipe, False in the adapter"),
}


@pytest.mark.parametrize(("lora", "said"), OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_an_adapter_of_another_shape_is_merged_and_a_new_one_begins_on_it(
    first: Path, base: Path, tmp_path: Path, lora: dict[str, Any], said: str
) -> None:
    recipe = make_recipe(first, tmp_path, lora=lora)
    (foretold,) = build_model(recipe, make_renderer().pad_id, on_meta=True).notes
    assert said in foretold
    expected = rewards(load_checkpoint(str(first / "final")).model)
    display = Recorder()
    again = run(first, tmp_path, display=display, optim__max_steps=2, lora=lora).run
    assert foretold.replace("RUN/base", str(again / "base")) in display.notes
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights(again / "base").values())
    assert f"({size:,} bytes in float32)" in foretold
    merged = build_model(recipe, make_renderer().pad_id, start=merged_start(again))
    assert expected.std() > 0.01
    torch.testing.assert_close(rewards(merged), expected, atol=1e-5, rtol=0)  # before the first step
    torch.testing.assert_close(rewards(load_checkpoint(str(again / "base")).model), expected, atol=1e-5, rtol=0)
    record = json.loads((again / "final" / "rmtrain.json").read_text())
    assert record["base"]["name"] == str(base)
    assert json.loads((again / "final" / "adapter_config.json").read_text())["r"] == lora["rank"]
    assert not torch.allclose(rewards(load_checkpoint(str(again / "final")).model), expected, atol=1e-4)


def test_a_dry_run_says_that_an_adapter_is_merged_and_writes_nothing(first: Path, tmp_path: Path) -> None:
    recipe = make_recipe(first, tmp_path / "runs", lora=OTHER_RANK)
    splits, renderer = make_splits(tmp_path / "cache", make_groups(8, seed=1)), make_renderer()
    notes = rehearse(recipe, splits, renderer, plan_run(recipe, splits, 1), None, False, Recorder())
    assert any("written once as RUN/base" in note for note in notes)
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def merged_run(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps on a merged base, with dropout, validated after step 3."""
    folder: Path = run(first, tmp_path_factory.mktemp("merged"), lora=OTHER_RANK, run__save_every=3.0).run
    return folder


OTHER_RANK = {"rank": 8, "alpha": 8.0, "dropout": 0.1}


def test_a_run_on_a_merged_base_is_resumed_exactly_and_merges_nothing_again(
    first: Path, merged_run: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / merged_run.name
    shutil.copytree(merged_run, stopped)
    for left in (stopped / "checkpoints" / "checkpoint-6", stopped / "final"):
        shutil.rmtree(left)
    before = (stopped / "base" / "model.safetensors").stat().st_mtime_ns
    run(first, tmp_path, lora=OTHER_RANK, run__save_every=3.0, resume=stopped)
    assert (stopped / "base" / "model.safetensors").stat().st_mtime_ns == before
    expected, found = weights(merged_run / "final"), weights(stopped / "final")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_folder_with_a_merged_base_can_be_moved_scored_exported_and_trained_on(
    merged_run: Path, tmp_path: Path
) -> None:
    expected = rewards(load_checkpoint(str(merged_run / "final")).model)
    kept, moved = tmp_path / "kept", tmp_path / "moved"
    shutil.copytree(merged_run, kept)
    merged_run.rename(moved)
    try:
        for place in ("final", "checkpoints/checkpoint-6"):
            torch.testing.assert_close(rewards(load_checkpoint(str(moved / place)).model), expected, atol=0, rtol=0)
        export(str(moved / "final"), tmp_path / "exported", "float32")
        plain = rewards(load_checkpoint(str(tmp_path / "exported")).model)
        torch.testing.assert_close(plain, expected, atol=1e-5, rtol=0)
        assert find_start(ModelSection(name=str(moved)))[::2] == (str(moved / "base"), moved / "final")
        flipped(moved / "base" / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"base/model\.safetensors: has changed since the adapter"):
            load_checkpoint(str(moved / "final"))
    finally:
        shutil.rmtree(moved)
        kept.rename(merged_run)


def test_a_merged_base_that_was_damaged_or_made_of_another_adapter_is_not_trained_on(
    first: Path, base: Path, merged_run: Path, tmp_path: Path
) -> None:
    def resume(start: Path) -> None:
        run(start, tmp_path, lora=OTHER_RANK, run__save_every=3.0, resume=stopped, allow_changes=True)

    stopped = tmp_path / merged_run.name
    shutil.copytree(merged_run, stopped)
    other = run(base, tmp_path / "other", optim__max_steps=1).run
    with pytest.raises(RunFailedError, match="was merged from another adapter than"):
        resume(other)
    flipped(stopped / "base" / "model.safetensors")
    with pytest.raises(RunFailedError, match=r"base/model\.safetensors: has changed"):
        resume(first)


def test_a_damaged_adapter_is_refused_before_anything_starts(first: Path, tmp_path: Path) -> None:
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
