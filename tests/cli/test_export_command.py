"""`rmtrain export` as users call it, and the upload to a hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_groups, make_tokenizer, save_reward_model
from hub_server import HubServer
from sessions import Session

from rmtrain.cli.app import run
from rmtrain.data.render import Renderer
from rmtrain.model.adapters import add_lora
from rmtrain.model.reward_model import BackboneOptions, load_backbone
from rmtrain.recipe.schema import LoraSection

# what the card's snippet does is done by itself: it must run as it stands
GROUPS = make_groups(2, seed=3)


@pytest.fixture
def folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    renderer = Renderer.for_tokenizer(make_tokenizer())
    model = load_backbone(str(base), None, BackboneOptions("float32"), renderer.pad_id, seed=0)
    model = add_lora(model, LoraSection(rank=2, alpha=4.0), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    section = {"dtype": "float32", "quantization": "none", "attention": "auto", "packing": "shared_prompt"}
    save_reward_model(
        model.module, renderer, tmp_path / "trained", {"recipe": {"model": section, "data": {"max_length": 96}}}
    )
    return tmp_path / "trained"


def test_what_people_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--ckpt", str(folder), "--output", "plain", "--dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("exported: plain (bfloat16, ")
    assert [line.split(" by ")[1].split()[0] for line in lines[2:4]] == ["merging", "storing"]
    assert lines[4].endswith(": vllm serve plain --runner pooling --dtype bfloat16")
    card = Path("plain/README.md").read_text()
    assert "merged into the base in float32" in card
    assert "stored in bfloat16" in card
    assert "It came without an evaluation." in card
    assert "peft" not in card.split("## How it was made")[0]
    assert card.split("# ")[1].startswith("plain\n")
    assert "`vllm serve . --runner pooling --dtype bfloat16`" in card


def test_no_place_on_this_machine_is_exported(folder: Path, tmp_path: Path) -> None:
    sidecar = json.loads((folder / "rmtrain.json").read_text())
    sidecar["base"] = {"name": str(tmp_path / "private" / "base-7b"), "commit": None}
    sidecar["recipe"]["model"]["name"] = str(tmp_path / "private" / "base-7b")
    sidecar["recipe"]["data"]["source"] = {"train": str(tmp_path / "rows.jsonl"), "test": "some-lab/preferences@v1"}
    (folder / "rmtrain.json").write_text(json.dumps(sidecar))
    assert run(["export", "--ckpt", str(folder), "--output", "plain"]) == 0
    for path in Path("plain").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert b"private" not in path.read_bytes(), path
    recipe = json.loads(Path("plain/rmtrain.json").read_text())["recipe"]
    assert recipe["model"]["name"] == "./base-7b"  # no name of the hub
    assert recipe["data"]["source"] == {"train": "./rows.jsonl", "test": "some-lab/preferences@v1"}
    card = Path("plain/README.md").read_text()
    assert "the local base-7b" in card
    assert "base_model" not in card


def test_json_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--ckpt", str(folder), "--output", "plain", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pushed"] is None
    assert result["merged"] is True
    assert result["bytes"] == sum(
        path.stat().st_size for path in Path("plain").iterdir() if path.name != "README.md"
    ) + (Path("plain/README.md").stat().st_size)


@pytest.mark.slow
def test_snippet_of_the_card_runs_as_it_stands(folder: Path) -> None:
    assert run(["export", "--ckpt", str(folder), "--output", "plain"]) == 0
    code = Path("plain/README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="plain", capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    float(done.stdout)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "int4"], "is not one of"),
        (["--private"], "--push"),
        (["--push", "noname"], "ORG/NAME"),
        (["--output", "trained"], "exists"),
    ],
)
def test_wrong_options_are_told_with_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    output = [] if "--output" in options else ["--output", "plain"]
    assert run(["export", "--ckpt", str(folder), *output, *options]) == 2
    assert said in capsys.readouterr().err
    assert not Path("plain").exists()


@pytest.mark.slow
def test_push_uploads_what_was_exported_and_keeps_it_where_it_can_not(folder: Path, tmp_path: Path) -> None:
    with HubServer({}, writable=tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home")
        environment.pop("HF_HUB_OFFLINE", None)
        command = ["export", "--ckpt", "trained", "--output", "plain", "--push", "org/mine"]
        with Session(environment) as session:
            without_token = session.run(*command)
            nothing = not Path("plain").exists()
            done = session.run(*command, "--private", "--json", HF_TOKEN="hf_made")
            private, files = set(hub.private), hub.files(("model", "org/mine"))
            there = {path.name: path.read_bytes() for path in Path("plain").iterdir()}
            shutil.rmtree("plain")
            hub.refuse_uploads = True
            refused = session.run(*command)
    assert without_token.returncode == 2, without_token.stderr
    assert "hf auth login" in without_token.stderr
    assert nothing  # it is told before the work

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"].startswith(hub.endpoint)
    assert private == {("model", "org/mine")}
    assert {name: content for name, content in files.items() if name != ".gitattributes"} == there

    assert refused.returncode == 1, refused.stderr
    assert "the export in plain is complete" in refused.stderr
    assert os.path.exists("plain/config.json")
