"""Digests of large files are kept between processes, and a changed file is noticed all the same."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rmtrain.errors import CheckpointError
from rmtrain.files import sha256_file
from rmtrain.model import known_digests, weights
from rmtrain.model.calibration import Calibration, read_calibration, write_calibration
from rmtrain.model.forward import check_finite
from rmtrain.model.known_digests import FileState, digest_of
from rmtrain.model.weights import fingerprint_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that are read whole; every file is large, and settled from the first."""
    found: list[Path] = []

    def whole(path: Path) -> str:
        found.append(path)
        return sha256_file(path)

    monkeypatch.setattr(known_digests, "sha256_file", whole)
    monkeypatch.setattr(known_digests, "LEAST_BYTES", 1)
    monkeypatch.setattr(known_digests, "_SETTLED_NS", -(2**62))
    monkeypatch.setenv("RMTRAIN_CACHE", str(tmp_path / "cache"))
    return found


def in_another_process(path: Path) -> str:
    known_digests._digest_in.cache_clear()
    return digest_of(path)


def file_in(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    return path


def _write(path: Path) -> None:
    path.write_bytes(b"other")


def _write_and_put_the_time_back(path: Path) -> None:
    state = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.rename(path)


@pytest.mark.parametrize("change", [_write, _write_and_put_the_time_back, _replace])
def test_a_file_is_read_once_until_it_changes(
    change: Callable[[Path], None], read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_in(tmp_path)
    first = sha256_file(path)
    assert [in_another_process(path) for _ in range(3)] == [first] * 3
    assert read == [path]
    monkeypatch.chdir(tmp_path)
    assert in_another_process(Path("weights")) == first  # by whatever name
    assert read == [path]
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:  # the clock of a disk has ticks of some milliseconds
        change(path)
    assert in_another_process(path) == sha256_file(path) != first
    assert len(read) == 2


def test_a_file_that_may_still_change_is_read_again(
    read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_in(tmp_path)
    monkeypatch.setattr(known_digests, "_SETTLED_NS", 2**62)  # every file is young
    in_another_process(path), in_another_process(path)
    assert read == [path, path]
    monkeypatch.setattr(known_digests, "_SETTLED_NS", -(2**62))
    known_digests._digest_in(path, FileState.of(path)._replace(size=9))  # it was written while it was read
    assert not (tmp_path / "cache").exists()
    assert in_another_process(path) == sha256_file(path)
    monkeypatch.setattr(known_digests, "LEAST_BYTES", 6)
    in_another_process(path)
    assert len(read) == 5  # a small file


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"a\nb\n", b"a\nb\nc\n", None])
def test_a_damaged_entry_or_none_costs_only_time(content: bytes | None, read: list[Path], tmp_path: Path) -> None:
    path = file_in(tmp_path)
    first = in_another_process(path)
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    state = entry.read_bytes().splitlines()[0]
    for wrong in (content, state + b"\n" + b"z" * 64) if content is not None else (None,):
        if wrong is None:
            entry.unlink()
            entry.parent.rmdir()
            (tmp_path / "cache").rmdir()
            (tmp_path / "cache").write_text("no folder")
        else:
            entry.write_bytes(wrong)
        assert in_another_process(path) == first
    assert len(read) == (3 if content is not None else 2)


def test_a_calibration_is_known_by_the_content_of_large_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download has other times than the folder in which the calibration was fitted."""
    monkeypatch.setattr(weights, "_LARGE", 1)
    folder, other = tmp_path / "rm", tmp_path / "copy"
    folder.mkdir()
    save_file({"score.weight": torch.ones(1, 4)}, folder / "model.safetensors")
    values = {"lengths": (), "curve": (), "offset": 0.0, "temperature": 1.0, "reward_mean": 0.0, "reward_std": 1.0}
    fitted = Calibration.model_validate(values | {"weights": fingerprint_of(folder)})
    write_calibration(folder, fitted)
    shutil.copytree(folder, other, copy_function=shutil.copyfile)
    os.utime(other / "model.safetensors", ns=(1, 1))
    assert fingerprint_of(other) != fingerprint_of(folder)
    assert read_calibration(other) == read_calibration(folder)
    (folder / "calibration.json").write_text(fitted.model_dump_json())  # as earlier versions wrote it
    assert read_calibration(folder) == fitted
    save_file({"score.weight": torch.zeros(1, 4)}, other / "model.safetensors")
    with pytest.raises(CheckpointError, match="was fitted for other weights"):
        read_calibration(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_weight_that_is_not_finite_is_found_and_large_ones_are_not(dtype: Any) -> None:
    module = torch.nn.Linear(33, 7).to(dtype)
    module.weight.data.fill_(torch.finfo(dtype).max)  # whose sum overflows
    check_finite(module, "here")
    for wrong in ([torch.nan], [torch.inf], [-torch.inf], [torch.inf, -torch.inf]):
        for place in (0, 100, 33 * 7 - len(wrong)):
            damaged = torch.nn.Linear(33, 7).to(dtype)
            damaged.weight.data.view(-1)[place : place + len(wrong)] = torch.tensor(wrong, dtype=dtype)
            with pytest.raises(CheckpointError, match=r"here: weight is not finite"):
                check_finite(damaged, "here")
