"""Saved reward models, opened by readers that know nothing of rmtrain; damaged ones, refused by name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_groups, make_tokenizer, save_reward_model, write_base
from safetensors.torch import load_file, save_file

from rmtrain.data.render import Renderer
from rmtrain.data.tokenize import Tokenization, tokenize_groups
from rmtrain.errors import CheckpointError, InputError
from rmtrain.model.adapters import add_lora
from rmtrain.model.batch import pack
from rmtrain.model.checkpoint import Checkpoint, load_checkpoint
from rmtrain.model.memory import count_parameters
from rmtrain.model.reward_model import BackboneOptions, RewardModel, load_backbone
from rmtrain.model.saving import merge, save_final
from rmtrain.model.start import recipe_renderer, start_config
from rmtrain.model.weights import fingerprint_of, weight_files
from rmtrain.recipe.schema import LoraSection, ModelSection, Recipe

GROUPS = make_groups(3, seed=5)
SIDECAR = {
    "recipe": {
        "model": {"dtype": "float32", "quantization": "none", "attention": "auto", "packing": "shared_prompt"},
        "data": {"max_length": 64},
    }
}
# what a user of plain transformers and PEFT writes: a batch of one, the tokenizer's own template
READER = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
kinds, folder, base, rows = sys.argv[1:]
rewards = {}
for kind in kinds.split():
    if kind == "peft":
        from peft import PeftModel
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rewards[kind] = []
    with torch.no_grad():
        for messages in json.loads(rows):
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
            rewards[kind].append(model.eval()(input_ids=ids).logits[0, 0].item())
assert not any(name.split(".")[0] == "rmtrain" for name in sys.modules)
print(json.dumps(rewards))
"""


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer.for_tokenizer(make_tokenizer())


def trained(base: Path, lora: bool, renderer: Renderer, **kind: Any) -> RewardModel:
    """A model with weights as after some training; `kind` says which kind of adapter."""
    options = BackboneOptions("float32")
    model = load_backbone(str(base), None, options, renderer.pad_id, seed=0, trainable=not lora)
    model = add_lora(model, LoraSection(rank=2, alpha=4.0, **kind), seed=0) if lora else model
    generator = torch.Generator().manual_seed(0)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def rewards_of(model: RewardModel, renderer: Renderer) -> torch.Tensor:
    tokenized = [group for group in tokenize_groups(GROUPS, Tokenization(renderer, 64, "error")) if group is not None]
    with torch.no_grad():
        return model.module(**pack(tokenized, model.packing, renderer.pad_id)).logits  # type: ignore[no-any-return]


class Saved:
    """A model and the folder that it was saved to."""

    def __init__(self, base: Path, folder: Path, renderer: Renderer, lora: bool) -> None:
        self.base, self.folder, self.renderer, self.lora = base, folder, renderer, lora
        model = trained(base, lora, renderer)
        save_reward_model(model.module, renderer, folder, SIDECAR)
        self.rewards = rewards_of(model, renderer)

    @property
    def weights(self) -> Path:
        return self.folder / ("adapter_model.safetensors" if self.lora else "model.safetensors")

    @property
    def config(self) -> Path:
        return self.folder / ("adapter_config.json" if self.lora else "config.json")

    @property
    def contract(self) -> Path:
        return self.folder / "rmtrain.json"


@pytest.fixture(scope="module", params=["adapter", "whole"])
def saved(request: pytest.FixtureRequest, base: Path, renderer: Renderer, tmp_path_factory: Any) -> Saved:
    return Saved(base, tmp_path_factory.mktemp("saved") / request.param, renderer, request.param == "adapter")


@pytest.fixture
def copy(saved: Saved, tmp_path: Path) -> Saved:
    """A copy that a test may damage."""
    twin = object.__new__(Saved)
    twin.__dict__.update(saved.__dict__, folder=tmp_path / "copy")
    shutil.copytree(saved.folder, twin.folder)
    return twin


def same(checkpoint: Checkpoint, saved: Saved, tolerance: float = 1e-5) -> None:
    mine = rewards_of(checkpoint.model, checkpoint.renderer)
    torch.testing.assert_close(mine, saved.rewards, atol=tolerance, rtol=0)


# Whole ones


@pytest.mark.slow
def test_plain_readers_read_the_same_rewards(saved: Saved) -> None:
    kinds = ["transformers", "peft"] if saved.lora else ["transformers"]
    rows = [[m.as_dict() for m in group.prompt + completion] for group in GROUPS for completion in group.completions]
    done = subprocess.run(
        [sys.executable, "-c", READER, " ".join(kinds), str(saved.folder), str(saved.base), json.dumps(rows)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [*found] == kinds
    for theirs in map(torch.tensor, found.values()):
        assert theirs.std() > 0.1
        torch.testing.assert_close(theirs, saved.rewards, atol=1e-5, rtol=0)


def test_transformers_alone_opens_the_folder_and_reads_padded_batches(saved: Saved) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved.folder)
    assert tokenizer.pad_token_id == saved.renderer.pad_id
    model = AutoModelForSequenceClassification.from_pretrained(
        saved.folder, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id
    ).eval()
    rows = [[m.as_dict() for m in GROUPS[0].prompt + completion] for completion in GROUPS[0].completions]
    texts = tokenizer.apply_chat_template(rows, tokenize=False)
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            rewards = model(**batch).logits[:, 0]
        torch.testing.assert_close(rewards, saved.rewards[: len(texts)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [{"dora": True}, {"dora": True, "rslora": True}, {"targets": ["q_proj"]}], ids=str)
def test_every_kind_of_adapter_has_the_same_rewards_in_transformers_alone(
    tmp_path: Path, base: Path, renderer: Renderer, kind: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model, final = trained(base, True, renderer, **kind), tmp_path / "final"
    save_reward_model(model.module, renderer, tmp_path / "checkpoint", SIDECAR)
    save_final(tmp_path / "checkpoint", final, "float32")
    truth = rewards_of(model, renderer)
    for folder in (tmp_path / "checkpoint", final):
        torch.testing.assert_close(rewards_of(load_checkpoint(str(folder)).model, renderer), truth, atol=1e-5, rtol=0)
    wrapped = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    alone = AutoModelForSequenceClassification.from_pretrained(final, num_labels=1, dtype=torch.float32)
    rows = [group.prompt + completion for group in GROUPS for completion in group.completions]
    for plain in (alone.eval(), PeftModel.from_pretrained(wrapped, final).eval()):
        with torch.no_grad():
            rewards = [plain(input_ids=torch.tensor([ids])).logits[0, 0] for ids in renderer.tokenize(rows)]
        torch.testing.assert_close(torch.stack(rewards), truth, atol=1e-5, rtol=0)


def test_a_config_lies_beside_a_whole_model_alone(saved: Saved) -> None:
    assert (saved.folder / "config.json").exists() != saved.lora  # transformers would look for the base's weights there
    if not saved.lora:
        config = json.loads((saved.folder / "config.json").read_text())
        assert config["architectures"] == ["MistralForSequenceClassification"]
        assert (config["pad_token_id"], config["problem_type"]) == (saved.renderer.pad_id, "regression")
        assert list(config["id2label"]) == ["0"]
    mine = json.loads((saved.folder / "tokenizer_config.json").read_text())
    assert mine["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert mine["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("pad", [None, 2])
def test_an_adapter_opens_on_a_base_whose_own_pad_token_would_not_do(
    tmp_path: Path, renderer: Renderer, pad: int | None
) -> None:
    """None, where batches are refused, and the end token, at which a reward is read."""
    from transformers import AutoModelForSequenceClassification

    saved = Saved(write_base(tmp_path / "base", pad_token_id=pad), tmp_path / "adapter", renderer, lora=True)
    same(load_checkpoint(str(saved.folder)), saved)
    given = {} if pad is None else {"pad_token_id": renderer.pad_id}
    model = AutoModelForSequenceClassification.from_pretrained(saved.folder, num_labels=1, dtype=torch.float32, **given)
    rows = renderer.tokenize([GROUPS[0].prompt + completion for completion in GROUPS[0].completions])
    with torch.no_grad():
        rewards = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in rows])
    torch.testing.assert_close(rewards, saved.rewards[: len(rows)], atol=1e-5, rtol=0)


def test_adapters_of_earlier_versions_with_a_config_beside_them_are_read(copy: Saved, tmp_path: Path) -> None:
    if not copy.lora:
        pytest.skip("a whole model has its config still")
    config = json.loads((copy.base / "config.json").read_text())
    (copy.folder / "config.json").write_text(json.dumps({**config, "num_labels": 1, "pad_token_id": 0}))
    same(load_checkpoint(str(copy.folder)), copy)
    save_final(copy.folder, tmp_path / "final", "float32")
    assert not (tmp_path / "final" / "config.json").exists()


def test_a_checkpoint_comes_back_as_it_was_trained(saved: Saved) -> None:
    checkpoint = load_checkpoint(str(saved.folder))
    same(checkpoint, saved)
    assert (checkpoint.max_length, checkpoint.model.packing) == (64, "shared_prompt")
    assert checkpoint.scoring.contract == saved.renderer.contract()
    assert not checkpoint.model.module.training
    assert load_checkpoint(str(saved.folder)).fingerprint == checkpoint.fingerprint


@pytest.mark.parametrize("packing", ["padding_free", "none"])
def test_options_change_how_it_runs_and_not_what_it_says(saved: Saved, packing: Any) -> None:
    same(load_checkpoint(str(saved.folder), options=BackboneOptions("float32", packing=packing)), saved)
    half = load_checkpoint(str(saved.folder), options=BackboneOptions("bfloat16", packing=packing))
    assert not torch.equal(rewards_of(half.model, half.renderer), saved.rewards)
    same(half, saved, tolerance=0.1)


def test_other_peoples_checkpoints_load_in_their_own_dtype(copy: Saved) -> None:
    (copy.folder / "rmtrain.json").unlink()
    place = copy.base if copy.lora else copy.folder
    config = json.loads((place / "config.json").read_text())
    (copy.folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    checkpoint = load_checkpoint(str(copy.folder))
    assert (checkpoint.sidecar, checkpoint.max_length) == ({}, 512)  # the model's positions
    weight = checkpoint.model.module.get_parameter(
        ("base_model.model." if copy.lora else "") + "model.embed_tokens.weight"
    )
    assert weight.dtype == torch.bfloat16


def test_an_adapter_without_a_config_runs_in_the_dtype_of_its_base(tmp_path: Path, renderer: Renderer) -> None:
    saved = Saved(write_base(tmp_path / "base"), tmp_path / "adapter", renderer, lora=True)
    (saved.folder / "rmtrain.json").unlink()
    config = json.loads((saved.base / "config.json").read_text())
    (saved.base / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert load_checkpoint(str(saved.folder)).model.module.get_base_model().compute_dtype == torch.float16


def test_a_whole_model_is_not_quantised_because_its_adapters_base_was(copy: Saved) -> None:
    if copy.lora:
        pytest.skip("an adapter runs on the base that it was trained on")
    content = json.loads(copy.contract.read_text())
    content["scoring"]["quantization"] = "nf4"
    copy.contract.write_text(json.dumps(content))
    same(load_checkpoint(str(copy.folder)), copy)


def test_a_copy_elsewhere_has_the_same_fingerprint_and_other_weights_another(copy: Saved, saved: Saved) -> None:
    first = load_checkpoint(str(saved.folder)).fingerprint
    assert load_checkpoint(str(copy.folder)).fingerprint == first
    if copy.lora:  # the same weights at another scale
        config = json.loads((copy.folder / "adapter_config.json").read_text())
        (copy.folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8.0}))
    else:
        edit(copy, lambda tensors: tensors["score.weight"].add_(0.1))
    assert load_checkpoint(str(copy.folder)).fingerprint != first


def test_the_fingerprint_of_a_model_of_others_covers_its_prompt(copy: Saved) -> None:
    copy.contract.unlink()
    prompts = (None, "raw", "tulu")
    assert len({load_checkpoint(str(copy.folder), prompt=prompt).fingerprint for prompt in prompts}) == 3


def test_the_fingerprint_of_an_adapter_is_also_that_of_its_base(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copytree(base, tmp_path / "base")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    before = fingerprint_of(adapter)
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert fingerprint_of(adapter) != before


# The final model


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_final_model_is_the_checkpoint_without_the_trainers_state(saved: Saved, tmp_path: Path, dtype: str) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    shutil.copytree(saved.folder, checkpoint)
    for name in ("optimizer.pt", "trainer_state.json", "checkpoint.json", "rng_state.pth"):
        (checkpoint / name).write_text("{}")
    final = tmp_path / "final"
    final.mkdir()
    (final / "old.json").write_text("{}")
    save_final(checkpoint, final, dtype)
    stored = {path.name for path in final.iterdir()}
    assert stored == {path.name for path in saved.folder.iterdir()} - {"README.md"}
    before, after = load_file(saved.weights), load_file(final / saved.weights.name)
    kept = saved.lora or dtype == "float32"
    for name, tensor in before.items():
        expected = tensor if kept or name == "score.weight" else tensor.to(torch.bfloat16)
        assert after[name].dtype == expected.dtype, name
        assert torch.equal(after[name], expected), name
    if not saved.lora:
        assert json.loads((final / "config.json").read_text())["dtype"] == dtype
    assert not list(tmp_path.glob(".final*"))
    options = BackboneOptions("float32" if kept else "bfloat16")
    loaded = load_checkpoint(str(final), options=options)
    head = [p for n, p in loaded.model.module.named_parameters() if n.endswith(("score.weight", "default.weight"))][-1]
    assert head.dtype == torch.float32
    same(loaded, saved, 1e-5 if kept else 0.1)


def test_a_final_model_that_is_not_whole_is_not_put_in_place(copy: Saved, tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "config.json").write_text("the one before")
    edit(copy, lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    with pytest.raises(CheckpointError, match="is empty or not finite"):
        save_final(copy.folder, final, "float32")
    assert (final / "config.json").read_text() == "the one before"


def test_numbers_that_are_no_floats_keep_their_type_in_the_final_model(tmp_path: Path, saved: Saved) -> None:
    if saved.lora:
        pytest.skip("adapters are copied as they are")
    shutil.copytree(saved.folder, tmp_path / "checkpoint")
    tensors = load_file(saved.weights)
    save_file({**tensors, "steps": torch.tensor([3])}, tmp_path / "checkpoint" / "model.safetensors")
    save_final(tmp_path / "checkpoint", tmp_path / "final", "bfloat16")
    assert load_file(tmp_path / "final" / "model.safetensors")["steps"].dtype == torch.int64


# Damage


def edit(saved: Saved, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(saved.weights)
    change(tensors)
    save_file(tensors, saved.weights, metadata={"format": "pt"})


def flip_bits(saved: Saved) -> None:
    """All exponent bits of one number in the file's middle: a NaN."""
    content = bytearray(saved.weights.read_bytes())
    header = int.from_bytes(content[:8], "little")
    place = 8 + header + (len(content) - 8 - header) // 8 * 4
    content[place : place + 4] = b"\xff\xff\xff\xff"
    saved.weights.write_bytes(content)


def first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(name for name in tensors if part in name)


DAMAGE: dict[str, tuple[Callable[[Saved], Any], str]] = {
    "weights gone": (lambda s: s.weights.unlink(), r"no weights could be loaded|no score head"),
    "weights cut": (
        lambda s: s.weights.write_bytes(s.weights.read_bytes()[:-100]),
        r"(?i)incomplete|invalid|not fully",
    ),
    "weights empty": (lambda s: s.weights.write_bytes(b""), r"(?i)header"),
    "a number turned NaN": (flip_bits, r"not finite"),
    "head gone": (lambda s: edit(s, lambda t: t.pop(first(t, "score"))), r"no score head"),
    "a layer gone": (lambda s: edit(s, lambda t: t.pop(first(t, "layers.1."))), r"layers\.1\."),
    "a layer misshapen": (lambda s: edit(s, lambda t: t.update({first(t, "q_proj"): torch.ones(3, 5)})), r"q_proj"),
    "config gone": (lambda s: s.config.unlink(), r"config|no file named model\.safetensors"),
    "config torn": (lambda s: s.config.write_text('{"model_ty'), r"config"),
    "contract torn": (lambda s: s.contract.write_text('{"contract": {'), r"rmtrain\.json: can't be read"),
    "contract gone": (lambda s: s.contract.write_text('{"format": 1}'), r"rmtrain\.json: no rendering contract"),
    "contract a list": (lambda s: s.contract.write_text("[1]"), r"rmtrain\.json: not a JSON object"),
    "contract deep": (
        lambda s: s.contract.write_text('{"scoring":' + "[" * 5000 + "]" * 5000 + "}"),
        r"rmtrain\.json: ",
    ),
    "tokenizer of another vocabulary": (
        lambda s: (s.folder / "tokenizer.json").write_text(
            (s.folder / "tokenizer.json").read_text().replace('"<unk>": 0', '"<un>": 0')
        ),
        r"tokenizer|vocabulary|render",
    ),
    "tokenizer torn": (lambda s: (s.folder / "tokenizer.json").write_text('{"version": "1.0", "mod'), r"tokenizer"),
    "tokenizer binary": (lambda s: (s.folder / "tokenizer.json").write_bytes(bytes(range(256))), r"tokenizer"),
    "tokenizer gone": (lambda s: (s.folder / "tokenizer.json").unlink(), r"tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_refused_by_name(copy: Saved, damage: str) -> None:
    act, named = DAMAGE[damage]
    act(copy)
    with pytest.raises(InputError, match=named) as error:
        load_checkpoint(str(copy.folder))
    assert str(copy.folder) in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    "change", [{"peft_type": None}, {"peft_type": "EVIL"}, {"r": "two"}, {"target_modules": 5}], ids=str
)
def test_a_damaged_adapter_config_is_refused_by_name(copy: Saved, change: dict[str, Any]) -> None:
    if copy.lora:
        values = {**json.loads(copy.config.read_text()), **change}
        copy.config.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        with pytest.raises(CheckpointError, match="the adapter does not fit its base") as error:
            load_checkpoint(str(copy.folder))
        assert str(copy.folder) in error.value.message


def test_another_template_than_in_training_is_refused(copy: Saved) -> None:
    template = copy.folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(CheckpointError, match=r"does not render as in training .*chat_template_sha256"):
        load_checkpoint(str(copy.folder))


def test_an_adapter_for_a_deeper_base_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    deep = Saved(write_base(tmp_path / "deep", num_hidden_layers=3), tmp_path / "adapter", renderer, lora=True)
    shutil.rmtree(deep.base)
    write_base(deep.base)
    with pytest.raises(CheckpointError, match=r"lacks a layer for: .*layers\.2\."):
        load_checkpoint(str(deep.folder))


def test_an_adapter_without_its_base_names_it(tmp_path: Path, renderer: Renderer) -> None:
    saved = Saved(write_base(tmp_path / "base"), tmp_path / "adapter", renderer, lora=True)
    shutil.rmtree(saved.base)
    with pytest.raises(InputError, match=str(saved.base)):
        load_checkpoint(str(saved.folder))
    config = json.loads((saved.folder / "adapter_config.json").read_text())
    (saved.folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="names no base model"):
        load_checkpoint(str(saved.folder))


def test_an_adapter_whose_head_was_never_saved_is_no_reward_model(tmp_path: Path, base: Path) -> None:
    """What PEFT's default task type leaves behind."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    get_peft_model(plain, LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no score head"):
        load_checkpoint(str(tmp_path))


def test_a_base_model_is_no_checkpoint(base: Path) -> None:
    with pytest.raises(CheckpointError, match="no score head") as error:
        load_checkpoint(str(base))
    assert "train one from it" in error.value.hint


def test_saving_a_model_whose_head_is_not_finite_fails(tmp_path: Path, base: Path, renderer: Renderer) -> None:
    model = trained(base, True, renderer)
    next(p for n, p in model.module.named_parameters() if "modules_to_save" in n).data.fill_(torch.inf)
    with pytest.raises(CheckpointError, match=r"score\.weight is empty or not finite"):
        save_reward_model(model.module, renderer, tmp_path / "model", {})


def test_a_name_that_is_nowhere_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"nobody/nothing: no folder .*nobody/nothing, and not in the cache"):
        load_checkpoint("nobody/nothing")
    with pytest.raises(CheckpointError, match="and not a hub id"):
        load_checkpoint("a b/ c")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


METHODS = ["evil", "gptq", "torchao", "bitsandbytes", "awq", None]
UNUSED = [{"quantization_config": {"quant_method": method, "bits": 4}} for method in METHODS]
UNUSED += [{"attn_implementation": name} for name in ("flash_attention_2", "evil", "a/b")]


@pytest.mark.parametrize("values", UNUSED, ids=str)
def test_a_base_that_asks_for_what_is_not_run_is_refused_by_name(tmp_path: Path, values: dict[str, Any]) -> None:
    base = write_base(tmp_path / "base")
    change_config(base, **values)
    section, asked = ModelSection(name=str(base)), str(values.get("attn_implementation", "quantised"))
    for load in (
        lambda: load_backbone(str(base), None, BackboneOptions("float32"), 0, seed=0),
        lambda: recipe_renderer(section),
    ):
        with pytest.raises(InputError, match=asked) as error:
            load()
        assert str(base) in error.value.message


PIPES = ["config.json", "tokenizer_config.json", "model.safetensors", "additional_chat_templates/tool.jinja"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_pipe_in_a_base_or_beside_its_adapter_is_refused_at_once(
    tmp_path: Path, renderer: Renderer, name: str, verify: bool
) -> None:
    saved = Saved(write_base(tmp_path / "base"), tmp_path / "adapter", renderer, lora=True)
    for folder in (saved.base, saved.folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        for load in (
            lambda: load_checkpoint(str(saved.folder), verify=verify),
            lambda: recipe_renderer(ModelSection(name=str(saved.folder)), verify),
        ):
            with pytest.raises(InputError, match="it is a device or a pipe") as error:
                load()
            assert str(path) in error.value.message
        path.unlink()
        if name.endswith(("json", "safetensors")) and folder == saved.base:
            write_base(saved.base)


def test_an_adapter_that_is_its_own_base_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    saved = Saved(write_base(tmp_path / "base"), tmp_path / "adapter", renderer, lora=True)
    config = json.loads((saved.folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(saved.folder)
    (saved.folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is its own base"):
        load_checkpoint(str(saved.folder))


IMPOSSIBLE: list[dict[str, Any]] = [{"num_hidden_layers": value} for value in ("999", 2.5, 10**9, [2], {})]
IMPOSSIBLE += [{name: -1} for name in ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim")]
IMPOSSIBLE += [{name: 10**9} for name in ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim")]
IMPOSSIBLE += [
    {"hidden_act": "evil"},
    {"dtype": 2.5},
    {"dtype": {"a": 1}},
    {"vocab_size": 2**70},
    {"x": {"y": [10**400]}},
]
IMPOSSIBLE += [{"rope_parameters": "x"}, {"rms_norm_eps": "x"}, {"text_config": {"num_layers": 10**9}}]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("values", IMPOSSIBLE, ids=lambda values: str(values)[:40])
def test_a_config_of_no_model_is_refused_by_name(tmp_path: Path, values: dict[str, Any]) -> None:
    base = write_base(tmp_path / "base")
    change_config(base, **values)
    recipe = Recipe.model_validate({"model": {"name": str(base)}, "data": {"source": "x.jsonl"}, "lora": {"rank": 2}})
    for load in (
        lambda: load_backbone(str(base), None, BackboneOptions("float32"), 0, seed=0),
        lambda: count_parameters(start_config(recipe), recipe.lora),
    ):
        with pytest.raises(InputError) as error:
            load()
        assert str(base) in error.value.message


def test_an_older_adapter_beside_the_config_of_its_quantised_base_is_still_read(saved: Saved, copy: Saved) -> None:
    if saved.lora:
        config = json.loads((copy.base / "config.json").read_text())
        values = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
        (copy.folder / "config.json").write_text(json.dumps(values))
        same(load_checkpoint(str(copy.folder)), copy)


def test_a_pickle_beside_a_safetensors_file_of_another_name_is_read_and_counts(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    assert [path.name for path in weight_files(base)] == ["model.safetensors"]
    (base / "model.safetensors").rename(base / "x.safetensors")
    assert [path.name for path in weight_files(base)] == ["pytorch_model.bin"]
    before = fingerprint_of(base)
    torch.save({"a": torch.ones(1)}, base / "pytorch_model.bin")
    assert fingerprint_of(base) != before


def test_an_adapter_with_biases_that_its_base_has_no_place_for_can_t_be_merged(
    base: Path, tmp_path: Path, renderer: Renderer
) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_backbone(str(base), None, BackboneOptions("float32"), renderer.pad_id, seed=0)
    with pytest.warns(UserWarning, match="lora_bias"):
        module = get_peft_model(
            model.module, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], lora_bias=True)
        )
    with pytest.raises(CheckpointError, match=r"can't be merged: .*lora_bias"):
        merge(RewardModel(module, model.packing))
