"""`rmtrain doctor`: names each problem and its fix, sends nothing, and shows no secret."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rmtrain.cli import doctor
from rmtrain.cli.doctor import Check


def run(monkeypatch: pytest.MonkeyPatch, *checks: Check, arguments: tuple[str, ...] = ()) -> Any:
    """The command with the given findings in place of its own."""

    def some() -> Iterator[Check]:
        yield from checks

    for group in ("_packages", "_devices", "_extras", "_hub", "_disk"):
        monkeypatch.setattr(doctor, group, lambda: iter(()))
    monkeypatch.setattr(doctor, "_machine", some)
    app = typer.Typer()
    app.command()(doctor.doctor)
    return CliRunner().invoke(app, list(arguments))


def test_a_problem_makes_exit_code_1_and_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    good, poor = Check("CPU", "ok", "2 cores"), Check("GPU", "problem", "[bold]gone[/]\x1b[2J", "plug it in")
    result = run(monkeypatch, good, poor)
    assert result.exit_code == 1
    assert "problem  GPU  [bold]gone[/]" in result.stdout
    assert "fix: plug it in" in result.stdout
    assert "ok: 1, warnings: 0, problems: 1" in result.stdout
    assert "\x1b" not in result.stdout


def test_warnings_alone_make_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, Check("GPU", "warning", "none")).exit_code == 0


def test_json_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, Check("GPU", "problem", "none", "get one"), arguments=("--json",))
    assert result.exit_code == 1
    checks = [{"name": "GPU", "state": "problem", "detail": "none", "hint": "get one"}]
    assert json.loads(result.stdout) == {"ok": False, "checks": checks}


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken() -> Iterator[Check]:
        yield Check("first", "ok", "")
        raise ValueError("no such thing")

    assert list(doctor._run(_broken)) == [
        Check("first", "ok", ""),
        Check("broken", "problem", "the check failed: ValueError: no such thing"),
    ]


def test_where_only_the_source_is_at_hand_no_version_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    (check,) = doctor._packages()
    assert (check.state, check.hint) == ("warning", "pip install .")
    assert "rmtrain is not installed" in check.detail


def test_versions_are_held_against_the_package_s_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=2", "trl<2,>=1.16", "torch>=2.11", "gone>=1", "ruff>=99; extra == 'test'"]
    there = {"numpy": "1.26.4", "trl": "2.0.0", "torch": "2.13.0+cpu"}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    monkeypatch.setattr(metadata, "version", version)
    assert list(doctor._packages()) == [
        Check("numpy", "problem", "1.26.4, but numpy>=2 is required", "pip install 'numpy>=2'"),
        Check("trl", "problem", "2.0.0, but trl<2,>=1.16 is required", "pip install 'trl<2,>=1.16'"),
        Check("gone", "problem", "not installed", "pip install 'gone>=1'"),
        Check("packages", "ok", "torch 2.13.0+cpu"),
    ]


def test_this_environment_has_what_the_metadata_asks_for() -> None:
    assert [check.state for check in doctor._packages()] == ["ok"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    return monkeypatch


def test_hub_settings(hub: pytest.MonkeyPatch) -> None:
    assert list(doctor._hub()) == [Check("hub", "ok", "online; default endpoint; no token")]
    hub.setenv("HF_DATASETS_OFFLINE", "1")
    (check,) = doctor._hub()
    assert check.state == "warning"
    assert check.hint == "unset HF_DATASETS_OFFLINE to download models and data"


def test_no_secret_is_shown(hub: pytest.MonkeyPatch) -> None:
    hub.setenv("HF_TOKEN", "hf_secretsecret")
    hub.setenv("HF_ENDPOINT", "https://user:password@mirror.example/key")
    (check,) = doctor._hub()
    assert check == Check("hub", "ok", "online; HF_ENDPOINT is https://mirror.example; a token is set")


def test_an_endpoint_that_is_no_address(hub: pytest.MonkeyPatch) -> None:
    hub.setenv("HF_ENDPOINT", "mirror.example")
    (check,) = doctor._hub()
    assert check.state == "problem"
    assert "HF_ENDPOINT is not a web address" in check.detail


def test_folders_that_can_not_be_written_and_full_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    check = doctor._free_space("cache", tmp_path / "file" / "cache", 1)
    assert check.state == "problem"
    assert check.detail.startswith(f"{tmp_path}/file/cache can't be written: ")
    assert doctor._free_space("cache", tmp_path / "new" / "cache", 1).state == "ok"
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 2**30))
    assert doctor._free_space("cache", tmp_path, 20 * 2**30) == Check(
        "cache", "warning", f"{tmp_path}, 5.0 GiB free", "free some space; 20 GiB or more are recommended"
    )


def test_a_lock_that_a_killed_compiler_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert [check.state for check in doctor._extras()] == ["ok", "ok"]
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    *_, check = doctor._extras()
    assert (check.state, check.name) == ("warning", "DeepSpeed")
    assert f"rm {lock}" in check.hint


@pytest.mark.slow
def test_the_whole_command_looks_at_everything_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\ndef refuse(*a): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "rmtrain", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    found = json.loads(done.stdout)
    assert "network" not in done.stderr
    names = {check["name"] for check in found["checks"]}
    assert {"Python", "packages", "GPU", "bitsandbytes", "DeepSpeed", "hub", "model cache", "CPU"} <= names
    assert done.returncode == (0 if found["ok"] else 1)
