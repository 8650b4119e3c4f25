"""LoRA adapters of others as PEFT saves them: grown vocabularies, bases' tokenizers, heads with several labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_config, make_groups, make_tokenizer

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.errors import CheckpointError, InputError
from rmtrain.evaluation.export import export
from rmtrain.model.batch import pack
from rmtrain.model.checkpoint import Checkpoint, load_checkpoint
from rmtrain.model.memory import meta_model
from rmtrain.recipe.schema import LoraSection

GROUPS = make_groups(2, seed=5)


def write_adapter(
    base: Path, folder: Path, tokenizer: Any = None, labels: int = 1, **lora: Any
) -> tuple[Any, torch.Tensor]:
    """What PEFT alone writes of a model with weights as after some training, and its logits of GROUPS, row by row."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
    if tokenizer is not None:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tokenizer.save_pretrained(folder)
    model.config.pad_token_id = None
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], **lora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    renderer = Renderer.for_tokenizer(make_tokenizer())
    rows = renderer.tokenize([group.prompt + completion for group in GROUPS for completion in group.completions])
    with torch.no_grad():
        return model, torch.stack([model.eval()(input_ids=torch.tensor([ids])).logits[0] for ids in rows])


def rewards_of(checkpoint: Checkpoint) -> torch.Tensor:
    tokenized = [
        group for group in tokenize_groups(GROUPS, Tokenization(checkpoint.renderer, 64, "error")) if group is not None
    ]
    with torch.no_grad():
        batch = pack(tokenized, checkpoint.model.packing, checkpoint.renderer.pad_id)
        return checkpoint.model.module(**batch).logits  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["score", "embed_tokens"]}], ids=["resized", "trained"])
def test_a_vocabulary_grown_by_a_pad_token_is_that_of_the_adapter(
    base: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    _, truth = write_adapter(base, tmp_path, tokenizer, **lora)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.renderer.pad_id == 65
    assert checkpoint.model.module.config.vocab_size == 66
    torch.testing.assert_close(rewards_of(checkpoint), truth[:, 0], atol=1e-5, rtol=0)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(base: Path, tmp_path: Path) -> None:
    _, truth = write_adapter(base, tmp_path)
    torch.testing.assert_close(rewards_of(load_checkpoint(str(tmp_path))), truth[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("label", "index"), [("0", 0), ("1", 1), ("LABEL_1", 1)])
def test_one_label_of_an_adapter_is_the_reward(base: Path, tmp_path: Path, label: str, index: int) -> None:
    _, truth = write_adapter(base, tmp_path, make_tokenizer(), labels=2)
    checkpoint = load_checkpoint(str(tmp_path), label=label)
    torch.testing.assert_close(rewards_of(checkpoint), truth[:, index], atol=1e-5, rtol=0)
    assert checkpoint.published == {"layout": "a LoRA adapter", "prompt": None, "label": index}
    assert checkpoint.fingerprint != checkpoint.weights


def test_an_adapter_with_two_labels_says_how_to_name_one(base: Path, tmp_path: Path) -> None:
    write_adapter(base, tmp_path, make_tokenizer(), labels=2)
    with pytest.raises(CheckpointError, match="its score head has 2 labels") as caught:
        load_checkpoint(str(tmp_path))
    assert "--label: LABEL_0, LABEL_1" in (caught.value.hint or "")
    with pytest.raises(CheckpointError, match="its score head has 2 labels") as caught:
        export(str(tmp_path), tmp_path / "whole")
    assert "choose another checkpoint; `rmtrain eval --label NAME`" in (caught.value.hint or "")
    with pytest.raises(InputError, match="there is no label 'good'"):
        load_checkpoint(str(tmp_path), label="good")


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (r".*layers\.1\.self_attn\.[qv]_proj", ["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]),
        (r"model\.layers\.0\.mlp\.up_proj", ["layers.0.mlp.up_proj"]),
    ],
)
def test_a_regular_expression_names_layers_by_their_whole_names(targets: str, adapted: list[str]) -> None:
    module = meta_model(make_config(), LoraSection(rank=2, targets=targets))
    found = {name.split(".lora_A")[0] for name, _ in module.named_parameters() if ".lora_A." in name}
    assert sorted(name.split("model.")[-1] for name in found) == adapted
    assert [n for n, p in module.named_parameters() if "score" in n and p.requires_grad]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("q_proj", r"no layer's whole name fits the regular expression 'q_proj'"),
        (r".*layers\.9\..*", "no layer's whole name fits"),
        (r".*(score|q_proj)", "fits the score head"),
    ],
)
def test_a_regular_expression_that_fits_no_layer_or_the_head_is_refused(targets: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        meta_model(make_config(), LoraSection(rank=2, targets=targets))
    assert caught.value.hint
