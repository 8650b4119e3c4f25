"""Files are written whole or not at all, and a user's file is read within bounds."""

import hashlib
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from rmtrain.errors import DataError, InputError, WriteError
from rmtrain.files import read_bytes, read_text, sha256_file, sync_folder, write_atomic, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    for text in ("one", "zwei: ä, 日本\n"):
        write_atomic(target, text)
        assert target.read_bytes() == text.encode()
    assert names(tmp_path) == ["a.txt"]


def test_a_file_has_the_rights_that_any_new_file_has(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a.txt", "x")
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    finally:
        assert os.umask(before) == 0o027


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_or_a_failed_rename_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(WriteError, match=r"the disk is full: 3 bytes needed, .* free"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_write_that_the_system_stops_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(WriteError, match=r"not be larger than 1.0 MiB here .ulimit -f.; it takes 3.0 MiB"):
            write_atomic(target, "new" * (1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (target.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.txt", "new")
    assert names(tmp_path) == []


def test_text_that_utf8_can_not_hold_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(target, "\ud800")
    assert (target.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file"):
        write_atomic(tmp_path / "gone" / "a.txt", "x")


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "ä": "日本"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "日本" in text
    assert text.endswith("}\n")
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"x": number})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    sync_folder(tmp_path)
    assert synced == [str(tmp_path)]


def test_a_text_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffä\r\n日本\n".encode())
    assert read_text(tmp_path / "a.txt") == "ä\r\n日本\n"
    assert read_bytes(str(tmp_path / "a.txt"))[:3] == b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/dev/zero", "/dev/zero: can't be read: it is a device or a pipe\n  hint: name a regular file"),
        ("/dev/full", "/dev/full: can't be read: it is a device or a pipe"),
        ("fifo", "fifo: can't be read: it is a device or a pipe"),
        (".", ".: can't be read: it is a folder"),
        ("gone", "gone: no such file"),
        ("gone/a", "gone/a: no such file"),
        ("file/a", "file/a: can't be read: Not a directory"),
        ("n" * 256, "can't be read: File name too long"),
        ("a\0b", "can't be read: embedded null byte"),
        ("\ud800", "can't be read: 'utf-8' codec can't encode"),
        ("file", "file: the file has more than 1,000 bytes"),
        ("latin", "latin:2: not UTF-8 text (byte 0xe4 at offset 3)"),
    ],
)
@pytest.mark.usefixtures("inside")
def test_what_is_no_text_file_is_refused_at_once(tmp_path: Path, name: str, told: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x" * 1001)
    (tmp_path / "latin").write_bytes(b"ab\n\xe4")
    with pytest.raises(InputError) as caught:
        read_text(name, 1000)
    assert told in str(caught.value)
    with pytest.raises(DataError):
        read_text(Path(name), 1000, DataError)
