"""What `train` refuses before its first step, `train --dry-run` refuses in the same words."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_config, make_tokenizer, write_base, write_pairs

from rmtrain.cli.app import run
from rmtrain.runs import locked
from rmtrain.training import build, memory_plan

RECIPE = """
model: {{name: {base}, dtype: float32}}
lora: {{rank: 2}}
data:
  source: {{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl}}
  splits: {{train: train, validation: validation}}
  max_length: 64
optim: {{max_steps: 1, global_batch_size: 4}}
evaluation: {{every: 1, splits: []}}
run: {{folder: {folder}/runs}}
"""


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Path:
    write_pairs(tmp_path / "train.jsonl", 8)
    write_pairs(tmp_path / "validation.jsonl", 4, seed=1)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(base=base, folder=tmp_path), encoding="utf-8")
    return path


def pad_outside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = write_base(folder / "m")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(path)
    return f"model.name={path}"


def two_labels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_config(make_config(num_labels=2)).save_pretrained(folder / "m")
    make_tokenizer().save_pretrained(folder / "m")
    return f"model.name={folder / 'm'}"


def lacking_layer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from safetensors.torch import load_file, save_file

    file = write_base(folder / "m") / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    return f"model.name={folder / 'm'}"


def cut_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = write_base(folder / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return f"model.name={folder / 'm'}"


def few_positions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return f"model.name={write_base(folder / 'm', 'gpt2', max_position_embeddings=32)}"


def no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(memory_plan, "host_memory", lambda: 1000)
    monkeypatch.setattr(build, "resident_memory", lambda: 1 << 29)  # which grows from one command to the next
    return "run.seed=1"


def no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    return "tracking.wandb=online"


def nothing_to_train_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return "data.max_length=8 data.over_length=drop"


def a_file_in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "file").write_text("")
    return f"run.folder={folder / 'file'}/runs"


def says(overrides: str) -> Callable[..., str]:
    return lambda folder, monkeypatch: overrides


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (pad_outside, "lies outside of the model's vocabulary"),
        (two_labels, "its score head has 2 labels, a reward model has one"),
        (lacking_layer, "the weights lack model.layers.1.mlp"),
        (cut_weights, "model.safetensors: "),
        (few_positions, "data.max_length: 64 tokens, and the model has 32 positions"),
        (no_memory, "of the host's memory"),
        (no_key, "no wandb key is set"),
        (nothing_to_train_on, "no preference is left to train on"),
        (a_file_in_the_way, "can't make a run folder"),
        (says("lora.targets=[nope]"), "is called nope"),
        (says("lora.targets=nope.*"), "no layer's whole name fits"),
        (says("model.attention=flash_attention_2 model.packing=none"), "model.attention: FlashAttention2"),
        (says("distributed.strategy=fsdp distributed.offload=all"), "fsdp on a single process can't move anything"),
        (says("distributed.deepspeed_config=nowhere.json"), "nowhere.json can't be read"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:40],
)
def test_a_dry_run_refuses_what_train_refuses(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, prepare: Any, said: str
) -> None:
    overrides = prepare(tmp_path, monkeypatch).split()
    told = []
    for dry in (["--dry-run"], []):
        assert run(["train", str(recipe), *overrides, *dry]) in (1, 2)
        text = re.sub(r"\s+", " ", capsys.readouterr().err)
        told.append(text[text.index("error: ") :])
    assert told[0] == told[1]
    assert said in told[0]
    assert not list(tmp_path.glob("runs/*"))


def test_a_dry_run_that_would_train_leaves_nothing(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run(["train", str(recipe), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["derived"]["steps"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_dry_run_of_a_resumed_run_says_what_has_changed(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(["train", str(recipe), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["run"]
    again = ["train", "--resume", folder, "--dry-run"]
    assert run([*again, "optim.weight_decay=0.5"]) == 2
    assert "optim.weight_decay: 0.0 in the checkpoint, 0.5 now" in capsys.readouterr().err
    lock = Path(folder, ".lock")
    with locked(Path(folder)):
        lock.write_text("process 7 on another machine")
        assert run(again) == 2
    assert "is in use by process 7 on another machine" in capsys.readouterr().err
    lock.unlink()
    before = {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    assert run([*again, "optim.weight_decay=0.5", "--allow-changes"]) == 0
    assert before == {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
