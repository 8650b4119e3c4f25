"""Single flipped bits in the files of a checkpoint: noticed in each command that would use them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_base, write_pairs
from training_cases import only_run, run

from rmtrain.cli.app import run as rmtrain
from rmtrain.errors import CheckpointError
from rmtrain.model.checkpoint import load_checkpoint
from rmtrain.model.digests import seal, verify_files

USED = ("safetensors", "json", "jinja")  # endings of the files that scoring reads


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run and a full one, with checkpoints, beside the base of both."""
    folder = tmp_path_factory.mktemp("trained")
    base = write_base(folder / "base", hidden_size=16, intermediate_size=32, head_dim=4)
    for name, changes in {"lora": {}, "full": {"lora": None}}.items():
        run(base, folder, **changes, optim__max_steps=2)
        only_run(folder).rename(folder / name)
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that, in which the adapters name the base of the copy."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "work").rglob("adapter_config.json"):
        path.write_text(path.read_text().replace(str(trained / "base"), str(tmp_path / "work" / "base")))
    return tmp_path / "work"


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def same_beside(key: str) -> Callable[[Path, bytes], bool]:
    """Whether a JSON file holds what it held, but for one key or without it."""

    def same(path: Path, before: bytes) -> bool:
        try:
            found, wanted = json.loads(path.read_bytes()), json.loads(before)
        except ValueError:
            return False
        return bool({**found, key: 0} == {**wanted, key: 0})

    return same


def block_is_same(path: Path, before: bytes) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return False
    return bool(found.get("scoring") == json.loads(before)["scoring"])


# the base may move, and what lies beside the scoring block is a record
HARMLESS = {"adapter_config.json": same_beside("base_model_name_or_path"), "rmtrain.json": block_is_same}


def folders(work: Path) -> list[Path]:
    """`final` and a checkpoint of each run."""
    return [work / name / part for name in ("lora", "full") for part in ("final", "checkpoints/checkpoint-2")]


def test_what_was_not_touched_is_used(work: Path) -> None:
    for folder in folders(work):
        verify_files(folder)  # the base of the adapters has moved, and is the same
        load_checkpoint(str(folder))


def test_every_flipped_bit_is_noticed(work: Path) -> None:
    draw, tried = random.Random(0), 0
    for folder in folders(work):
        files = [path for path in folder.iterdir() if path.name.endswith(USED) and path.name != "trainer_state.json"]
        for path in [path for path in files for _ in range(10)]:
            whole = path.read_bytes()
            flip(path, draw)
            if not (path.name in HARMLESS and folder.name == "final" and HARMLESS[path.name](path, whole)):
                with pytest.raises(CheckpointError, match=path.name):
                    verify_files(folder)
                tried += 1
            path.write_bytes(whole)
    assert tried > 150


def test_a_changed_byte_of_the_base_is_noticed(work: Path) -> None:
    flip(work / "base" / "model.safetensors", random.Random(2))
    for part in ("final", "checkpoints/checkpoint-2"):
        with pytest.raises(CheckpointError, match=r"base/model\.safetensors: has changed since the adapter in "):
            verify_files(work / "lora" / part)
        verify_files(work / "full" / part)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_commands_refuse_a_damaged_file_and_use_it_when_told_to(
    work: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work / kind / "final"
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1  # in the mantissa of the last weight
    weights.write_bytes(content)
    rows = Path("rows.jsonl")
    rows.write_text('{"prompt": "w1 w2", "completions": ["w3", "w4 w5"]}\n')
    pairs = write_pairs(Path("pairs.jsonl"), 4)
    other = work / ("full" if kind == "lora" else "lora")
    for command in (
        ["eval", "--ckpt", str(folder), "--data", str(pairs)],
        ["score", str(rows), "--ckpt", str(folder), "--output", "scored.jsonl"],
        ["export", "--ckpt", str(folder), "--output", "plain"],
        ["compare", str(folder), str(other), "--data", str(pairs)],
    ):
        code = rmtrain(command)
        said = capsys.readouterr().err
        assert (code, weights.name in said, "--no-verify" in said) == (2, True, True), said
    assert rmtrain(["score", str(rows), "--ckpt", str(folder), "--output", "scored.jsonl", "--no-verify"]) == 0


def test_a_missing_file_is_named_and_checkpoints_without_digests_load(work: Path) -> None:
    folder = work / "full" / "final"
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: is missing"):
        verify_files(folder)
    sidecar = json.loads((folder / "rmtrain.json").read_text())
    for key in ("files", "sha256"):
        del sidecar["scoring"][key]
    (folder / "rmtrain.json").write_text(json.dumps(sidecar))
    verify_files(folder)
    seal(folder)
    verify_files(folder)
