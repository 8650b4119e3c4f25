"""Local files: what is read, and how every damage is named."""

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrain.data.files import read_file, strict_json
from rmtrain.errors import DataError

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "ü\u2028c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def refuse(path: Path, content: bytes) -> DataError:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert str(path) in caught.value.message
    return caught.value


def test_jsonl_gz_json_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(LINES)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    (tmp_path / "x.csv").write_text('prompt,chosen,rejected\na,b,"ü\u2028c"\nd,e,f\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.jsonl.gz", "x.json", "x.csv", "x.parquet"):
        assert {split: [*rows] for split, rows in read_file(tmp_path / name).splits.items()} == {"train": ROWS}, name


def test_fingerprint_is_the_digest_of_the_bytes_and_not_of_the_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES)
    stat = path.stat()
    first = read_file(path)
    path.write_bytes(LINES.replace(b'"b"', b'"B"'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = read_file(path)
    assert first.fingerprint == hashlib.sha256(LINES).hexdigest()
    assert second.fingerprint != first.fingerprint
    assert second.splits["train"][0]["chosen"] == "B"


def test_lines_are_counted_over_blank_ones_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\n  \n", 1))
    assert [*(read_file(path).lines or ())] == [1, 4]


def test_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES.rstrip())
    assert len(read_file(path).splits["train"]) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": 1,}\n', ":3: not valid JSON"),
        (b'["a"]\n', ":3: a row must be a JSON object, not an array"),
        (b"null\n", ":3: a row must be a JSON object, not null"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}\n', ":3: duplicate key 'c'"),
        (b'{"a": NaN}\n', ":3: NaN is not JSON"),
        (b'{"a": -Infinity}\n', ":3: -Infinity is not JSON"),
        (b'{"a": "\\ud83d"}\n', ":3: it holds half of a surrogate pair"),
        (b'{"a": "\\uDE00 x"}\n', ":3: it holds half of a surrogate pair"),
        (b'{"a": "\xff"}\n', ":3: not UTF-8 (byte 8 of the line)"),
        (b"[" * 100_000 + b"\n", ":3: JSON nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ":3: "),
        (b"\x00\n", ":3: not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    assert message in refuse(tmp_path / "x.jsonl", LINES + line + LINES).message


def test_a_whole_surrogate_pair_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert [*read_file(path).splits["train"]] == [{"a": "😀"}]


def test_a_cut_last_line_is_told_as_such(tmp_path: Path) -> None:
    error = refuse(tmp_path / "x.jsonl", LINES[:-10])
    assert ":2: not valid JSON" in error.message
    assert "incomplete" in error.hint


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.csv", "x.parquet"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    assert "the file is empty" in refuse(tmp_path / name, b"").message
    assert "the file is empty" in refuse(tmp_path / name, b" \n\n").message


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.parquet"])
def test_a_page_or_a_pointer_in_place_of_the_data(tmp_path: Path, name: str) -> None:
    page = refuse(tmp_path / name, b"\n<!DOCTYPE html><html><body>404</body></html>")
    assert ":1: an HTML or XML page" in page.message
    pointer = refuse(tmp_path / name, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert ":1: a Git LFS pointer" in pointer.message
    assert "git lfs pull" in pointer.hint


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(LINES * 2000)
    path = tmp_path / "x.jsonl.gz"
    assert "damaged or ends after line" in refuse(path, whole[: len(whole) // 2]).message
    broken = bytearray(gzip.compress(LINES))
    broken[-5] ^= 0xFF  # in the checksum
    assert "damaged or ends after" in refuse(path, bytes(broken)).message
    assert "not a .jsonl.gz file" in refuse(path, LINES).message
    assert "rename it" in refuse(tmp_path / "x.jsonl", whole).hint


def test_a_file_of_gzipped_nothing_holds_no_rows(tmp_path: Path) -> None:
    assert "holds no rows" in refuse(tmp_path / "x.jsonl.gz", gzip.compress(b"\n")).message


def test_json_may_name_splits(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    read = read_file(path)
    assert read.named
    assert {name: len(rows) for name, rows in read.splits.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "holds no rows"),
        (b"{}", "holds no rows"),
        (b'{"train": [], "test": [{}]}', "split train holds no rows"),
        (b'{"prompt": "a"}', "'prompt' is a text, not an array"),
        (b'"a"', "it holds a text, not an array"),
        (b"[{}, 3]", "row 2 of train must be an object, not a number"),
        (LINES, "not valid JSON: Extra data"),
        (b'[{"a": 1, "a": 2}]', "duplicate key 'a'"),
        (b"[\xff]", "not UTF-8"),
    ],
)
def test_json_of_another_shape(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refuse(tmp_path / "x.json", content).message


def test_csv_cells_may_hold_json_and_be_long(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f'prompt,completions\n"two\nlines","[""{"x" * 200_000}"", ""b""]"\nq,"[""c""]"\n')
    read = read_file(path)
    assert read.splits["train"][0]["completions"] == ["x" * 200_000, "b"]
    assert [*(read.lines or ())] == [2, 4]


def test_csv_files_with_long_cells_may_be_read_in_turns(tmp_path: Path) -> None:
    long = "x" * 200_000
    for name, count in (("short", 1), ("long", 3)):
        (tmp_path / f"{name}.csv").write_text("prompt,chosen\n" + f"a,{long}\n" * count)
    short, rest = (iter(read_file(tmp_path / f"{name}.csv").splits["train"]) for name in ("short", "long"))
    assert len([*zip(short, rest, strict=False)]) == 1  # the short file is closed, the other one is open
    assert [row["chosen"] for row in rest] == [long] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n1\n", ":3: 1 cells under a header of 2 columns"),
        (b"a,a\n1,2\n", ":1: column 'a' occurs twice in the header"),
        (b'a,b\n1,"2\n', ": not valid CSV"),
        (b"a,b\n1,\xff\n", "not UTF-8"),
        (b"prompt,completions\n1,[\n", ":2: column completions: not valid JSON"),
        (b"a,b\n", "holds no rows"),
    ],
)
def test_damaged_csv(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refuse(tmp_path / "x.csv", content).message


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n{"a": 1}\n', "correct this line"),
        ("x.jsonl", b'{"a": 1}\n{"a": NaN}', "correct this line"),
        ("x.jsonl", b'{"a": 1}\r{"a": 2}', "end each line with a line feed"),
        ("x.jsonl", '{"a": "ä"}\n'.encode("latin-1"), "UTF-8"),
        ("x.csv", "a,b\nä,1\n".encode("latin-1"), "UTF-8"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-8"),
        ("x.csv", b"a,b\n1,2,3\n", "quotation marks"),
        ("x.csv", b'a,b\n1,"2\n', "quotation marks"),
        ("x.csv", b"a,a\n1,2\n", "rename one"),
        ("x.csv", b"a;b\n1;2\n", "save it with commas"),
        ("x.csv", b"a\tb\n1,0\t2\n", "save it with commas"),
        ("x.jsonl.gz", b'{"a": 1}\n', "rename it to match its content"),
    ],
)
def test_an_error_says_how_to_mend_the_file(tmp_path: Path, name: str, content: bytes, hint: str) -> None:
    assert hint in refuse(tmp_path / name, content).hint


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS * 500), path)
    whole = path.read_bytes()
    assert "not a readable parquet file" in refuse(path, whole[: len(whole) // 2]).message
    assert "not a .parquet file" in refuse(path, LINES).message


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / "trian.jsonl")
    assert caught.value.message.endswith("trian.jsonl: no such file")
    assert "train.jsonl" in caught.value.hint
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="can't be read"):
        read_file(tmp_path / "folder.jsonl")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_rows_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("x.jsonl", "x.json", "x.csv"):
        path = folder / name
        path.write_bytes(content)
        try:
            rows = read_file(path).splits
        except DataError:
            continue
        assert all(isinstance(row, dict) for split in rows.values() for row in split)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON, st.booleans())
def test_parse_json_agrees_with_the_standard_library(value: object, ascii_only: bool) -> None:
    assert strict_json(json.dumps(value, ensure_ascii=ascii_only)) == value


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rmtrain.data import files

    path, whole = tmp_path / "rows.jsonl", files._read_jsonl

    def read(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
        yield from whole(path)
        path.write_text('{"a": 2}\n{"a": 3}\n')

    path.write_text('{"a": 1}\n')
    monkeypatch.setattr(files, "_read_jsonl", read)
    with pytest.raises(DataError, match="changed while it was read"):
        files.read_file(path)
