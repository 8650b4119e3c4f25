"""A model that is not there: which folder was looked for, and what the hub says, within seconds."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, errors

from rmtrain.cli.app import run
from rmtrain.data.hub import why_absent

_RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=404)
pytestmark = pytest.mark.usefixtures("inside")


@pytest.mark.parametrize("name", ["./x", "../models/x", "models/smollm2/final", "~nobody/x", "file"])
def test_what_looks_like_a_path_is_looked_for_as_one(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    Path("file").write_text("")
    what = "give the folder of a model, or a hub id such as org/name"
    assert why_absent(name) == (f"no such folder: {os.path.abspath(name)}", what)
    assert why_absent(str(tmp_path / "gone")) == ("no such folder", what)
    assert why_absent(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("error", "told", "hint"),
    [
        (
            errors.OfflineModeIsEnabled("off"),
            "and not in the cache of the hub, while offline mode is on",
            "give a folder, or unset HF_HUB_OFFLINE to download the model",
        ),
        (
            ConnectionError("no route"),
            "can't be reached (ConnectionError)",
            "check the network, or give a folder that holds the model",
        ),
        (
            errors.RepositoryNotFoundError,
            "and no such model on https://",
            "check the name; for a private model log in first: hf auth login",
        ),
    ],
)
def test_a_hub_id_that_is_not_there_says_both(
    error: Any, told: str, hint: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def model_info(self: HfApi, name: str, revision: str | None, timeout: float) -> None:
        assert timeout <= 5
        raise error if isinstance(error, Exception) else error("gone", response=_RESPONSE)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    Path("x.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    for name in ("models/smollm2", "text"):
        Path("r.yaml").write_text(f"model: {{name: {name}}}\ndata: {{source: x.jsonl}}\n")
        for command in (
            ["data", "r.yaml"],
            ["train", "r.yaml", "--dry-run"],
            ["eval", "--ckpt", name, "--data", "x.jsonl"],
        ):
            assert run(command) == 2
            said = capsys.readouterr().err
            assert f"no folder {tmp_path / name}, " in said
            assert told in said
            assert said.rstrip().endswith(f"hint: {hint}")
    what = "give the folder of a model, or a hub id such as org/name"
    assert why_absent("a b") == (f"no folder {tmp_path / 'a b'}, and not a hub id", what)
    Path("models/smollm2-135m").mkdir(parents=True)
    for name in ("models/smollm2", "models/smollm3-135m"):
        near = f"similar folders in {tmp_path / 'models'}: smollm2-135m"
        absent = why_absent(name)
        assert absent is not None
        assert near in absent.hint
